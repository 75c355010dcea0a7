"""Recorded attention: for every finished sampling the maps of its parts, per step.

A record lives as long as the node's output is cached; every sampling starts a new recording, which is added only if the
sampling succeeds. Samplings are identified by their resulting latent, so that a cached sampler finds its own maps even
if another one ran after it.
Letters: S steps, B images, P parts, (h, w) grid.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ...concepts.errors import BestiaryError

if TYPE_CHECKING:
    from ...concepts.denoiser.part_attention_patch import PartMapSum
    from .attention_layers import LayerChoice

KEPT_SAMPLINGS = 4
SIGNATURE_EDGE = 8
SAME_LATENT = 0.01
"""Maximum difference, in standard deviations, between signatures of the same latent, including half-precision rounding."""


@dataclass(frozen=True)
class RecordedPart:
    """One channel of the maps."""

    label: str
    """Name in the prompt, such as "head:cardinal"."""
    part: str
    negative: bool = False
    """True for a part of the negative prompt."""

    @property
    def title(self) -> str:
        return f"{self.label} (negative)" if self.negative else self.label


@dataclass(frozen=True)
class RecordedSampling:
    """The maps of one successful sampling, on the CPU."""

    parts: tuple[RecordedPart, ...]
    maps: Tensor = field(repr=False)
    """`(S, B, P, h, w)` float32: probability of the part's tokens, mean over heads and layers."""
    held: Tensor = field(repr=False)
    """`(S, P)` bool: steps at which a prompt with the part was active."""
    latent_size: tuple[int, int]
    signature: Tensor = field(repr=False)
    """Signature of the resulting latent, see `signature_of`."""
    notice: str = ""
    """Reason why attention was not recorded completely, or empty."""

    def mean(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Mean over steps `first`..`last`, counted from 1 and both included.

        Returns:
            Maps `(B, P, h, w)`, and `(P,)` bool: parts that were active in these steps; maps of other parts are 0.

        Raises:
            BestiaryError: no such steps.
        """
        steps = self.maps.shape[0]
        if not 1 <= first <= min(last, steps):
            raise BestiaryError(
                f"Show Attention: no steps from first_step {first} to last_step {last}; "
                f"the sampling had steps 1 to {steps}"
            )
        # average each part only over the steps in which a prompt contained it (prompts may be scheduled)
        some = slice(first - 1, last)
        held = self.held[some].float()  # (S', P)
        weights = held / held.sum(0).clamp(min=1)  # (S', P)
        return torch.einsum("sbphw,sp->bphw", self.maps[some], weights), held.bool().any(0)


class Recording:
    """A running sampling: collects the maps of each step on the device of the model."""

    def __init__(self, parts: tuple[RecordedPart, ...], steps: int) -> None:
        """An empty recording for a sampling of `steps` steps."""
        self.parts = parts
        self._totals: list[Tensor | None] = [None] * steps
        self._counts = torch.zeros(steps, len(parts))  # (S, P)

    def add(self, step: int, maps: PartMapSum) -> None:
        """Add the maps of one model evaluation; higher-order samplers add several per step."""
        held = maps.held()  # (P,)
        mean = maps.mean()  # (B, P, h, w)
        total = self._totals[step]
        # with several GPUs the maps of a step may come from any of them
        self._totals[step] = mean if total is None else total + mean.to(total.device)
        self._counts[step] += held

    def finished(self, latent: Tensor, latent_size: tuple[int, int], notice: str = "") -> RecordedSampling:
        """The maps of all steps, 0 for skipped steps; `latent` is the result of the sampler."""
        # average several evaluations of one step, per part
        counts = self._counts.clamp(min=1).view(len(self._totals), 1, -1, 1, 1)
        known = next((total for total in self._totals if total is not None), None)
        # no part token was active at all: keep a blank grid, so that Show Attention can report it
        blank = torch.zeros(latent.shape[0], len(self.parts), 1, 1) if known is None else torch.zeros_like(known)
        known_or_blank = (blank if total is None else total for total in self._totals)
        stacked = torch.stack([total.to("cpu", torch.float32) for total in known_or_blank])  # (S, B, P, h, w)
        return RecordedSampling(
            self.parts, stacked / counts, self._counts > 0, latent_size, signature_of(latent), notice
        )


class AttentionRecord:
    """Value of a BESTIARY_ATTENTION socket: settings of the patch and its latest samplings."""

    def __init__(
        self,
        layers: LayerChoice = "auto",
        negative: bool = False,
        block: str | None = None,
        words: tuple[str, ...] = (),
    ) -> None:
        """Record parts, and plain words, at these layers.

        `negative` also records the negative prompt, `block` is the node that shows warnings.
        """
        self.block = block
        self.words = words
        self.layers: LayerChoice = layers
        self.negative = negative
        self.samplings: deque[RecordedSampling] = deque(maxlen=KEPT_SAMPLINGS)

    def __deepcopy__(self, memo: dict) -> AttentionRecord:
        """Returns itself: models are cloned by deep copies of their options, and all clones write to the same record."""
        return self

    def __repr__(self) -> str:
        return f"AttentionRecord({self.layers}, {len(self.samplings)} samplings)"

    def keep(self, sampling: RecordedSampling) -> None:
        """Add a successful sampling; it replaces an older one with the same result."""
        others = [known for known in self.samplings if _difference(known.signature, sampling.signature) > 0]
        self.samplings = deque([*others, sampling], maxlen=KEPT_SAMPLINGS)

    def find(self, latent: Tensor | None = None) -> RecordedSampling:
        """The sampling that produced `latent` `(B, C, h, w)`; for None, the latest.

        Raises:
            BestiaryError: nothing was sampled yet, or `latent` is not from a recorded sampling.
        """
        if not self.samplings:
            raise BestiaryError(
                "Show Attention: the record is empty; sample with the MODEL that comes out of Attention Maps, and connect "
                "the LATENT or the IMAGE of that sampler here, so that this node runs after it"
            )
        if latent is None:
            return self.samplings[-1]
        wanted = signature_of(latent)
        # reversed, so that ties go to the latest sampling
        found = min(reversed(self.samplings), key=lambda sampling: _difference(sampling.signature, wanted))
        if not _difference(found.signature, wanted) < SAME_LATENT:
            raise BestiaryError(
                f"Show Attention: this LATENT of shape {tuple(latent.shape)} is not one of the {len(self.samplings)} recorded samplings; "
                "connect the output of a sampler that uses the MODEL of Attention Maps, and sample again if others ran since"
            )
        return found


def signature_of(latent: Tensor) -> Tensor:
    """`(1, B * C, 8, 8)` means over tiles of a latent `(B, C, h, w)`, which identify it independently of its device."""
    plain = latent.detach().to("cpu", torch.float32)
    return functional.adaptive_avg_pool2d(plain.reshape(1, -1, *plain.shape[-2:]), SIGNATURE_EDGE)


def _difference(first: Tensor, second: Tensor) -> float:
    """Largest difference of two signatures `(1, B*C, 8, 8)` in standard deviations; infinite for other shapes."""
    if first.shape != second.shape:
        return float("inf")
    return float((first - second).abs().max() / first.std().clamp(min=1e-6))
