"""Pictures of one concept: found, checked, cached as latents, and drawn as batches that serve every stage equally often.

Everything drawn at random is a pure function of (seed, step, place in the step's batch), so a resumed run draws what an
uninterrupted one would. Letters: N pictures, B batch, S stages, C latent channels, h and w the latent crop.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....concepts.denoiser.denoiser import Process, PromptLayout
from ....concepts.errors import BestiaryError
from ....concepts.pictures.square_fit import fit_shape
from ....concepts.spectrum.stage_bounds import StageBounds
from ..pictures.companion_files import CompanionFolder, masks_among
from ..pictures.image_files import SUFFIXES, UnreadableImage, picture_size, read_image, scan_images
from ..pictures.latent_cache import LatentCache
from ..pictures.mask_files import coverage, coverage_text, mask_image, read_mask
from .spectrum_objective import SpectrumBatch

logger = logging.getLogger("bestiary")
_NAMED = 20
"""Files that are left out, one line each, before the rest is only counted."""


@dataclass(frozen=True)
class ConceptPictures:
    """The pictures of a concept that can be read."""

    folder: Path
    names: tuple[str, ...]
    """Relative to the folder."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(name, reason) of files that gave no picture."""

    @property
    def paths(self) -> list[Path]:
        """The picture files."""
        return [self.folder / name for name in self.names]


def find_pictures(source: Path, masks: Path | None = None, *, warn: bool = True) -> ConceptPictures:
    """One picture, or all readable pictures of a folder; every other file is named as left out, with the reason.

    Args:
        masks: folder of the pictures' masks, which are not pictures of the concept where they lie among them.
        warn: name what is left out; False where this is only a first look.

    Raises:
        BestiaryError: there is nothing at `source`, the one picture cannot be read, or no picture of the folder can.
    """
    source = Path(source)
    if source.is_file():
        if source.suffix.lower() not in SUFFIXES:
            raise BestiaryError(
                f"{source} is not a picture file by its name: give a picture ({', '.join(sorted(SUFFIXES))}) or a folder"
            )
        read_image(source)
        return ConceptPictures(source.parent, (source.name,))
    if not source.is_dir():
        raise BestiaryError(
            f"no picture and no folder {source}: give one picture, or a folder of pictures of one concept"
        )
    names, skipped = _readable(source, masks)
    if warn:
        _warn_of(skipped)
    if not names:
        reason = (
            f"files left out: {len(skipped)}, first {skipped[0][0]}: {skipped[0][1]}" if skipped else "it holds none"
        )
        raise BestiaryError(f"no picture to learn from in {source} ({reason}); one readable picture is enough")
    return ConceptPictures(source, tuple(names), tuple(skipped))


def _readable(source: Path, masks: Path | None) -> tuple[list[str], list[tuple[str, str]]]:
    """Pictures of a folder that can be read, and (name, reason) of all other files."""
    elsewhere = masks is not None and masks.resolve() != source.resolve()
    scan = scan_images(source, [masks] if masks is not None and elsewhere else [])
    of_others = masks_among(scan.names) if masks is not None and not elsewhere else set()
    names, skipped = [], [*scan.unreadable, *scan.others]
    # every picture is read once beforehand: a warning now instead of a stop while the cache is built
    for name in scan.names:
        if name in of_others:
            continue
        try:
            read_image(source / name)
        except UnreadableImage as fault:
            skipped.append((name, fault.reason))
        else:
            names.append(name)
    return names, sorted(skipped)


def _warn_of(skipped: Sequence[tuple[str, str]]) -> None:
    for name, reason in skipped[:_NAMED]:
        logger.warning("%s is left out: %s", name, reason)
    if len(skipped) > _NAMED:
        logger.warning("%d more files are left out", len(skipped) - _NAMED)


