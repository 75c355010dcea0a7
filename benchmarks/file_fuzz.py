"""Mutated files of ours, read and used: each is refused with one message, or works.

Command: `python benchmarks/file_fuzz.py --files 8000 --seed 1`. Prints files, reads, refusals, and every other exception.
The same machinery runs with a small count in tests/trainer/test_file_fuzz.py.
"""

import argparse
import importlib.util
import json
import random
import re
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location(
        "bestiary", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    sys.modules["bestiary"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["bestiary"])

import torch
import typer
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features.patch_features import PatchGrid
from bestiary.concepts.files.thumbnail_atlas import ThumbnailAtlas
from bestiary.concepts.part_dictionary.dictionary_merge import merge_dictionaries
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_dictionary.token_projector import TokenProjector
from bestiary.concepts.part_map.foreground import CentroidForeground, LearnedForeground
from bestiary.concepts.part_map.object_frame import asymmetry
from bestiary.concepts.part_map.part_codebook import FeatureSpace, PartCodebook
from bestiary.concepts.part_map.part_map import PartMaps
from bestiary.concepts.part_map.part_model import CentroidParts, LearnedParts
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.spectrum_file import load_spectrum, save_spectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.trainer.discovery import edit_parts
from bestiary.trainer.exchange.export_parts import token_names
from bestiary.trainer.exchange.inspect_file import describe_file, description_text
from bestiary.trainer.exchange.partcraft_files import read_partcraft_file
from bestiary.trainer.learning.discovery.discovery_folder import (
    Discovery,
    read_skipped,
    write_lines,
    write_maps,
    write_report,
    write_skipped,
)
from PIL import Image
from safetensors.torch import save_file

NO_MESSAGE = re.compile(
    r"\b[A-Z]\w*(?:Error|Exception)\b|codec can't|Expecting |object is not|NoneType|has no attribute|unhashable|must be str|"
    r"invalid literal|<class|unexpected keyword|not subscriptable|shape mismatch|size mismatch"
)
"""What only an exception of Python or of a library says."""
ODD_VALUES = (
    None, True, -1, 0, 1, 2, 255, 2**31, 2**63, 10**30, 0.5, -0.5, float("nan"), float("inf"), "", "x", "0", "-1", "\ud800",
    "a\0b", "../../x", "y" * 5000, [], [None], [1, 2, 3], [[0]], {}, {"x": 1}, {"0": "x"}, {"-1": []}, [[[[[[[[[[]]]]]]]]]],
)  # fmt: skip
ODD_BYTES = (
    b"",
    b"\0",
    b"\xff\xfe",
    b"{}",
    b"[]",
    b"null",
    b"\xef\xbb\xbf",
    b'"',
    b"\n\n",
    b"a,b,c\n",
    b"1e999",
    b"\r",
)


@dataclass
class Tally:
    """What happened."""

    files: int = 0
    reads: int = 0
    refused: int = 0
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)


# --- sound files ---


def learned_codebook() -> PartCodebook:
    facing = torch.zeros(asymmetry(torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 2)).shape[1])
    return PartCodebook(
        feature_spec={"name": "descriptor", "image_size": 64}, width=4, grid=(8, 8),
        part_names=("head", "body", "background"), background=2,
        foreground=LearnedForeground(torch.randn(5, 4), torch.zeros(5), torch.randn(5), torch.zeros(8, 8), margin=0.4),
        parts=LearnedParts(torch.full((3, 11, 11), 1 / 3), facing, torch.tensor([0, 1])),
        fine=(torch.eye(2, 4), torch.eye(3, 4), torch.eye(1, 4)), kind_centers=torch.zeros(3, 4),
        kind_names=({0: "red"}, {}, {}), space=FeatureSpace(torch.zeros(6), torch.eye(6, 4)), statistics={"inertia": 0.5},
    )  # fmt: skip


def centroid_codebook() -> PartCodebook:
    return PartCodebook(
        feature_spec={"name": "descriptor"}, width=4, grid=(8, 8), part_names=("head", "body", "background"), background=2,
        foreground=CentroidForeground(torch.eye(2, 4), 0), parts=CentroidParts(torch.eye(3, 4), torch.arange(3)),
        fine=(torch.eye(2, 4), torch.eye(3, 4), torch.eye(1, 4)), kind_names=({0: "red", 1: "blue"}, {}, {}),
    )  # fmt: skip


