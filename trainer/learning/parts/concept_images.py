"""Training batches from cached moments and part labels: no autoencoder and no feature extractor is needed.

Everything drawn at random is a pure function of (seed, step, place in the step's batch): a resumed run draws what an
uninterrupted one would, and two processes draw what one with a batch twice as large would. Letters: N pictures, B batch,
M parts, C latent channels, h and w the latent crop, g the attention grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ....concepts.denoiser.denoiser import Process, PromptLayout, PromptPiece, placed, reordered
from ....concepts.part_prompt.part_captions import CaptionStyle, PartCaption, build_part_caption
from ..pictures.latent_cache import LatentCache
from .part_objective import PartBatch
from .training_kinds import TrainingKinds

Tokenize = Callable[[Sequence[PromptPiece]], PromptLayout]


@dataclass(frozen=True)
class BatchPlan:
    """How batches are drawn."""

    batch_size: int
    """Pictures per process and micro-step."""
    accumulation: int
    """Micro-steps per optimiser step."""
    latent_size: int
    """Edge of a training crop in latent cells."""
    grid: int
    """Edge of the attention grid."""
    process: Process
    """Which gives times for shares drawn at random."""
    timesteps: Literal["uniform", "stratified"]
    unconditional: float
    """Share of empty captions."""
    seed: int
    rank: int = 0
    processes: int = 1
    latent_factor: int = 8
    """Pixels of a latent cell's edge."""

    @property
    def step_size(self) -> int:
        """Pictures per optimiser step over all processes."""
        return self.batch_size * self.accumulation * self.processes


@dataclass(frozen=True)
class _Crop:
    row: int
    view: int
    top: int
    left: int