def read_masks(folder: Path | None, pictures: ConceptPictures, edge: int) -> np.ndarray | None:
    """Masks (N, edge, edge) float32 0..1 of all pictures, cut like them; None without a folder. See `masks_of_shapes`."""
    masks = masks_of_shapes(folder, pictures, [(edge, edge)] * len(pictures.names))
    return None if masks is None else np.stack(masks)


def masks_of_shapes(
    folder: Path | None, pictures: ConceptPictures, shapes: Sequence[tuple[int, int]]
) -> list[np.ndarray] | None:
    """A mask (h, w) float32 0..1 for every picture, of its shape on the latent grid and cut like it; None without a folder.

    Which file is whose says `companion_files`, how it is read `mask_files`. What the masks cover is logged.

    Raises:
        BestiaryError: a picture has no mask, one of another size, one that may be another's, or one that is all black.
    """
    if folder is None:
        return None
    found = CompanionFolder(folder, pictures.names, pictures_folder=pictures.folder)
    masks, shares = [], []
    for name, shape in zip(pictures.names, shapes, strict=True):
        path = found.of(name)
        if path is None:
            raise BestiaryError(
                f"no mask for {name} in {folder}: give every picture a mask ({found.names_for(name)}), or none"
            )
        mask = read_mask(path, picture_size(pictures.folder / name))  # (H, W)
        shares.append(coverage(mask))
        masks.append(cut_mask(mask_image(mask), shape, f"the mask {path}"))
    logger.info("%s", coverage_text(shares, pictures.names))
    # a single picture of a folder does not use the masks of the others
    left = found.unused() if len(pictures.names) > 1 else []
    if left:
        listed = ", ".join(left[:_NAMED]) + (f" and {len(left) - _NAMED} more" if len(left) > _NAMED else "")
        logger.warning("masks without a picture in %s: %s", folder, listed)
    return masks


def square_mask(picture: Image.Image, edge: int, called: str) -> np.ndarray:
    """A mask (edge, edge) float32 0..1 on the latent grid, cut as its picture is; see `cut_mask`."""
    return cut_mask(picture, (edge, edge), called)


