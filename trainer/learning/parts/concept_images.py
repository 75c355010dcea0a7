"""Training batches from cached moments and part labels: no autoencoder and no feature extractor is needed.

Everything drawn at random is a pure function of (seed, step, place in the step's batch): a resumed run draws what an
uninterrupted one would, and of pictures of one shape two processes draw what one with a batch twice as large would. A picture of
several things has a slot for each: its columns are slot * M + part. Letters: N pictures, n of one shape, B batch, M parts, S slots,
C latent channels, H and W the cached latents, h and w the latent crop, g and k the attention grid's height and width.
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
from ..pictures.aspect_buckets import BucketOrder
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
    scene_share: float = 0.0
    """Share of batches that hold scenes, where there are any."""

    @property
    def step_size(self) -> int:
        """Pictures per optimiser step over all processes."""
        return self.batch_size * self.accumulation * self.processes


@dataclass(frozen=True)
class PartBucket:
    """Pictures of one shape, all of them scenes or none."""

    rows: tuple[int, ...]
    """Their numbers among all pictures."""
    cache: LatentCache
    """Their moments `(n, V, 2, C, H, W)`."""
    kinds: TrainingKinds
    """Labels `(n, y, x)` over the whole cached picture, and codes `(n, S * M)`."""
    crop: tuple[int, int]
    """Height and width (h, w) of a training crop in latent cells."""
    grid: tuple[int, int]
    """Height and width (g, k) of the attention grid."""
    of_scenes: bool = False


@dataclass(frozen=True)
class _Crop:
    place: int
    view: int
    top: int
    left: int


class ConceptImages:
    """Pictures with their parts, as endless batches."""

    def __init__(
        self,
        names: Sequence[str],
        cached: LatentCache | Sequence[PartBucket],
        kinds: TrainingKinds,
        tokenize: Tokenize,
        style: CaptionStyle,
        plan: BatchPlan,
        device: torch.device | str = "cpu",
    ) -> None:
        """Batches of cached pictures.

        Args:
            names: of all N pictures.
            cached: moments `(N, V, 2, C, H, W)` of squares in this order, or buckets that hold every picture once.
            kinds: labels `(N, y, x)` and codes `(N, M)` of the squares.
            tokenize: lays out a caption for the text encoders; every distinct caption is laid out once.
        """
        if isinstance(cached, LatentCache):
            edges = (plan.latent_size, plan.latent_size), (plan.grid, plan.grid)
            cached = [PartBucket(tuple(range(len(names))), cached, kinds, *edges)]
        self.names, self.buckets = list(names), tuple(cached)
        self._style, self.plan, self._device = style, plan, torch.device(device)
        self._tokenize = tokenize
        self._known_prompts: dict[tuple[PromptPiece, ...], PromptLayout] = {}
        self._order = lru_cache(maxsize=16)(self._shuffled)
        # buckets of single pictures and of scenes are dealt out by themselves, each picture of a group equally often
        self._groups = [
            [number for number, bucket in enumerate(self.buckets) if bucket.of_scenes is scenes]
            for scenes in (False, True)
        ]
        self._orders = [
            BucketOrder([len(self.buckets[number].rows) for number in group], (plan.seed, 5 + which))
            for which, group in enumerate(self._groups)
        ]

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
        number, nth = self._bucket_of((step * plan.step_size + first) // plan.batch_size)
        bucket = self.buckets[number]
        crops = [self._crop(number, nth * plan.batch_size + place, rng) for place, rng in enumerate(generators)]
        # crops first: a part that lies outside the crop must not be named in its caption
        labels = np.stack([_crop_labels(bucket, crop) for crop in crops])  # (B, g, k)
        codes = _crop_codes(bucket, crops, labels)  # (B, S * M)
        captions = [self._caption(bucket, row, rng) for row, rng in zip(codes, generators, strict=True)]
        times = self._times(step, slots, generators)
        return self._batch(bucket, crops, labels, captions, generators, times)

    def fixed(self, rows: Sequence[int], time: float) -> PartBatch:
        """Whole, unmirrored pictures of one shape at one time in (0, 1] with full captions in a fixed order; the same every time."""
        plan, bucket = self.plan, self.bucket_of(rows[0])
        # a stream of their own, which no training step reads from
        generators = [np.random.default_rng((plan.seed, 4, row)) for row in rows]
        # the middle of the cached picture, as far as it is larger than a training crop
        top, left = (
            (cached - crop) // 2 for cached, crop in zip(bucket.cache.moments.shape[-2:], bucket.crop, strict=True)
        )
        crops = [_Crop(bucket.rows.index(row), 0, top, left) for row in rows]
        labels = np.stack([_crop_labels(bucket, crop) for crop in crops])  # (B, g, k)
        codes = _crop_codes(bucket, crops, labels)  # (B, S * M)
        style = replace(self._style, shuffle=False, drop_probability=0.0)
        captions = [
            self._captioned(row, build_part_caption(row, rng, style, slots=bucket.kinds.slots))
            for row, rng in zip(codes, generators, strict=True)
        ]
        return self._batch(bucket, crops, labels, captions, generators, torch.full((len(crops),), time))

    def bucket_of(self, row: int) -> PartBucket:
        """The bucket that holds a picture."""
        return next(bucket for bucket in self.buckets if row in bucket.rows)

    def step_of_largest(self) -> tuple[int, int]:
        """Step and micro-step of a batch of the most pixels that this process draws."""
        sizes = [bucket.crop[0] * bucket.crop[1] for bucket in self.buckets]
        for step in range(len(self.names) * 2):
            for micro_step in range(self.plan.accumulation):
                first = (step * self.plan.accumulation + micro_step) * self.plan.processes + self.plan.rank
                if sizes[self._bucket_of(first)[0]] == max(sizes):
                    return step, micro_step
        return 0, 0

    def _bucket_of(self, batch: int) -> tuple[int, int]:
        """The bucket of a batch over all processes, and which of that bucket's batches it is."""
        share = self.plan.scene_share if self._groups[1] else 0.0
        # shares of a batch are spread evenly: a batch is of scenes where their number passes a whole one
        before, after = (int(count * share + 1e-9) for count in (batch, batch + 1))
        which = int(after > before)
        number, nth = self._orders[which].of(before if which else batch - before)
        return self._groups[which][number], nth

    def _shuffled(self, count: int, epoch: int, *bucket: int) -> np.ndarray:
        """Order of the pictures `(count,)` of a bucket in an epoch."""
        return np.random.default_rng((self.plan.seed, 2, epoch, *bucket)).permutation(count)

    def _batch(
        self,
        bucket: PartBucket,
        crops: Sequence[_Crop],
        labels: np.ndarray,
        captions: Sequence[tuple[np.ndarray, PromptLayout]],
        generators: Sequence[np.random.Generator],
        times: Tensor,
    ) -> PartBatch:
        """Crops, labels `(B, g, k)`, captions and times `(B,)` as one batch of moments `(B, 2, C, h, w)`."""
        places, views, tops, lefts = zip(*((c.place, c.view, c.top, c.left) for c in crops), strict=True)
        moments = bucket.cache.read(places, views, tops, lefts, bucket.crop)  # (B, 2, C, h, w)
        codes = np.stack([kept for kept, _ in captions])  # (B, S * M)
        # masks compare labels with columns: (B, 1, g, k) with (S * M, 1, 1)
        batch = PartBatch(
            names=tuple(self.names[bucket.rows[place]] for place in places),
            moments=moments,
            noise=self._noise(moments.shape, generators),
            times=times,
            codes=torch.from_numpy(codes),
            prompts=tuple(prompt for _, prompt in captions),
            masks=torch.from_numpy(labels[:, None] == np.arange(codes.shape[1])[:, None, None]),  # (B, S * M, g, k)
            sizes=self._sizes(bucket, crops),
        )
        return batch if self._device.type == "cpu" else batch.to(self._device)

    def _crop(self, number: int, slot: int, rng: np.random.Generator) -> _Crop:
        # pictures are dealt out over the whole step, so that micro-steps and processes share one order
        bucket = self.buckets[number]
        epoch, place = divmod(slot, len(bucket.rows))
        _, views, _, _, high, wide = bucket.cache.moments.shape
        height, width = bucket.crop
        view, top, left = (int(rng.integers(count)) for count in (views, high - height + 1, wide - width + 1))
        # the first bucket reads the stream that it reads alone
        stream = (number,) if number else ()
        return _Crop(int(self._order(len(bucket.rows), epoch, *stream)[place]), view, top, left)

    def _caption(
        self, bucket: PartBucket, codes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, PromptLayout]:
        """Caption of the parts with a code: the codes `(S * M,)` it keeps and its tokens, places in the order of columns."""
        # codes of a batch are (B, S * M); this is one row
        if rng.random() < self.plan.unconditional or not (codes >= 0).any():
            # the empty caption: no part is named, so no code is kept and no vector has a place
            empty = self._laid_out((PromptPiece(""),))
            return np.full_like(codes, -1), reordered(empty, (), len(codes))
        return self._captioned(codes, build_part_caption(codes, rng, self._style, slots=bucket.kinds.slots))

    def _captioned(self, codes: np.ndarray, caption: PartCaption) -> tuple[np.ndarray, PromptLayout]:
        # words (C, L) are the same for all captions of one sentence: only places and vectors differ
        laid_out = reordered(self._laid_out(caption.pieces), caption.parts, len(codes))
        kept = np.where(
            placed(laid_out).numpy(), codes, -1
        )  # (S * M,), parts cut off the end of the text are left out too
        return kept, laid_out

    def _laid_out(self, pieces: tuple[PromptPiece, ...]) -> PromptLayout:
        if pieces not in self._known_prompts:
            self._known_prompts[pieces] = self._tokenize(pieces)
        return self._known_prompts[pieces]

    def _sizes(self, bucket: PartBucket, crops: Sequence[_Crop]) -> Tensor:
        """Pixels `(B, 6)` float: cached height and width, crop top and left, training height and width."""
        cells = [(*bucket.cache.moments.shape[-2:], crop.top, crop.left, *bucket.crop) for crop in crops]
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


