"""What codebooks, dictionaries and projectors must hold: checked as a whole before anything is built from them.

Letters: M parts, K kinds, C components, D channels of the source, E of its details, d and f of the codebook's own spaces, H hidden units, (h, w) patch
grid, e places, F entries of a facing template, R rows, W width of a text encoder.
"""

import dataclasses
from collections.abc import Mapping
from typing import TypedDict, cast

import torch
from torch import Tensor

from ..denoiser.backbone import get_backbone
from ..denoiser.lora_names import to_kohya
from ..errors import BestiaryError
from ..features.patch_features import SourceSpec
from ..files.concept_file import ConceptFile, from_text_tensor
from ..files.file_schema import (
    broken,
    checked_flag,
    checked_json,
    checked_list,
    checked_number,
    checked_numbered,
    checked_table,
    checked_tensor,
    checked_text,
    checked_whole,
)
from .foreground import CentroidForeground, ForegroundSettings, LearnedForeground
from .looks_foreground import LooksForeground
from .looks_parts import LooksParts, PartSettings
from .object_frame import asymmetry
from .part_model import CentroidParts, LearnedParts

MOST_PARTS = 255
"""Labels are bytes."""
MOST_CHANNELS = 1 << 16
LARGEST_GRID = 4_096
_LARGEST_KIND = 1 << 31


class CodebookHeader(TypedDict):
    """What the header of a codebook says."""

    feature_spec: SourceSpec
    width: int
    grid: list[int]
    part_names: list[str]
    background: int
    kind_names: list[dict[str, str]]
    """Per part; kinds are numbered as text."""
    foreground: ForegroundSettings
    parts: PartSettings
    statistics: dict[str, float]


def checked_codebook(file: ConceptFile) -> CodebookHeader:
    """The header of a codebook's file, once names, types, shapes and relations of the whole file are right.

    Raises:
        BestiaryError: the first entry that is wrong, and what it should be.
    """
    header, tensors = checked_table(file.metadata, "the header", CodebookHeader.__required_keys__), file.tensors
    for name, value in checked_table(header["feature_spec"], "feature_spec").items():
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise broken(f"feature_spec.{name[:60]}", value, "text or a number")
        checked_json(value, f"feature_spec.{name[:60]}")
    checked_text(header["feature_spec"].get("name", "unknown"), "feature_spec.name")
    sizes = {"d": checked_whole(header["width"], "width", 1, MOST_CHANNELS)}
    for size in checked_list(header["grid"], "grid", 2, 2):
        checked_whole(size, "grid", 1, LARGEST_GRID)
    names = [
        checked_text(name, "a part's name") for name in checked_list(header["part_names"], "part_names", 1, MOST_PARTS)
    ]
    sizes["M"] = len(names)
    checked_whole(header["background"], "background", 0, len(names) - 1)
    for name, value in checked_table(header["statistics"], "statistics").items():
        checked_json(value, f"statistics.{name}")
    # two levels of models, then kinds
    _check_foreground(tensors, checked_table(header["foreground"], "foreground"), sizes)
    _check_parts(tensors, checked_table(header["parts"], "parts"), sizes)
    _check_kinds(tensors, header["kind_names"], sizes)
    if "space.mean" in tensors or "space.projection" in tensors:
        # LooksParts may use another number of channels than foreground and kinds
        ours = "D f" if header["parts"].get("form") == "looks" else "D d"
        checked_tensor(tensors, "space.mean", "D", sizes)
        checked_tensor(tensors, "space.projection", ours, sizes)
    if "detail.mean" in tensors or "detail.projection" in tensors:
        checked_tensor(tensors, "detail.mean", "E", sizes)
        checked_tensor(tensors, "detail.projection", "E d", sizes)
    return cast(CodebookHeader, header)