def cut_mask(picture: Image.Image, shape: tuple[int, int], called: str) -> np.ndarray:
    """A mask of a shape (h, w), float32 0..1, on the latent grid, cut as its picture is.

    Raises:
        BestiaryError: it is all black; `called` names it in the message.
    """
    height, width = shape
    scale = max(1.0, 64 / min(shape))
    fitted = fit_shape(picture, round(height * scale), round(width * scale)).convert("L")
    mask = np.asarray(fitted.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255  # (h, w)
    if mask.max() < 0.5:
        raise BestiaryError(f"{called} is black all over: white is what is learned from")
    return mask


@dataclass(frozen=True)
class SpectrumPlan:
    """How batches are drawn."""

    batch_size: int
    """Pictures per micro-step."""
    accumulation: int
    """Micro-steps per optimiser step."""
    latent_size: int
    """Edge of a training crop in latent cells."""
    bounds: StageBounds
    process: Process
    """Which draws the times of a stage."""
    prompts: tuple[PromptLayout, ...]
    """Sentences to draw from, laid out with places for the vectors."""
    seed: int
    latent_factor: int = 8
    """Pixels of a latent cell's edge."""

    @property
    def step_size(self) -> int:
        """Pictures per optimiser step."""
        return self.batch_size * self.accumulation


class SpectrumImages:
    """The pictures of a concept as endless batches."""

    def __init__(
        self,
        names: Sequence[str],
        cache: LatentCache,
        plan: SpectrumPlan,
        masks: np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Names N, moments `(N, V, 2, C, H, W)` and masks `(N, H, W)` are in one order of pictures."""
        self.names, self._cache, self._masks = tuple(names), cache, masks
        self.plan, self._device = plan, torch.device(device)
        self._picture_order = lru_cache(maxsize=2)(self._shuffled_pictures)
        self._stage_order = lru_cache(maxsize=2)(self._shuffled_stages)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def step_size(self) -> int:
        """Pictures per optimiser step."""
        return self.plan.step_size

    def draw(self, step: int, micro_step: int) -> SpectrumBatch:
        """The batch of an optimiser step and micro-step: the same whenever it is asked for."""
        plan = self.plan
        # slots count on through all steps, so that pictures and stages take turns over the whole training
        first = step * plan.step_size + micro_step * plan.batch_size
        slots = range(first, first + plan.batch_size)
        generators = [np.random.default_rng((plan.seed, 1, slot)) for slot in slots]
        rows, views, tops, lefts = zip(*map(self._crop, slots, generators), strict=True)
        moments = self._cache.read(rows, views, tops, lefts, plan.latent_size)  # (B, 2, C, h, w)
        stages = tuple(self._stage(slot) for slot in slots)
        templates = tuple(int(rng.integers(len(plan.prompts))) for rng in generators)
        batch = SpectrumBatch(
            names=tuple(self.names[row] for row in rows),
            moments=moments,
            noise=torch.from_numpy(
                np.stack([rng.standard_normal(moments.shape[1:], dtype=np.float32) for rng in generators])
            ),
            times=torch.tensor(
                [self._time(s, rng) for s, rng in zip(stages, generators, strict=True)], dtype=torch.float32
            ),
            stages=stages,
            templates=templates,
            prompts=tuple(plan.prompts[number] for number in templates),
            masks=self._cut_masks(rows, views, tops, lefts),
            sizes=self._sizes(tops, lefts),
        )
        return batch if self._device.type == "cpu" else batch.to(self._device)

    def _shuffled_pictures(self, epoch: int) -> np.ndarray:
        """Order of the pictures `(N,)` in an epoch."""
        return np.random.default_rng((self.plan.seed, 2, epoch)).permutation(len(self.names))

    def _shuffled_stages(self, turn: int) -> np.ndarray:
        """Order of the stages `(S,)` in a turn."""
        return np.random.default_rng((self.plan.seed, 3, turn)).permutation(self.plan.bounds.stages)

    def _stage(self, slot: int) -> int:
        """Stages take turns: each is served once before any is served again."""
        turn, place = divmod(slot, self.plan.bounds.stages)
        return int(self._stage_order(turn)[place])

    def _time(self, stage: int, rng: np.random.Generator) -> float:
        # times of a stage alike, from just above its lower edge to its upper one
        edges = self.plan.bounds.times
        return self.plan.process.draw_between(edges[stage + 1], edges[stage], rng)

    def _crop(self, slot: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Picture, view, top and left of a slot."""
        epoch, place = divmod(slot, len(self.names))
        views, cached = self._cache.moments.shape[1], self._cache.moments.shape[-1]
        room = cached - self.plan.latent_size + 1
        view, top, left = (int(rng.integers(count)) for count in (views, room, room))
        return int(self._picture_order(epoch)[place]), view, top, left

    def _cut_masks(
        self, rows: Sequence[int], views: Sequence[int], tops: Sequence[int], lefts: Sequence[int]
    ) -> Tensor | None:
        """Masks `(B, 1, h, w)` of crops."""
        if self._masks is None:
            return None
        size, cut = self.plan.latent_size, []
        # cut as the latents are: mirrored first, then cropped
        for row, view, top, left in zip(rows, views, tops, lefts, strict=True):
            whole = self._masks[row][:, ::-1] if view else self._masks[row]  # (H, W)
            cut.append(np.ascontiguousarray(whole[top : top + size, left : left + size]))
        return torch.from_numpy(np.stack(cut)).unsqueeze(1)

    def _sizes(self, tops: Sequence[int], lefts: Sequence[int]) -> Tensor:
        """Pixels `(B, 6)` float: cached height and width, crop top and left, training height and width."""
        cached, size = self._cache.moments.shape[-1], self.plan.latent_size
        cells = [(cached, cached, top, left, size, size) for top, left in zip(tops, lefts, strict=True)]
        return torch.tensor(cells, dtype=torch.float32) * self.plan.latent_factor