def _crop_labels(bucket: PartBucket, crop: _Crop) -> np.ndarray:
    """Columns (g, k) of a crop: the label under the centre of every attention cell."""
    whole = bucket.kinds.labels[crop.place]  # (y, x)
    whole = whole[:, ::-1] if crop.view else whole
    corner, cached = (crop.top, crop.left), bucket.cache.moments.shape[-2:]
    rows, columns = (
        # latent cells from the crop's corner, then places in the labels
        (((np.arange(grid) + 0.5) / grid * size + start) / edge * length).astype(int)
        for grid, size, start, edge, length in zip(bucket.grid, bucket.crop, corner, cached, whole.shape, strict=True)
    )
    return whole[np.ix_(rows, columns)]  # (g, k)


def _crop_codes(bucket: PartBucket, crops: Sequence[_Crop], labels: np.ndarray) -> np.ndarray:
    """Codes `(B, S*M)` of the parts that a crop still shows."""
    codes = bucket.kinds.codes[[crop.place for crop in crops]]  # (B, S * M)
    shown = (labels.reshape(len(crops), 1, -1) == np.arange(codes.shape[1])[:, None]).any(-1)  # (B, S * M)
    return np.where(shown, codes, -1)


def quarter_time(process: Process) -> float:
    """A time with little noise, a quarter of the way up, at which attention and previews are looked at."""
    return process.time_of(process.num_timesteps // 4)
