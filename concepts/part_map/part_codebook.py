"""PartCodebook: finds the parts of a picture and the kind of every part.

Letters: B pictures, (h, w) patch grid, D channels of the source, E of its details, d channels of the codebook's own
spaces, M parts, K_m kinds of part m.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BestiaryError
from ..features.patch_features import PatchGrid, SourceSpec
from ..files.concept_file import CODEBOOK_KIND, read_concept_file, write_concept_file
from ..name_search import NameIndex, same_names, shown_name, typed_number
from .foreground import CentroidForeground, Foreground, ForegroundSettings, foreground_from_file
from .kmeans import assign
from .looks_foreground import LooksForeground
from .looks_parts import LooksParts
from .part_file_schemas import CodebookHeader, checked_codebook
from .part_map import ABSENT, PartMaps
from .part_model import PartModel, part_model_from_file

_FEWEST_PATCHES = 1
_LONGEST_COMPARED = 200
"""Maximum characters of a typed name that are compared with the existing names."""


@dataclass(frozen=True)
class FeatureSpace:
    """The affine map from a source's channels to the codebook's."""

    mean: Tensor
    """`(D,)`."""
    projection: Tensor
    """`(D, d)`."""

    def __call__(self, features: Tensor) -> Tensor:
        """`(..., D)` -> `(..., d)`."""
        return (features.float() - self.mean) @ self.projection


@dataclass(frozen=True)
class PartCodebook:
    """Three levels found without labels: foreground, parts, and kinds of every part."""

    feature_spec: SourceSpec
    """Specification of the feature source that it was fitted on."""
    width: int
    """Channels d of part means and of kind centroids."""
    grid: tuple[int, int]
    """Patch grid of the pictures it was fitted on."""
    part_names: tuple[str, ...]
    """M names, including that of the background."""
    background: int
    """Index of the background, in our own fits the last part."""
    foreground: Foreground | LooksForeground
    parts: PartModel
    fine: tuple[Tensor, ...] = ()
    """Per part `(K_m, d)` centroids of its kinds; empty before kinds are fitted."""
    kind_centers: Tensor | None = None
    """`(M, d)`, subtracted from part means before comparing with `fine`; None compares them as they are."""
    kind_spaces: Tensor | None = None
    """`(M, d, d)`, applied to the centred part means before comparing with `fine`; None compares it as it is."""
    kind_names: tuple[dict[int, str], ...] = ()
    """Per part the names given to kinds."""
    space: FeatureSpace | None = None
    """None: the source's own channels."""
    detail_space: FeatureSpace | None = None
    """Map of the source's details, `(E,)` to `(d,)`, used for foreground and kinds; None: the features are used for these, too."""
    statistics: dict[str, float] = field(default_factory=dict)
    """Measured while fitting: foreground_margin, inertia, ..."""

    @property
    def num_parts(self) -> int:
        """M, the background included."""
        return len(self.part_names)

    @property
    def num_kinds(self) -> tuple[int, ...]:
        """Kinds per part."""
        return tuple(len(centroids) for centroids in self.fine)

    def embed(self, grid: PatchGrid) -> Tensor:
        """Features in the codebook's own space `(B, h, w, d)`.

        Raises:
            BestiaryError: the grid's channels are not those the codebook was fitted on.
        """
        expected = self.width if self.space is None else len(self.space.mean)
        if grid.features.shape[-1] != expected:
            raise BestiaryError(
                f"the patch features have {grid.features.shape[-1]} channels, but this codebook was fitted on {expected} "
                f"(source {self.feature_spec.get('name')!r}): use this feature source"
            )
        return grid.features.float() if self.space is None else self.space(grid.features)

    def label(self, grid: PatchGrid, marked: Tensor | None = None) -> Tensor:
        """Part labels `(B, h, w)` uint8; every picture is treated by itself.

        Args:
            marked: `(B, h, w)` 0..1, the foreground where it is known, NaN where it is not.
        """
        features = self.embed(grid)  # (B, h, w, d)
        foreground = self.foreground_probability(grid)  # (B, h, w)
        if marked is not None:
            foreground = torch.where(marked.isnan(), foreground, marked.to(foreground))
        labels = self.parts.labels(features, foreground, self.background).to(torch.uint8)
        return labels if marked is None else _within_marks(labels, marked, self.background)

    def foreground_probability(self, grid: PatchGrid) -> Tensor:
        """Foreground probability of every patch, `(B, h, w)` 0..1."""
        if isinstance(self.foreground, LooksForeground):
            return self.foreground.probability(self.embed_details(grid))
        return self.foreground.probability(self.embed(grid), grid.saliency)

    def confidence(self, grid: PatchGrid, labels: Tensor) -> Tensor:
        """Confidence `(B, h, w)` 0..1 of the labels `(B, h, w)` from `label`.

        It is that of foreground or background, inside the foreground multiplied by that of the part for `LooksParts`.
        """
        foreground = self.foreground_probability(grid)
        inside = labels != self.background
        if isinstance(self.parts, LooksParts):
            shares = self.parts.shares(self.embed(grid), foreground)  # (B, h, w, C)
            own = self.parts.owner == labels.long().unsqueeze(-1)
            return torch.where(inside, foreground * (shares * own).sum(dim=-1), 1 - foreground)
        return torch.where(inside, foreground, 1 - foreground)

    def embed_details(self, grid: PatchGrid) -> Tensor:
        """Inputs of foreground and kinds in the codebook's own space `(B, h, w, d)`: details, or features for sources without.

        Raises:
            BestiaryError: the grid's channels are not those the codebook was fitted on.
        """
        if self.detail_space is None:
            return self.embed(grid)
        found = 0 if grid.detail is None else grid.detail.shape[-1]
        if grid.detail is None or found != len(self.detail_space.mean):
            raise BestiaryError(
                f"the patch details have {found} channels, but this codebook was fitted on {len(self.detail_space.mean)} "
                f"(source {self.feature_spec.get('name')!r}): use this feature source"
            )
        return self.detail_space(grid.detail)

    def part_means(self, grid: PatchGrid, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean feature of every part, in the codebook's own space.

        Args:
            labels: `(B, h, w)` as `label` gives them.

        Returns:
            means `(B, M, d)` float, zero where a part is absent, and patch counts `(B, M)` long.
        """
        features = self.embed_details(grid)
        areas = F.one_hot(labels.long(), self.num_parts).flatten(1, 2).float()  # (B, h * w, M)
        if isinstance(self.foreground, CentroidForeground):  # PartCraft takes the complement of the foreground here
            outside = self.foreground_probability(grid) <= 0.5
            areas[..., self.background] = outside.flatten(1).float()
        # one product sums the features under every part: (B, M, h * w) @ (B, h * w, d)
        counts = areas.sum(dim=1)  # (B, M)
        means = areas.transpose(1, 2) @ features.flatten(1, 2) / counts.clamp_min(1).unsqueeze(-1)
        return means, counts.long()

    def kind_of(self, part_means: Tensor, counts: Tensor) -> Tensor:
        """Kind codes `(B, M)` long of part means `(B, M, d)` and counts `(B, M)`; ABSENT where a part is not shown.

        Raises:
            BestiaryError: the codebook has no kinds yet.
        """
        if not self.fine:
            raise BestiaryError("this codebook has parts but no kinds yet: finish the discovery first")
        # only the pictures that show a part are asked for its kind; the others stay absent
        codes = torch.full(counts.shape, ABSENT, dtype=torch.long)
        for part, centroids in enumerate(self.fine):
            shown = counts[:, part] >= _FEWEST_PATCHES
            if len(centroids) and bool(shown.any()):
                codes[shown, part] = assign(self.as_compared(part_means[shown, part].float(), part), centroids)[0]
        return codes

    def segment(self, grid: PatchGrid) -> PartMaps:
        """Labels and kinds of every picture of a grid, each by itself."""
        labels = self.label(grid)
        return PartMaps(labels, self.kind_of(*self.part_means(grid, labels)))

    def kind_similarity(self, part: int, first: int, second: int) -> float:
        """Cosine between two kinds of a part, -1..1 (the CoSim of arXiv 2407.04604)."""
        pair = self.fine[part][[first, second]].float()  # (2, d)
        return float(F.cosine_similarity(pair[0], pair[1], dim=0))

    def find_part(self, text: str) -> int:
        """Index of a part by name or number.

        Raises:
            BestiaryError: no such part; the message lists those that exist.
        """
        # a name first: a part may be called "2"
        found = same_names(text, self.part_names)
        if found:
            return found[0]
        number = typed_number(text)
        if number is not None and number in range(self.num_parts):
            return number
        names = [name.lower() for name in self.part_names]
        near = difflib.get_close_matches(text.strip().lower()[:_LONGEST_COMPARED], names, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise BestiaryError(f"unknown part {shown_name(text)}{hint}: parts are {', '.join(self.part_names)}")

    def find_kind(self, part: int, text: str) -> int:
        """Index of a part's kind by name or number.

        Raises:
            BestiaryError: no such kind; the message lists the valid ones.
        """
        names = self.kind_names[part] if self.kind_names else {}
        found = NameIndex((name, kind) for kind, name in names.items()).find(text)
        if found:
            return found[0]
        # a number counts from 0, as the codes do
        kinds = len(self.fine[part]) if self.fine else 0
        number = typed_number(text)
        if number is not None and number in range(kinds):
            return number
        valid = f"0 to {kinds - 1}" if kinds else "none"
        named = f" or {', '.join(names.values())}" if names else ""
        raise BestiaryError(
            f"unknown kind {shown_name(text)} of part {self.part_names[part]!r}: kinds are {valid}{named}"
        )

    def as_compared(self, means: Tensor, part: int) -> Tensor:
        """Means `(n, d)` of a part as they are compared with its kinds: less the part's center and in the space of its
        kinds, where there are such."""
        around = means if self.kind_centers is None else means - self.kind_centers[part]
        return around if self.kind_spaces is None else around @ self.kind_spaces[part]

    def save(self, path: Path | str) -> None:
        """Write the codebook whole or not at all, as one safetensors file; tensors that half precision holds take half."""
        # prefixes keep the levels apart in one file
        tensors = {f"foreground.{name}": tensor for name, tensor in self.foreground.tensors().items()}
        tensors |= {f"parts.{name}": tensor for name, tensor in self.parts.tensors().items()}
        tensors |= {f"kinds.{part}": centroids for part, centroids in enumerate(self.fine)}
        if self.kind_centers is not None:
            tensors["kind_centers"] = self.kind_centers
        if self.kind_spaces is not None:
            tensors["kind_spaces"] = self.kind_spaces
        if self.space is not None:
            tensors |= {"space.mean": self.space.mean, "space.projection": self.space.projection}
        if self.detail_space is not None:
            tensors |= {"detail.mean": self.detail_space.mean, "detail.projection": self.detail_space.projection}
        compact = {name: _compact(tensor) for name, tensor in tensors.items()}
        write_concept_file(Path(path), compact, self._header())

    def _header(self) -> dict[str, object]:
        # JSON has no integer keys, so kinds are numbered as text
        return {
            "kind": CODEBOOK_KIND,
            "feature_spec": self.feature_spec,
            "grid": list(self.grid),
            "part_names": list(self.part_names),
            "background": self.background,
            "kind_names": [{str(kind): name for kind, name in names.items()} for names in self.kind_names],
            "foreground": self.foreground.settings(),
            "parts": self.parts.settings(),
            "width": self.width,
            "statistics": self.statistics,
        }

    @classmethod
    def load(cls, path: Path | str) -> PartCodebook:
        """Read a codebook.

        Raises:
            BestiaryError: the file is missing, broken, or holds something else.
        """
        file = read_concept_file(Path(path), CODEBOOK_KIND)
        try:
            header = checked_codebook(file)
        except BestiaryError as fault:
            raise BestiaryError(f"{path} is not a complete part codebook: {fault}; discover the parts again") from fault
        return _from_file(header, file.tensors)

    def with_names(self, part_names: tuple[str, ...], kind_names: tuple[dict[int, str], ...]) -> PartCodebook:
        """The same codebook under other names."""
        return replace(self, part_names=part_names, kind_names=kind_names)


def _within_marks(labels: Tensor, marked: Tensor, background: int) -> Tensor:
    """Labels `(B, h, w)` that cover exactly the marks `(B, h, w)`, since part models follow the edges of the picture instead.

    Patches outside become background; patches inside without a part get that of the nearest patch with one.
    """
    labels = labels.masked_fill(marked < 0.5, background)
    for picture, marks in zip(labels, marked, strict=True):  # views: filled in place
        known, empty = picture != background, (picture == background) & (marks >= 0.5)
        if bool(known.any()) and bool(empty.any()):
            places = known.nonzero()  # (patches, 2)
            nearest = torch.cdist(empty.nonzero().float(), places.float()).argmin(dim=1)
            picture[empty] = picture[places[nearest, 0], places[nearest, 1]]
    return labels


def _compact(tensor: Tensor) -> Tensor:
    """A tensor of any shape in half precision where that changes no value, else in single precision."""
    half = tensor.half()
    return half if torch.equal(half.float(), tensor.float()) else tensor.float()


def _from_file(header: CodebookHeader, stored: Mapping[str, Tensor]) -> PartCodebook:
    """The codebook of a checked file's header and tensors, of any shape."""
    tensors = {name: tensor.float() for name, tensor in stored.items()}
    # which levels a file holds shows in the names of its tensors
    space, detail_space = (
        FeatureSpace(tensors[f"{name}.mean"], tensors[f"{name}.projection"]) if f"{name}.mean" in tensors else None
        for name in ("space", "detail")
    )
    # kinds.10 comes after kinds.9, not after kinds.1
    kinds = sorted((int(name[6:]), name) for name in tensors if name.startswith("kinds."))
    height, width = header["grid"]
    return PartCodebook(
        feature_spec=header["feature_spec"],
        width=header["width"],
        grid=(height, width),
        part_names=tuple(header["part_names"]),
        background=header["background"],
        foreground=_foreground_from_file(_under("foreground.", tensors), header["foreground"]),
        parts=part_model_from_file(_under("parts.", tensors), header["parts"]),
        fine=tuple(tensors[name] for _, name in kinds),
        kind_centers=tensors.get("kind_centers"),
        kind_spaces=tensors.get("kind_spaces"),
        kind_names=tuple({int(kind): name for kind, name in names.items()} for names in header["kind_names"]),
        space=space,
        detail_space=detail_space,
        statistics=header["statistics"],
    )


def _foreground_from_file(tensors: dict[str, Tensor], settings: ForegroundSettings) -> Foreground | LooksForeground:
    """The foreground model, of any of the three forms, of tensors as `tensors()` gave them."""
    if settings.get("form") != "looks":
        return foreground_from_file(tensors, settings)
    return LooksForeground(**tensors, margin=settings.get("margin", 0.0), flipped=settings.get("flipped", False))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of any shape whose name begins with `prefix`, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
