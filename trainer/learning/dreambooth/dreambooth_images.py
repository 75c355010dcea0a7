"""Pictures of one thing and of its class as endless batches: as many of the class as of the thing, all of one shape.

Everything drawn at random is a pure function of (seed, step, place in the step's batch), so a resumed run draws what an
uninterrupted one would. Letters: N pictures of the thing, K of its class, n pictures of the thing in a batch, R rows of a batch
(n, or 2 n with the class), C latent channels, H and W the cached latents, h and w the latent crop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ....concepts.denoiser.denoiser import Process, PromptLayout
from ..denoiser.low_picture import GUIDE, LEVEL, SAMPLING_LEVEL, guides, level_noise
from ..pictures.aspect_buckets import BucketOrder
from ..pictures.latent_cache import LatentCache
from .dreambooth_objective import CLASS, EMPTY, INSTANCE, DreamBoothBatch

_ROWS, _ORDER, _LOW, _BUCKETS = 1, 2, 3, 4
"""Streams of random numbers: what a row is made of, the order of pictures, the noise of low pictures, and the order of buckets."""


@dataclass(frozen=True)
class DreamBoothPlan:
    """How batches are drawn."""

    batch_size: int
    """n, pictures of the thing per micro-step."""
    accumulation: int
    """Micro-steps per optimiser step."""
    latent_size: int
    """Edge of a training crop in latent cells."""
    process: Process
    """Which says the time of a share."""
    prompts: tuple[PromptLayout, ...]
    """The sentences of the thing, of the class, and the empty one."""
    dropout: float
    """Share of the thing's pictures whose sentence is empty."""
    seed: int
    rank: int = 0
    processes: int = 1
    latent_factor: int = 8
    """Pixels of a latent cell's edge."""

    level_alphas: Tensor | None = None
    """`(L,)`, for a model that enlarges low pictures: how much of one is left at every noise level; None elsewhere."""

    @property
    def step_size(self) -> int:
        """Pictures of the thing per optimiser step over all processes."""
        return self.batch_size * self.accumulation * self.processes


@dataclass(frozen=True)
class PictureBucket:
    """Pictures of the thing of one shape, and all of the class cut to it."""

    rows: tuple[int, ...]
    """Numbers of its pictures of the thing."""
    cache: LatentCache
    """Their moments, then those of the class: `(len(rows) + K, V, 2, C, H, W)`."""
    crop: tuple[int, int]
    """Height and width (h, w) of a training crop in latent cells."""
    masks: np.ndarray | None = None
    """`(len(rows), H, W)` 0..1, what is learned of the thing; None is everything."""


@dataclass(frozen=True)
class _Row:
    """What one row of a batch is made of."""

    place: int
    """Number in the bucket's cache."""
    view: int
    top: int
    left: int
    text: int
    share: float
    """Of the times."""
    noise: np.ndarray
    """`(2, C, h, w)`."""


