"""Writes the example workflows, their API twins and their previews from the shipped dictionary, all with one command.

    python main.py --cpu                                             # in ComfyUI, with this pack in custom_nodes
    python docs/make_workflows.py [--server http://127.0.0.1:8188] [--only NAME...] [--no-pictures]
    python docs/make_workflows.py --freeze                           # with every release

Writes example_workflows/NAME.json and NAME.jpg, tests/workflows/NAME.api.json, and pictures of help pages into web/docs. What
the examples hold is in workflow_templates.py.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import bestiary
from bestiary.concepts.files.atomic_file import write_bytes, write_text
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.demo.species import PARTS
from template_pieces import SPECIES, Shipped
from workflow_graph import Graph, Node
from workflow_pictures import Server, as_jpeg, drawn_layout, gallery, preview, two_rows
from workflow_templates import EXAMPLES

ROOT = Path(__file__).parent.parent
WORKFLOWS, TWINS, HELP = ROOT / "example_workflows", ROOT / "tests" / "workflows", ROOT / "web" / "docs"
INTERFACE = "interface.json"
LARGEST_IN_HELP = 40_000
"""Bytes of a picture of a help page."""
DICTIONARY = ROOT / "demo" / "concepts" / "creatures.safetensors"

log = logging.getLogger("make_workflows")


def read_shipped(path: Path = DICTIONARY) -> Shipped:
    """Parts and kinds of the shipped dictionary."""
    owner = PartDictionary.load(path)
    numbers = [n for n in range(len(owner.part_names)) if n != owner.background and owner.kinds_of(n)]
    # in the order of the drawn world where it knows the names, so that a prompt begins with the head
    numbers.sort(key=lambda n: PARTS.index(owner.part_names[n]) if owner.part_names[n] in PARTS else n)
    shared = sorted(set.intersection(*(set(owner.kind_names[n].values()) for n in numbers)))
    kinds = {}
    for number in numbers:
        named = [owner.kind_names[number].get(kind, str(kind)) for kind in owner.kinds_of(number)]
        # species that every part has, so that the same place in each list is the same species
        kinds[owner.part_names[number]] = tuple(shared if len(shared) >= len(SPECIES) else named)
    return Shipped(path.name, f"{path.stem}.parts.safetensors", tuple(kinds), kinds)


def build(name: str, object_info: Mapping[str, dict], shipped: Shipped) -> tuple[Graph, list[Node]]:
    """The graph of an example and the blocks whose pictures its preview shows."""
    graph = Graph(name, object_info, bestiary.__version__)
    return graph, EXAMPLES[name].fill(graph, shipped)


def as_text(workflow: dict) -> str:
    """JSON with a line for every block, link and group."""

    def line(value: object) -> str:
        return json.dumps(value, ensure_ascii=False)

    def part(value: object) -> str:
        if isinstance(value, list) and value:
            return "[\n    " + ",\n    ".join(map(line, value)) + "\n  ]"
        return line(value)

    return "{\n  " + ",\n  ".join(f"{line(key)}: {part(value)}" for key, value in workflow.items()) + "\n}\n"


def make(name: str, server: Server, object_info: Mapping[str, dict], shipped: Shipped, *, pictures: bool) -> None:
    """Writes the files of one example."""
    graph, shown = build(name, object_info, shipped)
    twin, workflow = graph.api(), graph.ui()
    example = EXAMPLES[name]
    if pictures and example.runs:
        outputs = server.run(twin)
        places = [place for node in shown for place in outputs[str(node.id)]["images"]]
        pictures_of_run = [server.picture(place) for place in places]
        shown_pictures = gallery(pictures_of_run, example.columns)
    elif pictures:
        shown_pictures = drawn_layout(workflow)
    write_text(WORKFLOWS / f"{name}.json", as_text(workflow))
    write_text(TWINS / f"{name}.api.json", as_text(twin))
    if pictures:
        write_bytes(
            WORKFLOWS / f"{name}.jpg",
            as_jpeg(preview(two_rows(pictures_of_run, example.columns) if example.runs else shown_pictures)),
        )
    if pictures and example.in_help:
        write_bytes(HELP / f"{name}.jpg", as_jpeg(shown_pictures, LARGEST_IN_HELP))
    for kind in example.blocks_in_help if pictures else ():
        number = next(node.id for node in graph.nodes if node.kind == kind)
        own = server.picture(outputs[str(number)]["images"][0])
        write_bytes(HELP / f"{kind}.jpg", as_jpeg(gallery([own], 1), LARGEST_IN_HELP))
    log.info("%s: %d blocks", name, len(graph.nodes))


def freeze(object_info: Mapping[str, dict]) -> Path:
    """Keeps the examples and what every node takes and gives as those of this version, for tests of later ones.

    Raises:
        FileExistsError: this version is kept already.
    """
    folder = TWINS / "released" / bestiary.__version__
    folder.mkdir(parents=True)
    for path in (*WORKFLOWS.glob("*.json"), *TWINS.glob("*.api.json")):
        write_text(folder / path.name, path.read_text(encoding="utf-8"))
    write_text(folder / INTERFACE, as_text({name: interface(info) for name, info in _own_nodes(object_info)}))
    return folder


def interface(info: Mapping[str, object]) -> dict[str, object]:
    """What workflows rely on: names, types and defaults of the inputs in their order, types of the outputs."""
    asked = {need: info["input"].get(need, {}) for need in ("required", "optional")}
    return {
        **{need: {name: _type_and_default(spec) for name, spec in held.items()} for need, held in asked.items()},
        "outputs": list(info["output"]),
        "lists": list(info["output_is_list"]),
    }


def _type_and_default(spec: list) -> list[object]:
    kind = "COMBO" if isinstance(spec[0], list) else spec[0]
    return [kind, spec[1].get("default")] if len(spec) > 1 else [kind, None]


def _own_nodes(object_info: Mapping[str, dict]) -> list[tuple[str, dict]]:
    return sorted((name, info) for name, info in object_info.items() if name.startswith("Bestiary"))


def main() -> None:
    """Reads the command line and writes what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="a running ComfyUI with this pack")
    parser.add_argument("--only", nargs="*", choices=list(EXAMPLES), default=list(EXAMPLES), help="these alone")
    parser.add_argument("--freeze", action="store_true", help="keep all as they are for tests of later versions")
    parser.add_argument("--no-pictures", action="store_true", help="leave the previews as they are, run nothing")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    server = Server(chosen.server)
    object_info, shipped = server.object_info(), read_shipped()
    if chosen.freeze:
        log.info("kept in %s", freeze(object_info))
        return
    for name in chosen.only:
        make(name, server, object_info, shipped, pictures=not chosen.no_pictures)


if __name__ == "__main__":
    main()