def dictionary() -> PartDictionary:
    rows = torch.tensor([[0, 0], [0, 1], [1, 0], [2, 4]])
    atlas = ThumbnailAtlas.from_images(
        {(0, 0): Image.new("RGB", (16, 16)), (1, 0): Image.new("RGB", (16, 16), "red")}, 16
    )
    layer = "lora_unet_a_to_q"
    lora = {f"{layer}.lora_down.weight": torch.ones(2, 8), f"{layer}.lora_up.weight": torch.ones(8, 2)}
    lora[f"{layer}.alpha"] = torch.tensor(2.0)
    vectors = {"clip_l": torch.randn(4, 6)}
    names = ("head", "body", "sky")
    return PartDictionary("sd15", names, ({0: "owl"}, {}, {}), 2, rows, vectors, lora, atlas, {"by": "me"}, id_base=1)


def spectrum() -> PromptSpectrum:
    return PromptSpectrum(
        backbone="sd15", embeddings={"clip_l": torch.randn(4, 2, 6)}, bounds=StageBounds.equal(4), counts=(2, 1, 2, 0),
        words={1: "red"}, neutral={"clip_l": torch.zeros(2, 6)}, initial_words="owl", provenance={"by": "me"},
    )  # fmt: skip


def discovery(folder: Path) -> None:
    """A folder of six pictures, three parts and their report."""
    labels, count = torch.full((6, 8, 8), 2, dtype=torch.uint8), 6
    labels[:, 1:4, 1:4], labels[:, 4:7, 2:6] = 0, 1
    codes = torch.stack([torch.arange(6) % 2, torch.arange(6) % 3, torch.zeros(6).long()], dim=1)  # (6, 3)
    (folder / "pictures").mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (32, 32), (40 * number, 0, 0)).save(folder / "pictures" / f"{number}.png")
    centroid_codebook().save(folder / "codebook.parts.safetensors")
    write_maps(folder / "part_maps.safetensors", [PartMaps(labels, codes)], count, (8, 8), 3)
    write_lines(folder / "images.txt", [f"{number}.png" for number in range(count)])
    write_lines(folder / "captions.txt", ["0:0"] * count)
    write_skipped(folder / "skipped.csv", [("broken.png", "no picture")])
    parts = [
        {"index": part, "name": name, "images": 6, "area": 0.1, "kinds": {str(kind): 2 for kind in range(kinds)}}
        for part, (name, kinds) in enumerate((("head", 2), ("body", 3), ("background", 1)))
    ]
    write_report(folder, {
        "format": 1, "images": 6, "skipped": 1, "images_folder": str(folder / "pictures"),
        "images_folder_relative": "pictures", "source": {"name": "descriptor"}, "settings": {"parts": 2},
        "statistics": {}, "parts": parts, "part_of": [0, 1, 2], "examples": [0, 3],
        "typical": {"0:0": [0, 2], "0:1": [1], "1:0": [0], "1:1": [1], "1:2": [2], "2:0": [0]},
    })  # fmt: skip


# --- uses ---


def use_codebook(path: Path) -> Iterator[Callable[[], object]]:
    yield lambda: description_text(describe_file(path))
    codebook = PartCodebook.load(path)
    yield lambda: codebook.find_part("head")
    channels = codebook.width if codebook.space is None else len(codebook.space.mean)
    grid = PatchGrid(torch.randn(1, 4, 4, min(channels, 64)))
    if codebook.fine and channels <= 64:
        yield lambda: codebook.segment(grid)
    yield lambda: codebook.save(path.with_name("again"))


def use_dictionary(path: Path) -> Iterator[Callable[[], object]]:
    yield lambda: description_text(describe_file(path))
    found = PartDictionary.load(path)
    yield found.matrix
    yield lambda: found.sample(int(found.rows[0, 0]), 1)
    yield lambda: token_names(found)
    if found.thumbnails is not None:
        yield lambda: [found.thumbnails.tile(*pair) for pair in found.thumbnails.index]
    yield lambda: merge_dictionaries(found, found)
    yield lambda: found.save(path.with_name("again"))


