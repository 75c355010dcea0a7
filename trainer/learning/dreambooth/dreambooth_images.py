"""Pictures of one thing and of its class as endless batches: as many of the class as of the thing.

Everything drawn at random is a pure function of (seed, step, place in the step's batch), so a resumed run draws what an
uninterrupted one would. Letters: N pictures of the thing, K of its class, n pictures of the thing in a batch, R rows of a batch
(n, or 2 n with the class), C latent channels, h and w the latent crop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ....concepts.denoiser.denoiser import Process, PromptLayout
from ..denoiser.low_picture import GUIDE, LEVEL, SAMPLING_LEVEL, guides, level_noise
from ..pictures.latent_cache import LatentCache
from .dreambooth_objective import CLASS, EMPTY, INSTANCE, DreamBoothBatch

_ROWS, _ORDER, _LOW = 1, 2, 3
"""Streams of random numbers: what a row is made of, the order of pictures, and the noise of low pictures."""


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


class DreamBoothImages:
    """The pictures of a thing, and those of its class where there are any."""

    def __init__(
        self,
        names: Sequence[str],
        instances: int,
        cache: LatentCache,
        plan: DreamBoothPlan,
        masks: np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Batches of a cache `(N + K, V, 2, C, H, W)`.

        Args:
            names: of the N pictures of the thing, then of the K pictures of the class.
            instances: N.
            cache: their moments, in this order.
            plan: how batches are drawn.
            masks: `(N, H, W)` 0..1, what is learned of the thing; None is everything.
        """
        self.names, self._instances, self._cache, self._masks = tuple(names), instances, cache, masks
        self.plan, self._device = plan, torch.device(device)
        self._order = lru_cache(maxsize=4)(self._shuffled)

    @property
    def step_size(self) -> int:
        """Pictures of the thing per optimiser step over all processes."""
        return self.plan.step_size

    def draw(self, step: int, micro_step: int) -> DreamBoothBatch:
        """The batch of an optimiser step and micro-step: the same whenever it is asked for."""
        plan = self.plan
        first = (step * plan.accumulation + micro_step) * plan.processes + plan.rank
        slots = range(first * plan.batch_size, (first + 1) * plan.batch_size)
        kinds = [0, 1] if len(self.names) > self._instances else [0]
        places = [(kind, slot) for kind in kinds for slot in slots]
        drawn = [self._row(slot, kind) for kind, slot in places]
        rows, views, tops, lefts, texts, shares, noise = zip(*drawn, strict=True)
        moments = self._cache.read(rows, views, tops, lefts, plan.latent_size)  # (R, 2, C, h, w)
        guide, levels = self._guides(moments, places)
        batch = DreamBoothBatch(
            names=tuple(self.names[row] for row in rows),
            moments=moments,
            noise=torch.from_numpy(np.stack(noise)),
            times=plan.process.times_of_shares(np.array(shares)),
            texts=texts,
            prompts=plan.prompts,
            of_class=torch.tensor([row >= self._instances for row in rows]),
            masks=self._cut_masks(rows, views, tops, lefts),
            sizes=self._sizes(tops, lefts),
            guide=guide,
            levels=levels,
        )
        return batch if self._device.type == "cpu" else batch.to(self._device)

    def low_pictures(self, rows: Sequence[int], seeds: Sequence[int]) -> dict[str, Tensor]:
        """For previews: the middle of pictures `rows` as a model that enlarges sees them, extras of a conditioning; none elsewhere."""
        alphas, size = self.plan.level_alphas, self.plan.latent_size
        if alphas is None:
            return {}
        corner = [(self._cache.moments.shape[-1] - size) // 2] * len(rows)
        pictures = self._cache.read(rows, [0] * len(rows), corner, corner, size)[:, 0].float()  # (n, 3, h, w)
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

    def _row(self, slot: int, kind: int) -> tuple[int, int, int, int, int, float, np.ndarray]:
        """Picture, view, top, left, sentence, share of the times and noise `(2, C, h, w)` of a slot; kind 1 is the class."""
        rng = np.random.default_rng((self.plan.seed, _ROWS, kind, slot))
        count = len(self.names) - self._instances if kind else self._instances
        epoch, place = divmod(slot, count)
        row = int(self._order(kind, count, epoch)[place]) + (self._instances if kind else 0)
        _, views, _, channels, cached, _ = self._cache.moments.shape
        room, size = cached - self.plan.latent_size + 1, self.plan.latent_size
        view, top, left = (int(rng.integers(many)) for many in (views, room, room))
        share = float(rng.random())
        text = CLASS if kind else EMPTY if rng.random() < self.plan.dropout else INSTANCE
        return row, view, top, left, text, share, rng.standard_normal((2, channels, size, size), dtype=np.float32)

    def _shuffled(self, kind: int, count: int, epoch: int) -> np.ndarray:
        """Order of the pictures `(count,)` of a kind in an epoch."""
        return np.random.default_rng((self.plan.seed, _ORDER, kind, epoch)).permutation(count)

    def _cut_masks(
        self, rows: Sequence[int], views: Sequence[int], tops: Sequence[int], lefts: Sequence[int]
    ) -> Tensor | None:
        """Masks `(R, 1, h, w)` of crops; all of a picture of the class counts."""
        if self._masks is None:
            return None
        size, cut = self.plan.latent_size, []
        # cut as the latents are: mirrored first, then cropped
        for row, view, top, left in zip(rows, views, tops, lefts, strict=True):
            if row >= self._instances:
                cut.append(np.ones((size, size), np.float32))
                continue
            whole = self._masks[row][:, ::-1] if view else self._masks[row]  # (H, W)
            cut.append(np.ascontiguousarray(whole[top : top + size, left : left + size]))
        return torch.from_numpy(np.stack(cut)).unsqueeze(1)

    def _sizes(self, tops: Sequence[int], lefts: Sequence[int]) -> Tensor:
        """Pixels `(R, 6)` float: cached height and width, crop top and left, training height and width."""
        cached, size = self._cache.moments.shape[-1], self.plan.latent_size
        cells = [(cached, cached, top, left, size, size) for top, left in zip(tops, lefts, strict=True)]
        return torch.tensor(cells, dtype=torch.float32) * self.plan.latent_factor
