"""Published PartCraft checkpoints become one of our dictionaries, and their k-means one of our codebooks.

kamwoh/partcraft @ dfe64e1; the released weights are kamwoh/dreamcreature-sd1.5-cub200 and -dog, trained with class numbers
as kinds (the background with k-means numbers). Rows that were never trained hold noise and are left out.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ...concepts.denoiser.backbone import BACKBONES, get_backbone
from ...concepts.denoiser.lora_names import BUNDLED, check_family, to_kohya
from ...concepts.errors import BestiaryError
from ...concepts.files.concept_names import CODEBOOK_SUFFIX
from ...concepts.files.text_file import LARGEST_TOML, parse_toml, read_text
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ...concepts.part_dictionary.token_projector import TokenProjector
from ...concepts.part_map.foreground import CentroidForeground
from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_map.part_model import CentroidParts, background_centroid
from ...concepts.part_prompt.caption_file import parse_captions
from .partcraft_files import COARSE, FINE, FOREGROUND, PartCraftFile, PartCraftKind, read_partcraft_file

log = logging.getLogger(__name__)

Dataset = Literal["cub", "dogs"]
IMPORTED_BACKBONES = ("sd15", "sd2", "sdxl")
"""Model families PartCraft has been trained on, recognised by the width of the table."""


class PartLayout(BaseModel):
    """What the parts of a checkpoint are called, and which rows were trained."""

    model_config = ConfigDict(extra="forbid")

    parts: dict[str, int]
    """Name -> part number. Parts that are not named were never trained."""
    background: str | None = None
    """Name of the background part; its kinds are k-means numbers, all of them trained."""
    classes: int = Field(gt=0)
    """Kinds 0..classes-1 of the other parts were trained."""
    id_base: Literal[0, 1] = 1
    """Number people type for class 0."""


LAYOUTS: dict[str, PartLayout] = {
    "cub": PartLayout(
        parts={"body": 0, "tail": 1, "head": 2, "wing": 4, "leg": 6, "background": 7}, background="background", classes=200
    ),
    "dogs": PartLayout(
        parts={
            "eye": 0, "background": 1, "neck": 2, "ear": 3, "body": 4, "leg": 5, "nose": 6, "forehead": 7
        },
        background="background",
        classes=120,
    ),
}  # fmt: skip
"""The two published sets; parts 3 and 5 of the birds occur in no caption."""


@dataclass(frozen=True)
class ImportedPartCraft:
    """What an import gave."""

    dictionary: PartDictionary
    codebook: PartCodebook | None
    written: tuple[Path, ...]


def import_partcraft(
    files: Sequence[Path],
    out: Path,
    *,
    names: str | Path | None = None,
    class_names: Path | None = None,
    captions: Path | None = None,
    foreground_cluster: int = 0,
) -> ImportedPartCraft:
    """Read checkpoints in any order, write a dictionary to `out` and, with a k-means file, a codebook beside it.

    Args:
        files: one mapper, and perhaps one LoRA and one k-means file.
        names: "cub", "dogs" or a TOML file with the fields of PartLayout; None guesses from the files' paths.
        class_names: text file with one class name per line, in the order of the classes.
        captions: caption file of a training without class labels: exactly the pairs that occur in it were trained.
        foreground_cluster: which of the two first-level clusters is the foreground (0 in both published sets).

    Raises:
        BestiaryError: a file is unsafe, unknown, doubled or does not fit the others; nothing is written then.
    """
    # everything is read, named and checked before the first byte is written
    found = _by_kind([read_partcraft_file(Path(path)) for path in files])
    layout = _layout(names, files)
    dictionary = _dictionary(found, layout, class_names, captions)
    # kinds of the published dictionaries are classes, those of the codebook k-means numbers: two files, two numberings
    codebook = _codebook(found["kmeans"], layout, foreground_cluster) if "kmeans" in found else None
    # --out may be a folder
    out = out if out.suffix == ".safetensors" else out / "partcraft.safetensors"
    written = [out]
    if codebook is not None:
        written.append(out.with_name(out.name.removesuffix(".safetensors") + CODEBOOK_SUFFIX))
    _spare_sources(written, files)
    if codebook is not None:
        codebook.save(written[1])
    dictionary.save(out)
    return ImportedPartCraft(dictionary, codebook, tuple(written))


def _spare_sources(written: Sequence[Path], files: Sequence[Path]) -> None:
    sources = {Path(path).resolve() for path in files}
    for path in written:
        if path.resolve() in sources:
            raise BestiaryError(f"{path} is one of the checkpoints to be imported: choose another --out")


def _by_kind(files: Sequence[PartCraftFile]) -> dict[PartCraftKind, PartCraftFile]:
    found: dict[PartCraftKind, PartCraftFile] = {}
    for file in files:
        if file.kind in found:
            raise BestiaryError(
                f"{found[file.kind].path} and {file.path} are both a {file.kind}: give one of each kind"
            )
        found[file.kind] = file
    if "mapper" not in found:
        given = ", ".join(f"{file.path.name} ({file.kind})" for file in files) or "no file"
        raise BestiaryError(
            f"the mapper with the part tokens is missing (pytorch_model_1.bin or hash_mapper.pth); got {given}"
        )
    # usable without, so a warning and no error
    if "lora" not in found:
        log.warning("no LoRA among the files: part tokens work poorly without the one they were trained with")
    return found


def _layout(names: str | Path | None, files: Sequence[Path]) -> PartLayout:
    if names is None:
        paths = " ".join(str(path).lower() for path in files)
        # the published folders are called dreamcreature-sd1.5-cub200 and dreamcreature-sd1.5-dog
        guesses = [name for name, word in (("cub", "cub"), ("dogs", "dog")) if word in paths]
        if len(guesses) != 1:
            raise BestiaryError(
                "cannot tell the data set from the files' names: say cub or dogs, or give a TOML with the parts"
            )
        log.info("taken for the %s checkpoint, after its path", guesses[0])
        return LAYOUTS[guesses[0]]
    # a set that is known by name, or a file that describes another
    if str(names) in LAYOUTS:
        return LAYOUTS[str(names)]
    try:
        return PartLayout.model_validate(parse_toml(read_text(names, LARGEST_TOML)))
    except ValidationError as fault:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in fault.errors())
        raise BestiaryError(f"{names} does not describe the parts: {reasons}") from fault
    except BestiaryError as fault:
        raise BestiaryError(f"{names!s} is neither cub, dogs nor a readable TOML file ({fault})") from fault


def _dictionary(
    found: dict[PartCraftKind, PartCraftFile], layout: PartLayout, class_names: Path | None, captions: Path | None
) -> PartDictionary:
    # the released mappers are whole training modules: their parameter names are ours
    mapper = found["mapper"]
    try:
        projector = TokenProjector.from_state_dict(mapper.tensors)
    except BestiaryError as fault:
        raise BestiaryError(f"{mapper.path}: {fault}") from fault
    parts, kinds = projector.num_parts, projector.num_kinds
    _check_layout(layout, parts, kinds, mapper.path)
    backbone = _backbone_of(projector.width, mapper.path)
    rows = _rows_in_captions(captions, parts, kinds) if captions else _trained_rows(layout, kinds)  # (R, 2)
    # the projector is applied once and for all; inference needs the table alone
    vectors = projector.collapse()[rows[:, 0], rows[:, 1]]  # (R, D)
    # parts that no caption names keep their number, so that the codebook's and the dictionary's numbers agree
    part_names = [f"unused {part}" for part in range(parts)]
    for name, part in layout.parts.items():
        part_names[part] = name
    background = layout.parts[layout.background] if layout.background else None
    # the background's kinds are scenes, not classes, and stay numbers
    named = dict(enumerate(_read_class_names(class_names, layout.classes))) if class_names else {}
    return PartDictionary(
        backbone=backbone,
        part_names=tuple(part_names),
        kind_names=tuple({} if part == background else dict(named) for part in range(parts)),
        background=background,
        rows=rows,
        embeddings={name: piece.contiguous() for name, piece in get_backbone(backbone).split_vector(vectors).items()},
        lora=_lora(found["lora"], projector.width) if "lora" in found else {},
        provenance={
            "imported_from": "kamwoh/partcraft",
            "files": [found[kind].path.name for kind in sorted(found)],
            "projector_depth": projector.depth,
            "kinds": "caption codes" if captions else "class numbers; background: k-means numbers",
        },
        id_base=0 if captions else layout.id_base,
    )


def _lora(file: PartCraftFile, width: int) -> dict[str, Tensor]:
    """Adapters under kohya names, down `(r, in, ...)` and up `(out, r, ...)`; embeddings bundled with them are left out."""
    try:
        named = to_kohya(file.tensors)
        check_family(named, width)
    except BestiaryError as fault:
        raise BestiaryError(f"{file.path}: {fault}") from fault
    kept = {name: tensor for name, tensor in named.items() if not name.startswith(BUNDLED)}
    if len(kept) < len(named):
        log.warning("%s also holds embeddings: bestiary import textual-inversion takes them", file.path.name)
    return kept


def _check_layout(layout: PartLayout, parts: int, kinds: int, path: Path) -> None:
    if layout.background and layout.background not in layout.parts:
        raise BestiaryError(f"background {layout.background!r} is not among the parts {', '.join(layout.parts)}")
    # parts and kinds that the table does not have
    beyond = [name for name, part in layout.parts.items() if not 0 <= part < parts]
    if beyond or layout.classes > kinds:
        raise BestiaryError(
            f"{path} has {parts} parts of {kinds} kinds, but the names speak of {layout.classes} classes and "
            f"parts up to {max(layout.parts.values())}: this is another checkpoint, choose other names"
        )


def _backbone_of(width: int, path: Path) -> str:
    widths = {BACKBONES[name].vector_width: name for name in IMPORTED_BACKBONES}
    if width not in widths:
        known = ", ".join(f"{number} ({name})" for number, name in widths.items())
        raise BestiaryError(f"{path} has tokens of width {width}; known are {known}")
    return widths[width]


def _trained_rows(layout: PartLayout, kinds: int) -> Tensor:
    """(part, kind) of all trained rows `(R, 2)`: classes of named parts, all k-means numbers of the background."""
    pairs = []
    # row K of every part means "absent"; it is never trained and never taken over
    for name, part in sorted(layout.parts.items(), key=lambda item: item[1]):
        pairs += [(part, kind) for kind in range(kinds if name == layout.background else layout.classes)]
    return torch.tensor(pairs, dtype=torch.long)


def _rows_in_captions(path: Path, parts: int, kinds: int) -> Tensor:
    """(part, kind) of all pairs in a caption file `(R, 2)`."""
    codes = parse_captions(read_text(path), parts)  # (N, M)
    pairs = sorted({(part, kind) for row in codes.tolist() for part, kind in enumerate(row) if kind >= 0})
    if not pairs or max(kind for _, kind in pairs) >= kinds:
        raise BestiaryError(
            f"{path} names {len(pairs)} pairs, the mapper has {kinds} kinds per part: they do not belong together"
        )
    return torch.tensor(pairs, dtype=torch.long)


def _read_class_names(path: Path, classes: int) -> list[str]:
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if len(names) != classes:
        raise BestiaryError(f"{path} has {len(names)} names, the checkpoint has {classes} classes: one name per line")
    return names


def _codebook(kmeans: PartCraftFile, layout: PartLayout, foreground_cluster: int) -> PartCodebook:
    """The three levels as a codebook; the background is the part nearest to the constant vector of -1 that stood for it."""
    coarse, fine = kmeans.tensors[COARSE], []  # (M, D)
    while FINE.format(len(fine)) in kmeans.tensors:
        fine.append(kmeans.tensors[FINE.format(len(fine))])
    # what does not fit would only show as nonsense in part maps: it is refused here
    count, width = coarse.shape
    if len(fine) != count or foreground_cluster not in (0, 1) or max(layout.parts.values()) >= count:
        raise BestiaryError(
            f"{kmeans.path} has {count} parts and kinds for {len(fine)}, foreground cluster {foreground_cluster}: "
            "expected as many as the names say, and cluster 0 or 1"
        )
    # background patches had been replaced by the constant vector -1, so one centroid points there
    background = background_centroid(coarse)
    if layout.background and layout.parts[layout.background] != background:
        raise BestiaryError(
            f"{kmeans.path} has its background in part {background}, the names in part "
            f"{layout.parts[layout.background]}: k-means and names belong to different sets"
        )
    names = {part: name for name, part in layout.parts.items()}
    return PartCodebook(
        feature_spec={"name": "dinov2", "image_size": 224, "model": "vit_base_patch14_dinov2.lvd142m"},
        width=width,
        grid=(16, 16),
        part_names=tuple(names.get(part, f"unused {part}") for part in range(count)),
        background=background,
        foreground=CentroidForeground(kmeans.tensors[FOREGROUND], foreground_cluster),
        parts=CentroidParts(coarse, torch.arange(count)),
        fine=tuple(fine),
        kind_names=tuple({} for _ in range(count)),
    )
