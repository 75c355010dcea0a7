"""Finds parts and their kinds in patch features without labels: foreground, then parts, then kinds of every part.

If a source has details in addition to features (`PatchGrid.detail`), its features can be compared between pictures:
foreground and parts are then found by appearance (`looks_foreground`, `looks_parts`), in any pose. Features of other sources
cannot be compared that well: parts are then positions relative to the object (`part_model`).

After PartCraft (arXiv 2407.04604, kamwoh/partcraft @ dfe64e1), with its manual steps automated: the foreground is learned
instead of picked by eye, the background is never clustered with the parts but appended as the last one, absent parts
never enter a clustering, and the number of kinds is measured.

`discover_parts` does all of it in memory; folders of any size call `fit_parts` on a sample of pictures, then stream
`PartCodebook.label` and `.part_means` over all of them, then call `fit_kinds` on the means.
Letters: N pictures, (h, w) patch grid, D channels of the source, d channels of the codebook, M parts.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import BestiaryError
from ..features.patch_features import PatchGrid, SourceSpec
from .crossed_kinds import crossed_kinds, kind_directions
from .foreground import FOREGROUND_ROUNDS, LOW_MARGIN, fit_foreground, foreground_from_masks, refit_foreground
from .kind_count import choose_kind_count, stable_kind_count
from .kmeans import fit_kmeans
from .looks_foreground import LooksForeground, fit_looks_foreground, looks_foreground_from_masks
from .looks_parts import SecondLooks, choose_part_count, fit_looks_parts
from .part_codebook import FeatureSpace, PartCodebook
from .part_map import PartMaps
from .part_model import fit_learned_parts
from .sample_views import SampleViews

log = logging.getLogger(__name__)

DEFAULT_PARTS = 5
_SPACE_WIDTH = 64
_WHITENING = 0.5
_REFIT_SEED = 100
MOST_STAGES = FOREGROUND_ROUNDS + 5
"""Stages of `discover_parts` without masks; fewer with masks."""
_FEWEST_FOREGROUND = 16  # patches per part


def discover_parts(
    grids: PatchGrid,
    *,
    spec: SourceSpec | None = None,
    num_parts: int | None = None,
    num_kinds: int | Sequence[int] | None = None,
    seed: int = 0,
    flip_foreground: bool = False,
    foreground_masks: Tensor | None = None,
    views: SampleViews | None = None,
    on_stage: Callable[[], None] = lambda: None,
) -> tuple[PartCodebook, PartMaps]:
    """Find parts and kinds of N pictures whose features fit in memory.

    Args:
        grids: features `(N, h, w, D)`.
        spec: the feature source's own description, kept in the codebook.
        num_parts: foreground parts; None measures their number for sources with details and is 5 for others.
        num_kinds: kinds per part (one number, or one for every part and the background); None measures.
        flip_foreground: use the complement of the foreground that was found or given by masks.
        foreground_masks: `(N, h, w)` 0..1, the foreground where it is known; None finds it.
        views: second views of some pictures, for sources with details; None learns from the grids alone.
        on_stage: called before every stage, up to `MOST_STAGES` times; an exception from it ends the discovery.

    Raises:
        BestiaryError: no foreground, or fewer pictures than kinds.
    """
    # foreground and parts from all pictures
    codebook = fit_parts(
        grids,
        spec=spec,
        num_parts=num_parts,
        seed=seed,
        flip_foreground=flip_foreground,
        foreground_masks=foreground_masks,
        views=views,
        on_stage=on_stage,
    )
    on_stage()
    # in memory the sample is the whole set: label it, then cluster the means of its parts
    labels = codebook.label(grids, _marks_that_bind(grids, foreground_masks, flip_foreground))
    means, counts = codebook.part_means(grids, labels)  # (N, M, d), (N, M)
    on_stage()
    codebook = fit_kinds(codebook, means, counts, num_kinds=num_kinds, seed=seed)
    return codebook, PartMaps(labels, codebook.kind_of(means, counts))


def _marks_that_bind(grids: PatchGrid, masks: Tensor | None, flip: bool) -> Tensor | None:
    """Marks `(N, h, w)` that labels must match; for sources without details the model learned from the marks is used instead."""
    if masks is None or grids.detail is None:
        return None
    return 1 - masks if flip else masks


def fit_parts(
    sample: PatchGrid,
    *,
    spec: SourceSpec | None = None,
    num_parts: int | None = None,
    seed: int = 0,
    flip_foreground: bool = False,
    foreground_masks: Tensor | None = None,
    views: SampleViews | None = None,
    on_stage: Callable[[], None] = lambda: None,
) -> PartCodebook:
    """Foreground and parts from a sample of pictures; the codebook that comes back has no kinds yet.

    Arguments as for `discover_parts`.

    Raises:
        BestiaryError: no foreground was found, or it is too small for that many parts.
    """
    if sample.detail is not None:
        return _fit_by_looks(
            sample, sample.detail, spec, num_parts, seed, flip_foreground, foreground_masks, views, on_stage
        )
    # everything after this works in the codebook's own space
    space = fit_space(sample.features)
    features = space(sample.features)  # (N, h, w, d)
    # foreground: found from the pictures alone, or learned from the marks that were given
    if foreground_masks is None:
        foreground = fit_foreground(features, sample.saliency, seed=seed, flip=flip_foreground, on_round=on_stage)
        probability = foreground.probability(features, sample.saliency)  # (N, h, w)
    else:
        probability = 1 - foreground_masks if flip_foreground else foreground_masks  # (N, h, w)
        foreground = foreground_from_masks(features, sample.saliency, probability, seed=seed)
    wanted = num_parts or DEFAULT_PARTS
    _check_foreground(probability > 0.5, wanted)
    # parts: their places are learned from the foreground of all pictures
    on_stage()
    parts = fit_learned_parts(features, probability, wanted, seed=seed)
    labels = parts.labels(features, probability, wanted)  # (N, h, w)
    if bool((labels < wanted).any()):  # the parts' edges are better than the classifier's: it learns from them once
        on_stage()
        foreground = refit_foreground(foreground, features, sample.saliency, labels < wanted, seed=seed + _REFIT_SEED)
        if foreground_masks is None:
            probability = foreground.probability(features, sample.saliency)
        on_stage()
        parts = fit_learned_parts(features, probability, wanted, seed=seed)
        labels = parts.labels(features, probability, wanted)
    # what a report needs to say whether the discovery can be trusted
    share = float((labels < wanted).float().mean())
    return PartCodebook(
        feature_spec=dict(spec or {}),
        width=features.shape[-1],
        grid=(features.shape[1], features.shape[2]),
        part_names=(*propose_names(labels, wanted), "background"),
        background=wanted,
        foreground=foreground,
        parts=parts,
        space=space,
        statistics={"foreground_margin": foreground.margin, "foreground_share": share},
    )


def _fit_by_looks(
    sample: PatchGrid,
    detail: Tensor,
    spec: SourceSpec | None,
    num_parts: int | None,
    seed: int,
    flip: bool,
    masks: Tensor | None,
    views: SampleViews | None,
    on_stage: Callable[[], None],
) -> PartCodebook:
    """`fit_parts` for a source with details, independently of positions in the picture."""
    space, detail_space = fit_space(sample.features), fit_space(detail)
    features, looks = space(sample.features), detail_space(detail)  # (N, h, w, d) each
    # foreground from the details, which have sharper edges; marks are used unchanged
    on_stage()
    if masks is None:
        foreground = fit_looks_foreground(looks, sample.saliency, flip=flip)
        mask = foreground.probability(looks) > 0.5  # (N, h, w)
    else:
        marked = 1 - masks if flip else masks
        foreground, mask = looks_foreground_from_masks(looks, marked), marked > 0.5
    _warn_of_margin(foreground)
    _check_foreground(mask, num_parts or 1)
    # parts from the features, which can be compared between pictures
    on_stage()
    again = None
    if views is not None:
        seen = views.carried(mask)
        if masks is None and views.grid.detail is not None:
            seen = foreground.probability(detail_space(views.grid.detail)) > 0.5
        again = SecondLooks(views, space(views.grid.features), seen)
    statistics = {"foreground_margin": foreground.margin, "foreground_share": float(mask.float().mean())}
    if num_parts is None:
        num_parts, stability = choose_part_count(features, mask, seed=seed, again=again)
        statistics |= {f"stability_{number}": value for number, value in stability.items()}
        _check_foreground(mask, num_parts)
    on_stage()
    parts = fit_looks_parts(features, mask, num_parts, seed=seed, again=again)
    labels = parts.labels(features, mask.float(), num_parts)
    return PartCodebook(
        feature_spec=dict(spec or {}),
        width=detail_space.projection.shape[1],
        grid=(features.shape[1], features.shape[2]),
        part_names=(*propose_names(labels, num_parts), "background"),
        background=num_parts,
        foreground=foreground,
        parts=parts,
        space=space,
        detail_space=detail_space,
        statistics=statistics,
    )


def _warn_of_margin(foreground: LooksForeground) -> None:
    if foreground.margin < LOW_MARGIN:
        log.warning(
            "the foreground is doubtful: it covers the centre only %.2f more than the borders (at least %.2f expected); "
            "look at the part maps, and give masks or try --flip-foreground",
            foreground.margin,
            LOW_MARGIN,
        )


def _check_foreground(mask: Tensor, parts: int) -> None:
    """Raises BestiaryError where the foreground mask `(N, h, w)` is too small to hold that many parts."""
    if int(mask.sum()) < parts * _FEWEST_FOREGROUND:
        raise BestiaryError(
            f"no foreground found: {int(mask.sum())} of {mask.numel()} patches, too few for {parts} parts. "
            "Give more pictures with the object near their centre, or try --flip-foreground or another --source"
        )


def fit_space(features: Tensor, width: int = _SPACE_WIDTH) -> FeatureSpace:
    """Principal directions of features `(N, h, w, D)`, each divided by the square root of its deviation."""
    rows = features.flatten(0, 2).float()  # (N * h * w, D)
    # second moments of the centred rows (D, D), in double precision
    mean = rows.mean(dim=0)
    centered = rows - mean
    values, directions = torch.linalg.eigh((centered.T @ centered).double() / len(rows))
    kept = slice(max(0, rows.shape[1] - width), None)
    values, directions = values[kept].flip(0), directions[:, kept].flip(1)  # largest first
    # half-way to whitening: weak directions count for more, noise does not dominate
    scale = values.clamp_min(values[0] * 1e-9 + 1e-12) ** (-_WHITENING / 2)
    projection = directions * scale  # (D, d)
    length = (values * scale.square()).sum().sqrt()  # root of the mean squared length of projected rows
    return FeatureSpace(_half(mean), _half((projection / length).float()))


def fit_kinds(
    codebook: PartCodebook,
    part_means: Tensor,
    counts: Tensor,
    *,
    num_kinds: int | Sequence[int] | None = None,
    seed: int = 0,
) -> PartCodebook:
    """Cluster the means of every part into kinds, for sources with details all parts jointly (`crossed_kinds`).

    Args:
        part_means: `(N, M, d)`, as `PartCodebook.part_means` gives them.
        counts: `(N, M)` patches; pictures that do not show a part are left out of it.
        num_kinds: see `discover_parts`.

    Raises:
        BestiaryError: fewer pictures show a part than kinds are requested for it.
    """
    # one number for all parts, or one per part, None where it is to be measured
    wanted = [num_kinds] * codebook.num_parts if num_kinds is None or isinstance(num_kinds, int) else list(num_kinds)
    if len(wanted) != codebook.num_parts:
        raise BestiaryError(
            f"{len(wanted)} numbers of kinds were given for {codebook.num_parts} parts, including the background: give one per part"
        )
    if codebook.detail_space is not None:
        return _kinds_by_looks(codebook, part_means, counts, wanted, seed)
    centers, fine = torch.zeros(codebook.num_parts, codebook.width), []
    for part, number in enumerate(wanted):
        shown = part_means[counts[:, part] > 0, part].float()  # (n, d)
        _check_kinds(codebook, part, number, len(shown))
        if not len(shown):
            fine.append(torch.zeros(0, codebook.width))
            continue
        # kinds are directions around the mean of the part, which is common to all of them
        centers[part] = _half(shown.mean(dim=0))
        around = shown - centers[part]  # (n, d)
        number = number or choose_kind_count(around, seed=seed)
        fine.append(_half(fit_kmeans(around, number, seed=seed).centroids))
    return replace(codebook, fine=tuple(fine), kind_centers=centers, kind_names=tuple({} for _ in fine))


def _kinds_by_looks(
    codebook: PartCodebook, part_means: Tensor, counts: Tensor, wanted: Sequence[int | None], seed: int
) -> PartCodebook:
    """`fit_kinds` for sources with details, with the same arguments; `wanted` contains a number or None for every part."""
    numbers = []
    for part, number in enumerate(wanted):
        shown = part_means[counts[:, part] > 0, part].float()  # (n, d)
        _check_kinds(codebook, part, number, len(shown))
        numbers.append((number or stable_kind_count(shown, seed=seed)) if len(shown) else 0)
    codes = crossed_kinds(part_means, counts, numbers, seed=seed)  # (N, M)
    centers, spaces, fine = torch.zeros(codebook.num_parts, codebook.width), [], []
    for part, number in enumerate(numbers):
        if not number:
            spaces.append(torch.eye(codebook.width))
            fine.append(torch.zeros(0, codebook.width))
            continue
        shown = counts[:, part] > 0
        fitted = kind_directions(part_means[shown, part].float(), codes[shown, part], number)
        centers[part] = _half(fitted.center)
        spaces.append(_half(fitted.space))
        fine.append(_half(fitted.fine))
    return replace(
        codebook,
        fine=tuple(fine),
        kind_centers=centers,
        kind_spaces=torch.stack(spaces),
        kind_names=tuple({} for _ in fine),
    )


def _check_kinds(codebook: PartCodebook, part: int, number: int | None, shown: int) -> None:
    """Raises BestiaryError if more kinds are requested than pictures show the part."""
    if number is not None and number > shown:
        raise BestiaryError(
            f"{number} kinds of part {codebook.part_names[part]!r} were requested, but only {shown} pictures show it: "
            "give more pictures or request fewer kinds"
        )


def propose_names(labels: Tensor, num_parts: int) -> tuple[str, ...]:
    """A first name for every part of labels `(N, h, w)` by its height among the parts: top, middle, bottom, numbered if
    repeated."""
    h = labels.shape[1]
    rows = torch.arange(h, device=labels.device).view(1, h, 1).expand_as(labels).float()
    # heights count relative to the thing: its middle row, and its spread in rows
    inside = labels < num_parts
    middle, spread = rows[inside].mean(), rows[inside].std().clamp_min(0.5)
    names: list[str] = []
    for part in range(num_parts):
        height = (rows[labels == part].mean() - middle) / spread
        name = "top" if height < -0.4 else "bottom" if height > 0.4 else "middle"
        taken = sum(other.rstrip("0123456789") == name for other in names)
        names.append(name if not taken else f"{name}{taken + 1}")
    return tuple(names)


def _half(tensor: Tensor) -> Tensor:
    """Values of any shape rounded to half precision: a saved codebook gives the same labels as the one in memory."""
    return tensor.half().float()
