"""Names the parts and kinds of a finished `bestiary demo` after the drawn species, and ships them in demo/concepts.

    python docs/name_creatures.py DEMO
    python docs/name_creatures.py DEMO --discovery FOLDER --dictionary FILE

Found parts take the name of the drawn part that they cover best, kinds the name of the species that most of their
pictures show; a species that several kinds show gets numbers behind its name. The truth serves the names alone.
"""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.trainer.demo.drawn_masks import load_truth
from bestiary.trainer.demo.judging import score_drawn_discovery
from bestiary.trainer.learning.discovery.discovery_folder import Discovery

CONCEPTS = Path(__file__).parent.parent / "demo" / "concepts"


def kind_names(codes: list[int], species: list[str]) -> dict[int, str]:
    """Kind -> name of the species that most pictures of that kind show; the commonest kind of a species comes first."""
    shown = {
        kind: Counter(name for code, name in zip(codes, species, strict=True) if code == kind) for kind in {*codes}
    }
    owner = {kind: names.most_common(1)[0][0] for kind, names in shown.items() if kind >= 0}
    names: dict[int, str] = {}
    for name in dict.fromkeys(owner.values()):
        kinds = sorted((k for k, o in owner.items() if o == name), key=lambda k: -shown[k][name])
        names |= {kind: name if place == 0 else f"{name} {place + 1}" for place, kind in enumerate(kinds)}
    return names


def main() -> None:
    """Name, check and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="folder that `bestiary demo` wrote")
    parser.add_argument("--discovery", type=Path)
    parser.add_argument("--dictionary", type=Path)
    given = parser.parse_args()
    discovery = Discovery.load(given.discovery or given.demo / "discovery")
    dictionary = PartDictionary.load(given.dictionary or given.demo / "creatures.safetensors")
    truth = load_truth(given.demo).ordered_like([path.name for path in discovery.image_paths])
    matched = score_drawn_discovery(discovery, truth).matched
    species = [kind.name for kind in truth.species]
    parts = tuple(matched.get(number, name) for number, name in enumerate(discovery.codebook.part_names))
    kinds = tuple(
        kind_names(discovery.maps.codes[:, number].tolist(), species) if number in matched else {}
        for number in range(len(parts))
    )
    trained = [
        {kind: name for kind, name in names.items() if kind in dictionary.kinds_of(part)}
        for part, names in enumerate(kinds)
    ]
    CONCEPTS.mkdir(exist_ok=True)
    discovery.codebook.with_names(parts, kinds).save(CONCEPTS / "creatures.parts.safetensors")
    replace(dictionary, part_names=parts, kind_names=tuple(trained)).save(CONCEPTS / "creatures.safetensors")


if __name__ == "__main__":
    main()