def _settings(settings: dict, entry: str, forms: Mapping[str, type], tensors: Mapping[str, Tensor]) -> str:
    """The form that settings name; every setting is one of that form's, every tensor one it takes."""
    form = settings.get("form", next(iter(forms)))
    if not isinstance(form, str) or form not in forms:
        raise broken(f"{entry}.form", form, f"one of {', '.join(forms)}")
    fields = {field.name: field for field in dataclasses.fields(forms[form])}
    given = {name.removeprefix(f"{entry}.") for name in tensors if name.startswith(f"{entry}.")}
    unknown = sorted((settings.keys() | given) - fields.keys() - {"form"})
    if unknown:
        raise BestiaryError(f"{entry} has {unknown[0][:60]!r}, which no {form} form has")
    for name, value in settings.items():
        annotation = str(fields[name].type) if name in fields else ""
        if "bool" in annotation:
            checked_flag(value, f"{entry}.{name}")
        elif "float" in annotation:
            checked_number(value, f"{entry}.{name}")
    needed = [
        n for n, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    lacking = [name for name in needed if name not in settings and name not in given]
    if lacking:
        raise BestiaryError(f"{entry} lacks {', '.join(lacking)}")
    return form


def _check_foreground(tensors: Mapping[str, Tensor], settings: dict, sizes: dict[str, int]) -> None:
    forms = {"learned": LearnedForeground, "centroids": CentroidForeground, "looks": LooksForeground}
    form = _settings(settings, "foreground", forms, tensors)
    if form == "looks":
        checked_tensor(tensors, "foreground.weight", "d", sizes)
        checked_tensor(tensors, "foreground.bias", "", sizes)
        return
    if form == "centroids":
        checked_whole(settings.get("index"), "foreground.index", 0, 1)
        checked_tensor(tensors, "foreground.centroids", "2 d", sizes)
        return
    hidden = checked_tensor(tensors, "foreground.hidden_weight", "H D+", sizes)
    # with saliency there is one channel more
    if hidden.shape[1] not in (sizes["d"], sizes["d"] + 1):
        raise broken("the tensor 'foreground.hidden_weight'", hidden, f"floats (H, {sizes['d']}) or one channel more")
    checked_tensor(tensors, "foreground.hidden_bias", "H", sizes)
    checked_tensor(tensors, "foreground.output_weight", "H", sizes)
    checked_tensor(tensors, "foreground.place_logit", "h w", sizes)


def _check_parts(tensors: Mapping[str, Tensor], settings: dict, sizes: dict[str, int]) -> None:
    forms = {"learned": LearnedParts, "centroids": CentroidParts, "looks": LooksParts}
    form = _settings(settings, "parts", forms, tensors)
    owner = checked_list(settings.get("owner"), "parts.owner", 1, MOST_CHANNELS)
    for part in owner:
        checked_whole(part, "a part in parts.owner", 0, sizes["M"] - 1)
    sizes["C"] = len(owner)
    if form == "centroids":
        checked_tensor(tensors, "parts.centroids", "C d", sizes)
        return
    if form == "looks":
        checked_tensor(tensors, "parts.weight", "f C", sizes)
        checked_tensor(tensors, "parts.bias", "C", sizes)
        return
    places = checked_tensor(tensors, "parts.place_share", "C+1 e e", {**sizes, "C+1": len(owner) + 1})
    if (places < 0).any():
        raise BestiaryError("the tensor 'parts.place_share' contains shares below 0")
    # as many entries as the method itself makes of a picture
    made = asymmetry(torch.zeros(1, 2, 2, min(sizes["d"], 1024)), torch.zeros(1, 2, 2)).shape[1]
    checked_tensor(tensors, "parts.facing", "F", {"F": made})


def _check_kinds(tensors: Mapping[str, Tensor], names: object, sizes: dict[str, int]) -> None:
    count, found = sizes["M"], sorted(name for name in tensors if name.startswith("kinds."))
    if found and set(found) != {f"kinds.{part}" for part in range(count)}:
        odd = next((name for name in found if name not in {f"kinds.{part}" for part in range(count)}), None)
        raise BestiaryError(
            f"the tensor {odd[:60]!r} belongs to no part"
            if odd
            else f"there are kinds for {len(found)} of {count} parts"
        )
    kinds = []
    for part in range(count if found else 0):
        # parts may have no kinds at all
        empty = {"K": 0} if not len(tensors[f"kinds.{part}"]) else {}
        kinds.append(len(checked_tensor(tensors, f"kinds.{part}", "K d", {**sizes, **empty})))
    if "kind_centers" in tensors:
        checked_tensor(tensors, "kind_centers", "M d", sizes)
    if "kind_spaces" in tensors:
        checked_tensor(tensors, "kind_spaces", "M d d", sizes)
    if names != [] and len(checked_list(names, "kind_names")) != count:
        raise broken("kind_names", names, f"a list of {count}")
    for part, named in enumerate(checked_list(names, "kind_names")):
        for name in checked_numbered(named, f"kind_names[{part}]", kinds[part] if kinds else _LARGEST_KIND).values():
            checked_text(name, f"a name in kind_names[{part}]")


def check_dictionary(file: ConceptFile, encoders: tuple[str, ...]) -> None:
    """Names, types, shapes and relations of a dictionary's file.

    Args:
        file: its content.
        encoders: text encoders of its backbone.

    Raises:
        BestiaryError: the first entry that is wrong, and what it should be.
    """
    header, tensors = file.metadata, file.tensors
    missing = sorted({*encoders, "rows", "names"} - tensors.keys())
    if missing:
        raise BestiaryError(f"it lacks {', '.join(missing)}")
    sizes: dict[str, int] = {}
    rows = checked_tensor(tensors, "rows", "R 2", sizes, "whole numbers")
    for encoder in encoders:
        checked_tensor(tensors, encoder, "R W", {**sizes})
    # names are stored as a tensor: they would exceed the size limit of the header
    checked_tensor(tensors, "names", "n", {}, "bytes")
    table = checked_table(from_text_tensor(tensors["names"]), "the table of names", ("parts", "kinds"))
    count = len(checked_list(table["parts"], "parts in the table of names", 1, 1 << 16))
    for name in table["parts"]:
        checked_text(name, "a part's name")
    for part, named in enumerate(checked_list(table["kinds"], "kinds in the table of names", count, count)):
        for name in checked_numbered(named, f"the names of kinds of part {part}", _LARGEST_KIND).values():
            checked_text(name, f"a name of a kind of part {part}")
    if int(rows[:, 0].max()) >= count or int(rows.min()) < 0:
        raise BestiaryError(f"the tensor 'rows' names parts beyond {count - 1} or negative numbers")
    if header.get("background") is not None:
        checked_whole(header["background"], "background", 0, count - 1)
    if header.get("id_base") is not None:
        checked_whole(header["id_base"], "id_base", 0, 1)
    checked_json(checked_table(header.get("provenance") or {}, "provenance"), "provenance")
    lora = {name.removeprefix("lora."): tensor for name, tensor in tensors.items() if name.startswith("lora.")}
    if lora:
        for name, tensor in lora.items():
            checked_tensor(lora, name, " ".join("abcdef"[: tensor.ndim]), {})
        # pairs with equal ranks, single numbers as alphas
        to_kohya(lora, prefix=get_backbone(str(header.get("backbone"))).lora_prefix)
    _check_thumbnails({name: tensor for name, tensor in tensors.items() if name.startswith("thumbnails.")}, count)


def _check_thumbnails(tensors: Mapping[str, Tensor], count: int) -> None:
    if not tensors:
        return
    checked_tensor(tensors, "thumbnails.picture", "n", {}, "bytes")
    index = checked_tensor(tensors, "thumbnails.index", "T 2", {}, "whole numbers")
    edge, columns = checked_tensor(tensors, "thumbnails.shape", "2", {}, "whole numbers").tolist()
    checked_whole(edge, "the edge in 'thumbnails.shape'", 1, 1 << 13)
    checked_whole(columns, "the columns in 'thumbnails.shape'", 1, 1 << 13)
    if int(index.min()) < 0 or int(index[:, 0].max()) >= count:
        raise BestiaryError(f"the tensor 'thumbnails.index' names parts beyond {count - 1} or negative numbers")


def check_projector(tensors: Mapping[str, Tensor]) -> None:
    """Types and shapes of a projector: a table `(rows, D)`, perhaps `pe` `(M, D)`, layers `(D, D)` with biases `(D,)`.

    Raises:
        BestiaryError: the first tensor that is wrong, and what it should be.
    """
    sizes: dict[str, int] = {}
    checked_tensor(tensors, "embedding.weight", "rows D", sizes)
    if "pe" in tensors:
        checked_tensor(tensors, "pe", "M D", sizes)
    for name in sorted(name for name in tensors if name.startswith("projection.")):
        checked_tensor(tensors, name, "D D" if name.endswith(".weight") else "D", dict(sizes))