class DreamBoothImages:
    """The pictures of a thing, and those of its class where there are any."""

    def __init__(
        self,
        names: Sequence[str],
        instances: int,
        cached: LatentCache | Sequence[PictureBucket],
        plan: DreamBoothPlan,
        masks: np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Batches of cached pictures.

        Args:
            names: of the N pictures of the thing, then of the K pictures of the class.
            instances: N.
            cached: the moments `(N + K, V, 2, C, H, W)` of squares in this order, or buckets that hold every picture of the thing once.
            plan: how batches are drawn.
            masks: of squares, `(N, H, W)` 0..1, what is learned of the thing; None is everything.
        """
        self.names, self._instances = tuple(names), instances
        if isinstance(cached, LatentCache):
            crop = (plan.latent_size, plan.latent_size)
            cached = [PictureBucket(tuple(range(instances)), cached, crop, masks)]
        self.buckets = tuple(cached)
        self.plan, self._device = plan, torch.device(device)
        self._order = lru_cache(maxsize=16)(self._shuffled)
        self._bucket_order = BucketOrder([len(bucket.rows) for bucket in self.buckets], (plan.seed, _BUCKETS))

    @property
    def step_size(self) -> int:
        """Pictures of the thing per optimiser step over all processes."""
        return self.plan.step_size

    def draw(self, step: int, micro_step: int) -> DreamBoothBatch:
        """The batch of an optimiser step and micro-step: the same whenever it is asked for."""
        plan = self.plan
        batch = (step * plan.accumulation + micro_step) * plan.processes + plan.rank
        which, first = self._bucket_order.of(batch)
        bucket = self.buckets[which]
        places = [(0, slot) for slot in range(first * plan.batch_size, (first + 1) * plan.batch_size)]
        if len(self.names) > self._instances:
            places += [(1, slot) for slot in range(batch * plan.batch_size, (batch + 1) * plan.batch_size)]
        rows = [self._row(which, kind, slot) for kind, slot in places]
        where = ([row.place for row in rows], [row.view for row in rows])
        corners = ([row.top for row in rows], [row.left for row in rows])
        moments = bucket.cache.read(*where, *corners, bucket.crop)  # (R, 2, C, h, w)
        guide, levels = self._guides(moments, places)
        own = len(bucket.rows)
        numbers = [bucket.rows[row.place] if row.place < own else self._instances + row.place - own for row in rows]
        drawn = DreamBoothBatch(
            names=tuple(self.names[number] for number in numbers),
            moments=moments,
            noise=torch.from_numpy(np.stack([row.noise for row in rows])),
            times=plan.process.times_of_shares(np.array([row.share for row in rows])),
            texts=tuple(row.text for row in rows),
            prompts=plan.prompts,
            of_class=torch.tensor([row.place >= own for row in rows]),
            masks=_cut_masks(bucket, rows),
            sizes=self._sizes(bucket, rows),
            guide=guide,
            levels=levels,
        )
        return drawn if self._device.type == "cpu" else drawn.to(self._device)

    def low_pictures(self, rows: Sequence[int], seeds: Sequence[int]) -> dict[str, Tensor]:
        """For previews: the middle of pictures `rows` as a model that enlarges sees them, extras of a conditioning; none elsewhere."""
        alphas, size, cache = self.plan.level_alphas, self.plan.latent_size, self.buckets[0].cache
        if alphas is None:
            return {}
        corner = [(cache.moments.shape[-1] - size) // 2] * len(rows)
        pictures = cache.read(rows, [0] * len(rows), corner, corner, size)[:, 0].float()  # (n, 3, h, w)
        levels = torch.full((len(rows),), SAMPLING_LEVEL)
        return {GUIDE: guides(pictures, alphas, levels, level_noise(seeds, pictures.shape[1:])), LEVEL: levels}

    def _guides(self, moments: Tensor, places: Sequence[tuple[int, int]]) -> tuple[Tensor | None, Tensor | None]:
        """Low pictures `(R, 3, h, w)` of moments `(R, 2, 3, h, w)`, and the levels `(R,)` they are noised to."""
        alphas = self.plan.level_alphas
        if alphas is None:
            return None, None
        streams = [np.random.default_rng((self.plan.seed, _LOW, kind, slot)) for kind, slot in places]
        levels = torch.tensor([int(rng.integers(len(alphas))) for rng in streams])
        drawn = [rng.standard_normal(moments.shape[2:], dtype=np.float32) for rng in streams]
        return guides(moments[:, 0].float(), alphas, levels, torch.from_numpy(np.stack(drawn))), levels

    def _row(self, number: int, kind: int, slot: int) -> _Row:
        """What stands in a slot of a bucket; kind 1 is the class, whose slots all buckets share."""
        bucket, plan = self.buckets[number], self.plan
        stream = (number,) if number and not kind else ()
        rng = np.random.default_rng((plan.seed, _ROWS, kind, slot, *stream))
        own = len(bucket.rows)
        count = len(self.names) - self._instances if kind else own
        epoch, place = divmod(slot, count)
        row = int(self._order(kind, count, epoch, *stream)[place]) + (own if kind else 0)
        _, views, _, channels, high, wide = bucket.cache.moments.shape
        height, width = bucket.crop
        view, top, left = (int(rng.integers(many)) for many in (views, high - height + 1, wide - width + 1))
        share = float(rng.random())
        text = CLASS if kind else EMPTY if rng.random() < plan.dropout else INSTANCE
        noise = rng.standard_normal((2, channels, height, width), dtype=np.float32)
        return _Row(row, view, top, left, text, share, noise)

    def _shuffled(self, kind: int, count: int, epoch: int, *bucket: int) -> np.ndarray:
        """Order of the pictures `(count,)` of a kind in an epoch."""
        return np.random.default_rng((self.plan.seed, _ORDER, kind, epoch, *bucket)).permutation(count)

    def _sizes(self, bucket: PictureBucket, rows: Sequence[_Row]) -> Tensor:
        """Pixels `(R, 6)` float: cached height and width, crop top and left, training height and width."""
        cells = [(*bucket.cache.moments.shape[-2:], row.top, row.left, *bucket.crop) for row in rows]
        return torch.tensor(cells, dtype=torch.float32) * self.plan.latent_factor


def _cut_masks(bucket: PictureBucket, rows: Sequence[_Row]) -> Tensor | None:
    """Masks `(R, 1, h, w)` of crops; all of a picture of the class counts."""
    if bucket.masks is None:
        return None
    (height, width), cut = bucket.crop, []
    # cut as the latents are: mirrored first, then cropped
    for row in rows:
        if row.place >= len(bucket.rows):
            cut.append(np.ones((height, width), np.float32))
            continue
        whole = bucket.masks[row.place][:, ::-1] if row.view else bucket.masks[row.place]  # (H, W)
        cut.append(np.ascontiguousarray(whole[row.top : row.top + height, row.left : row.left + width]))
    return torch.from_numpy(np.stack(cut)).unsqueeze(1)