class ConceptImages:
    """Pictures with their parts, as endless batches."""

    def __init__(
        self,
        names: Sequence[str],
        cache: LatentCache,
        kinds: TrainingKinds,
        tokenize: Tokenize,
        style: CaptionStyle,
        plan: BatchPlan,
        device: torch.device | str = "cpu",
    ) -> None:
        """Names `N`, moments `(N, V, 2, C, H, W)`, labels `(N, H, W)` and codes `(N, M)` are in one order of pictures.

        `tokenize` lays out a caption for the text encoders; every distinct caption is laid out once.
        """
        self.names, self._cache, self._kinds = list(names), cache, kinds
        self._style, self.plan, self._device = style, plan, torch.device(device)
        self._tokenize = tokenize
        self._known_prompts: dict[tuple[PromptPiece, ...], PromptLayout] = {}
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def step_size(self) -> int:
        """Pictures per optimiser step over all processes."""
        return self.plan.step_size

    def draw(self, step: int, micro_step: int) -> PartBatch:
        """Batch of this process for an optimiser step and micro-step."""
        plan = self.plan
        # places in the step's batch: micro-steps one after the other, and the processes side by side in each
        first = (micro_step * plan.processes + plan.rank) * plan.batch_size
        slots = range(first, first + plan.batch_size)
        generators = [np.random.default_rng((plan.seed, 1, step, slot)) for slot in slots]
        crops = [self._crop(step, slot, rng) for slot, rng in zip(slots, generators, strict=True)]
        # crops first: a part that lies outside the crop must not be named in its caption
        labels = np.stack([self._crop_labels(crop) for crop in crops])  # (B, g, g)
        codes = self._crop_codes(crops, labels)  # (B, M)
        captions = [self._caption(row, rng) for row, rng in zip(codes, generators, strict=True)]
        times = self._times(step, slots, generators)
        return self._batch(crops, labels, captions, generators, times)

    def fixed(self, rows: Sequence[int], time: float) -> PartBatch:
        """Whole, unmirrored pictures at one time in (0, 1] with full captions in a fixed order; the same every time."""
        plan = self.plan
        # a stream of their own, which no training step reads from
        generators = [np.random.default_rng((plan.seed, 4, row)) for row in rows]
        # the middle of the cached square, as far as it is larger than a training crop
        room = self._cache.moments.shape[-1] - plan.latent_size
        crops = [_Crop(row, 0, room // 2, room // 2) for row in rows]
        labels = np.stack([self._crop_labels(crop) for crop in crops])  # (B, g, g)
        codes = self._crop_codes(crops, labels)  # (B, M)
        style = replace(self._style, shuffle=False, drop_probability=0.0)
        captions = [
            self._captioned(row, build_part_caption(row, rng, style))
            for row, rng in zip(codes, generators, strict=True)
        ]
        return self._batch(crops, labels, captions, generators, torch.full((len(crops),), time))

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Order of the pictures `(N,)` in an epoch."""
        return np.random.default_rng((self.plan.seed, 2, epoch)).permutation(len(self.names))

    def _batch(
        self,
        crops: Sequence[_Crop],
        labels: np.ndarray,
        captions: Sequence[tuple[np.ndarray, PromptLayout]],
        generators: Sequence[np.random.Generator],
        times: Tensor,
    ) -> PartBatch:
        """Crops, labels `(B, g, g)`, captions and times `(B,)` as one batch of moments `(B, 2, C, h, w)`."""
        rows, views, tops, lefts = zip(*((c.row, c.view, c.top, c.left) for c in crops), strict=True)
        moments = self._cache.read(rows, views, tops, lefts, self.plan.latent_size)  # (B, 2, C, h, w)
        codes = np.stack([kept for kept, _ in captions])  # (B, M)
        # masks compare labels with part numbers: (B, 1, g, g) with (M, 1, 1)
        batch = PartBatch(
            names=tuple(self.names[row] for row in rows),
            moments=moments,
            noise=self._noise(moments.shape, generators),
            times=times,
            codes=torch.from_numpy(codes),
            prompts=tuple(prompt for _, prompt in captions),
            masks=torch.from_numpy(labels[:, None] == np.arange(codes.shape[1])[:, None, None]),  # (B, M, g, g)
            sizes=self._sizes(crops),
        )
        return batch if self._device.type == "cpu" else batch.to(self._device)

    def _crop(self, step: int, slot: int, rng: np.random.Generator) -> _Crop:
        # pictures are dealt out over the whole step, so that micro-steps and processes share one order
        epoch, place = divmod(step * self.plan.step_size + slot, len(self.names))
        views, cached = self._cache.moments.shape[1], self._cache.moments.shape[-1]
        room = cached - self.plan.latent_size + 1
        view, top, left = (int(rng.integers(count)) for count in (views, room, room))
        return _Crop(int(self._order(epoch)[place]), view, top, left)

    def _crop_labels(self, crop: _Crop) -> np.ndarray:
        """Part labels (g, g) of a crop: the label under the centre of every attention cell."""
        whole = self._kinds.labels[crop.row]  # (H, W)
        whole = whole[:, ::-1] if crop.view else whole
        cached, size, grid = self._cache.moments.shape[-1], self.plan.latent_size, self.plan.grid
        centres = (np.arange(grid) + 0.5) / grid * size  # latent cells from the crop's corner
        rows = ((centres + crop.top) / cached * whole.shape[0]).astype(int)
        columns = ((centres + crop.left) / cached * whole.shape[1]).astype(int)
        return whole[np.ix_(rows, columns)]  # (g, g)

    def _crop_codes(self, crops: Sequence[_Crop], labels: np.ndarray) -> np.ndarray:
        """Codes (B, M) of the parts that a crop still shows."""
        codes = self._kinds.codes[[crop.row for crop in crops]]  # (B, M)
        shown = (labels.reshape(len(crops), 1, -1) == np.arange(codes.shape[1])[:, None]).any(-1)  # (B, M)
        return np.where(shown, codes, -1)

    def _caption(self, codes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, PromptLayout]:
        """Caption of the parts with a code: the codes `(M,)` it keeps and its tokens, places in the order of parts."""
        # codes of a batch are (B, M); this is one row
        if rng.random() < self.plan.unconditional or not (codes >= 0).any():
            # the empty caption: no part is named, so no code is kept and no vector has a place
            empty = self._laid_out((PromptPiece(""),))
            return np.full_like(codes, -1), reordered(empty, (), len(codes))
        return self._captioned(codes, build_part_caption(codes, rng, self._style))

    def _captioned(self, codes: np.ndarray, caption: PartCaption) -> tuple[np.ndarray, PromptLayout]:
        # words (C, L) are the same for all captions of one sentence: only places and vectors differ
        laid_out = reordered(self._laid_out(caption.pieces), caption.parts, len(codes))
        kept = np.where(placed(laid_out).numpy(), codes, -1)  # (M,), parts cut off the end of the text are left out too
        return kept, laid_out

    def _laid_out(self, pieces: tuple[PromptPiece, ...]) -> PromptLayout:
        if pieces not in self._known_prompts:
            self._known_prompts[pieces] = self._tokenize(pieces)
        return self._known_prompts[pieces]

    def _sizes(self, crops: Sequence[_Crop]) -> Tensor:
        """Pixels `(B, 6)` float: cached height and width, crop top and left, training height and width."""
        cached, size = self._cache.moments.shape[-1], self.plan.latent_size
        cells = [(cached, cached, crop.top, crop.left, size, size) for crop in crops]
        return torch.tensor(cells, dtype=torch.float32) * self.plan.latent_factor

    def _noise(self, shape: torch.Size, generators: Sequence[np.random.Generator]) -> Tensor:
        """Standard normal numbers of every picture's own stream, in the given shape."""
        drawn = [rng.standard_normal(shape[1:], dtype=np.float32) for rng in generators]
        return torch.from_numpy(np.stack(drawn))

    def _times(self, step: int, slots: Sequence[int], generators: Sequence[np.random.Generator]) -> Tensor:
        """Times (B,) float32; stratified ones fall into distinct equal intervals over the whole optimiser step."""
        plan = self.plan
        shares = np.array([rng.random() for rng in generators])
        if plan.timesteps == "stratified":
            order = np.random.default_rng((plan.seed, 3, step)).permutation(plan.step_size)
            # slot i of the step falls into the i-th of step_size equal intervals, shuffled
            shares = (order[list(slots)] + shares) / plan.step_size
        return plan.process.times_of_shares(shares)


def quarter_time(process: Process) -> float:
    """A time with little noise, a quarter of the way up, at which attention and previews are looked at."""
    return process.time_of(process.num_timesteps // 4)
