"""Two part dictionaries become one: parts matched by name, kinds kept apart, LoRA added exactly."""

from collections import defaultdict

import torch

from ..denoiser.lora_sum import sum_loras
from ..errors import BestiaryError
from ..files.thumbnail_atlas import ThumbnailAtlas
from ..name_search import plain_name
from .part_dictionary import PartDictionary

PairMapping = dict[tuple[int, int], tuple[int, int]]
"""(part, kind) in the second dictionary -> (part, kind) in the merged one."""


def merge_dictionaries(
    first: PartDictionary, second: PartDictionary, strengths: tuple[float, float] = (1.0, 1.0)
) -> tuple[PartDictionary, PairMapping]:
    """Union of both; the first keeps its numbers, colliding numbers of the second are replaced by free ones.

    Parts of the same name become one part, the two backgrounds too. A kind of the second with a used name gets the
    suffix "(2)". LoRA are added with the given strengths, so pictures show both trainings at once.

    Raises:
        BestiaryError: the dictionaries belong to different backbones or vector widths, or their vectors enter prompts at different places.
    """
    widths = [{name: tensor.shape[1] for name, tensor in one.embeddings.items()} for one in (first, second)]
    if first.backbone != second.backbone or widths[0] != widths[1]:
        raise BestiaryError(
            f"a {first.backbone} dictionary ({widths[0]}) and a {second.backbone} dictionary ({widths[1]}) cannot be "
            "merged: vectors of different base models are incompatible"
        )
    if first.insertion != second.insertion:
        raise BestiaryError(
            f"vectors of the first dictionary enter prompts at the text encoders' {first.insertion}, those of the second at the {second.insertion}: "
            "they cannot be merged; learn both with the same method.insertion"
        )
    # new numbers for every part and every kind of the second
    part_names, part_map = _match_parts(first, second)
    kind_names = [dict(named) for named in first.kind_names] + [{} for _ in part_names[len(first.part_names) :]]
    mapping = _number_kinds(first, second, part_map)
    for (old_part, old_kind), (part, kind) in mapping.items():
        if old_kind in second.kind_names[old_part]:
            kind_names[part][kind] = free_name(second.kind_names[old_part][old_kind], kind_names[part])
    # rows of the first stay where they are, so that prompts written for it keep their meaning
    moved = torch.tensor([mapping[tuple(pair)] for pair in second.rows.tolist()], dtype=torch.long)  # (R2, 2)
    background = first.background if first.background is not None else part_map.get(second.background)
    # rows, vectors and adapters of both, one after the other
    merged = PartDictionary(
        backbone=first.backbone,
        part_names=tuple(part_names),
        kind_names=tuple(kind_names),
        background=background,
        rows=torch.cat([first.rows, moved]),  # (R1 + R2, 2)
        embeddings={name: torch.cat([first.embeddings[name], second.embeddings[name]]) for name in first.embeddings},
        lora=sum_loras(first.lora, second.lora, strengths),
        thumbnails=_joined_thumbnails(first, second, mapping),
        provenance={**first.provenance, "merged_with": [*_merged_before(first), second.provenance]},
        id_base=first.id_base,
    )
    return merged, mapping


def _merged_before(dictionary: PartDictionary) -> list[object]:
    earlier = dictionary.provenance.get("merged_with", [])
    return earlier if isinstance(earlier, list) else [earlier]


def _match_parts(first: PartDictionary, second: PartDictionary) -> tuple[list[str], dict[int | None, int]]:
    """Names of all parts, and where each part of the second dictionary goes."""
    names = list(first.part_names)
    exact = {name: part for part, name in enumerate(first.part_names)}
    known = {plain_name(name): part for name, part in reversed(exact.items())}
    # "left wing" and "left_wing" are one part in two dictionaries, and two parts where one dictionary has both
    spoken_for = {exact[name] for name in second.part_names if name in exact}
    part_map: dict[int | None, int] = {}
    for part, name in enumerate(second.part_names):
        # whatever the two backgrounds are called
        both_backgrounds = part == second.background and first.background is not None
        target = first.background if both_backgrounds else exact.get(name)
        alike = known.get(plain_name(name))
        if target is None and alike is not None and alike not in spoken_for:
            target = alike
            spoken_for.add(alike)
        if target is None:
            names.append(name)
            target = len(names) - 1
        part_map[part] = target
    return names, part_map


def _number_kinds(first: PartDictionary, second: PartDictionary, part_map: dict[int | None, int]) -> PairMapping:
    """New (part, kind) of every row of the second dictionary."""
    taken = set(first.row_of)
    # the first number beyond all that are taken, per part
    free: defaultdict[int, int] = defaultdict(int)
    for part, kind in taken:
        free[part] = max(free[part], kind + 1)
    mapping: PairMapping = {}
    for old in sorted(second.row_of):
        part, kind = part_map[old[0]], old[1]
        if (part, kind) in taken:
            kind = free[part]
        taken.add((part, kind))
        free[part] = max(free[part], kind + 1)
        mapping[old] = (part, kind)
    return mapping


def free_name(name: str, taken: dict[int, str]) -> str:
    """`name`, with " (2)" or a higher number behind it if a kind of the part is already called so."""
    used = {plain_name(other) for other in taken.values()}
    number = 2
    candidate = name
    while plain_name(candidate) in used:
        candidate = f"{name} ({number})"
        number += 1
    return candidate


def _joined_thumbnails(first: PartDictionary, second: PartDictionary, mapping: PairMapping) -> ThumbnailAtlas | None:
    atlases = [(one, {pair: pair for pair in one.index}) for one in [first.thumbnails] if one]
    atlases += [(one, mapping) for one in [second.thumbnails] if one]
    tiles = {new: tile for one, pairs in atlases for old, new in pairs.items() if (tile := one.tile(*old))}
    return ThumbnailAtlas.from_images(tiles, max(one.tile_size for one, _ in atlases)) if tiles else None