def use_spectrum(path: Path) -> Iterator[Callable[[], object]]:
    yield lambda: description_text(describe_file(path))
    found = load_spectrum(path)
    yield found.mean_embedding
    yield lambda: [found.stage_vectors(stage) for stage in range(found.stages)]
    yield lambda: save_spectrum(found, path.with_name("again"))


def use_projector(path: Path) -> Iterator[Callable[[], object]]:
    yield lambda: description_text(describe_file(path))
    file = read_partcraft_file(path)
    if file.kind == "mapper":
        yield lambda: TokenProjector.from_state_dict(file.tensors).collapse()


def use_discovery(folder: Path) -> Iterator[Callable[[], object]]:
    yield lambda: Discovery.load(folder)
    yield lambda: read_skipped(folder)
    yield lambda: edit_parts.rename_part(folder, "head", "skull")
    yield lambda: edit_parts.merge_parts(folder, ["1:0", "1:1"])
    yield lambda: edit_parts.drop_parts(folder, ["body"])


# --- mutations ---


def _changed_value(value: object, rng: random.Random) -> object:
    """A JSON value with one place of it replaced, removed or added to."""
    if isinstance(value, dict | list) and value and rng.random() < 0.75:
        copy = dict(value) if isinstance(value, dict) else list(value)
        key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
        choice = rng.random()
        if choice < 0.2:
            del copy[key]
        elif choice < 0.3 and isinstance(copy, dict):
            copy[rng.choice(["-1", "999", "x", "", "\ud800", "0:99"])] = copy[key]
        elif choice < 0.3:
            copy.append(copy[key])
        else:
            copy[key] = _changed_value(copy[key], rng)
        return copy
    return rng.choice(ODD_VALUES)


def _mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    place, choice = rng.randrange(len(content) + 1), rng.randrange(4)
    if choice == 0:
        return content[:place]
    if choice == 1:
        return content[:place] + rng.choice(ODD_BYTES) + content[place:]
    if choice == 2:
        return content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]
    return content[:place] + rng.choice(ODD_BYTES) + content[place + rng.randrange(64) :]


