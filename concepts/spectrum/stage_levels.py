"""Stages of flow models as noise levels, and attribute presets by equal noise.

A flow model sees the share of noise sigma, not time, and the shift between both belongs to the MODEL: nodes change it, and a file is learned
with one. So the edges of stages are kept as sigmas at the shift they were learned with; another shift moves the percents at which a sampler
crosses them, never the levels. Stages count in time before the shift, as `StageBounds` does.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..denoiser.denoiser import Process
from ..denoiser.process import FlowProcess
from ..errors import BestiaryError
from .attribute_presets import DEFAULT_PRESETS, PRESET_CLOCKS, Presets
from .stage_bounds import StageBounds

EQUAL_NOISE_PRESETS: Presets = {
    "layout": ((1.0, 0.8925),),
    "content": ((0.8357, 0.0),),
    "material": ((0.6173, 0.0),),
    "style": ((0.4535, 0.0),),
}
"""The presets of `DEFAULT_PRESETS` as ranges (start, end) of sigma, at whose log-SNR Stable Diffusion 1.5 begins and ends them."""


@dataclass(frozen=True)
class StageLevels:
    """The edges of S stages as noise levels."""

    sigmas: tuple[float, ...]
    """S + 1 shares of noise, falling from 1 to 0; stage s covers sigmas[s + 1] < sigma <= sigmas[s]."""

    def __post_init__(self) -> None:
        """Raises BestiaryError unless the levels fall from 1 to 0."""
        sigmas = self.sigmas
        if len(sigmas) < 2 or sigmas[0] != 1 or sigmas[-1] != 0 or any(not a > b for a, b in pairwise(sigmas)):
            shown = ", ".join(f"{sigma:.4g}" for sigma in sigmas[:12]) + (", ..." if len(sigmas) > 12 else "")
            raise BestiaryError(
                f"noise levels of stages ({shown}) must decrease strictly from 1 to 0: two stages overlap, one is empty, or they do not span "
                "the whole schedule"
            )

    @classmethod
    def learned(cls, bounds: StageBounds, process: FlowProcess) -> "StageLevels":
        """The levels at which stages of time, learned with this shift, begin and end.

        Inner edges lie between two timesteps, as in `StageBounds.percents`, where no sampler has a step.
        """
        times = [1 - percent for percent in bounds.percents("continuous")[1:-1]]
        return cls((1.0, *_sigmas(process, times), 0.0))

    @property
    def stages(self) -> int:
        """S."""
        return len(self.sigmas) - 1

    def percents(self, process: FlowProcess) -> tuple[float, ...]:
        """The edges as S + 1 shares of the sampling by a MODEL of this shift, 0 to 1, for `start_percent` and `end_percent`.

        Never round them: the one that ends a stage is the one that starts the next.
        """
        return (0.0, *(1 - process.time_of_sigma(sigma) for sigma in self.sigmas[1:-1]), 1.0)

    def stage_of(self, sigmas: Tensor) -> Tensor:
        """Stage of each noise level in (0, 1], long, of any shape like `sigmas`."""
        rising = torch.tensor(self.sigmas[1:-1][::-1], dtype=torch.float64)  # (S - 1,)
        return self.stages - 1 - torch.bucketize(sigmas.detach().double().cpu(), rising)


def presets_for(process: FlowProcess, clock: str = "time") -> Presets:
    """The presets of a flow model as shares of its sampling: by equal time, or by equal noise.

    Raises:
        BestiaryError: the clock has another name.
    """
    if clock == "time":
        return DEFAULT_PRESETS
    if clock != "noise":
        raise BestiaryError(f"unknown presets {clock!r}: choose {' or '.join(PRESET_CLOCKS)}")
    return {
        name: tuple((_share(process, start), _share(process, end)) for start, end in ranges)
        for name, ranges in EQUAL_NOISE_PRESETS.items()
    }


def equal_noise(presets: Presets, source: Process) -> Presets:
    """Presets of a model as ranges of sigma with the same log-SNR: how `EQUAL_NOISE_PRESETS` is made.

    Args:
        presets: shares of the sampling of `source`.
        source: the model whose noise they count in.

    Returns:
        Attribute -> ranges (start, end) of sigma; the ends of the sampling are 1 and 0.
    """
    flow = FlowProcess()

    def level(share: float) -> float:
        if not 0 < share < 1:
            return 1.0 - share
        # without a shift, time and sigma are the same
        return flow.time_of_log_snr(source.log_snr(1 - share))

    return {name: tuple((level(start), level(end)) for start, end in ranges) for name, ranges in presets.items()}


def _sigmas(process: FlowProcess, times: list[float]) -> list[float]:
    return process.sigma(torch.tensor(times, dtype=torch.float64)).tolist()


def _share(process: FlowProcess, sigma: float) -> float:
    """Share of the sampling, 0 to 1, at which a MODEL reaches a level."""
    return 1.0 if math.isclose(sigma, 0) else 1 - process.time_of_sigma(sigma)