def _mutate_header(content: bytes, rng: random.Random) -> bytes:
    """One entry of the header or of the metadata changed; the tensors stay."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    stored = header.get("__metadata__", {})
    if stored and rng.random() < 0.75:
        key = rng.choice(list(stored))
        try:
            value = json.loads(stored[key])
        except ValueError:
            value = stored[key]
        if rng.random() < 0.1:
            del stored[key]
        else:
            stored[key] = json.dumps(_changed_value(value, rng))
    else:
        header = _changed_value(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _mutate_tensor(content: bytes, rng: random.Random) -> bytes:
    """One tensor of another type, shape, name or values, in a file that is sound in itself."""
    from safetensors.torch import load, save

    length = struct.unpack("<Q", content[:8])[0]
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__")
    tensors = load(content)
    name = rng.choice(list(tensors))
    tensor, choice = tensors[name], rng.randrange(9)
    if choice == 0:
        del tensors[name]
    elif choice == 1:
        tensors[rng.choice(["kinds.9", "kinds.x", "lora.a", "space.mean", "thumbnails.x", "\u00e9", name + "2"])] = (
            tensor.clone()
        )
    elif choice == 2:
        tensors[name] = tensor.to(
            rng.choice([torch.int64, torch.uint8, torch.float16, torch.float64, torch.bool, torch.int32])
        )
    elif choice == 3:
        tensors[name] = tensor.flatten()
    elif choice == 4:
        tensors[name] = tensor[..., : rng.randrange(tensor.shape[-1] + 1)].clone() if tensor.ndim else tensor.reshape(1)
    elif choice == 5:
        tensors[name] = torch.cat([tensor, tensor]) if tensor.ndim else tensor.repeat(2, 2)
    elif choice == 6:
        tensors[name] = tensor.unsqueeze(0)
    elif choice == 7 and tensor.numel():
        changed = tensor.clone().flatten()
        worst = [float("nan"), float("inf"), -1.0, 1e30] if tensor.is_floating_point() else [255, 77, 3, 0]
        changed[rng.randrange(len(changed))] = rng.choice(worst)
        tensors[name] = changed.reshape(tensor.shape)
    else:
        tensors[name] = torch.zeros_like(tensor)
    return save({n: t.contiguous() for n, t in tensors.items()}, metadata)


def _mutate_text(content: bytes, rng: random.Random) -> bytes:
    if content[:1] == b"{" and rng.random() < 0.8:
        return json.dumps(_changed_value(json.loads(content), rng)).encode()
    return _mutate_bytes(content, rng)


def mutated(path: Path, rng: random.Random) -> bytes:
    """The content of a file after one to three changes."""
    content = path.read_bytes()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            if path.suffix != ".safetensors":
                content = _mutate_text(content, rng)
            else:
                content = rng.choice((_mutate_header, _mutate_tensor, _mutate_tensor, _mutate_bytes))(content, rng)
        except Exception:  # what is broken already is broken once more, byte by byte
            content = _mutate_bytes(content, rng)
    return content


def run_fuzz(work: Path, files: int, seed: int) -> Tally:
    """Make `files` mutated files below `work`, read and use each, and count what happens."""
    torch.manual_seed(seed)
    rng, tally = random.Random(seed), Tally()
    sound = work / "sound"
    sound.mkdir(parents=True)
    learned_codebook().save(sound / "learned.safetensors")
    centroid_codebook().save(sound / "centroids.safetensors")
    dictionary().save(sound / "dictionary.safetensors")
    save_spectrum(spectrum(), sound / "spectrum.safetensors")
    projector = {name: tensor.clone() for name, tensor in TokenProjector(3, 2, 6).state_dict().items()}
    save_file(projector, str(sound / "projector.safetensors"))
    discovery(sound / "found")
    singles = {
        "learned": use_codebook, "centroids": use_codebook, "dictionary": use_dictionary, "spectrum": use_spectrum,
        "projector": use_projector,
    }  # fmt: skip
    parts = (
        "images.txt",
        "skipped.csv",
        "report.json",
        "report.json",
        "part_maps.safetensors",
        "codebook.parts.safetensors",
    )
    for number in range(files):
        name = rng.choice([*singles, "found", "found"])
        if name == "found":
            place = work / "found"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(sound / "found", place)
            target = place / rng.choice(parts)
            target.write_bytes(mutated(target, rng))
            uses, kind = use_discovery(place), target.name
        else:
            place = work / "mutated.safetensors"
            place.write_bytes(mutated(sound / f"{name}.safetensors", rng))
            uses, kind = singles[name](place), name
        tally.files += 1
        _read(uses, f"file {number} ({kind})", tally)
    return tally


def _read(uses: Iterator[Callable[[], object]], label: str, tally: Tally) -> None:
    """Run every use of one file until one ends the series."""
    while True:
        begin = time.process_time()
        try:
            use = next(uses, None)
            if use is None:
                return
            use()
            told = ""
        except BestiaryError as fault:
            told = str(fault)
            tally.refused += 1
            if NO_MESSAGE.search(told) or "\n" in told or len(told) > 2000:
                tally.faults.append(f"{label}: says {told[:300]!r}")
        except Exception as fault:
            place = traceback.extract_tb(fault.__traceback__)[-1]
            tally.faults.append(
                f"{label}: {type(fault).__name__} at {Path(place.filename).name}:{place.lineno}: {fault}"[:300]
            )
        tally.reads += 1
        tally.slowest = max(tally.slowest, time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tally = run_fuzz(Path(folder), options.files, options.seed)
    typer.echo(f"{tally.files} mutated files, {tally.reads} reads, {tally.refused} refused, {len(tally.faults)} faults")
    typer.echo(f"slowest read {tally.slowest:.2f} s of processor time")
    for text, count in Counter(re.sub(r"^file \d+ ", "", fault) for fault in tally.faults).most_common(40):
        typer.echo(f"{count:5d}  {text}")


if __name__ == "__main__":
    main()
