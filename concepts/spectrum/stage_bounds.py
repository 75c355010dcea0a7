"""Denoising stages of timesteps, and the boundaries between stages in the units of other programs.

Stages are in generation order: stage 0 runs first, at the highest noise. A stage covers whole timesteps, from its lower
edge to just below its upper edge. ProSpect (arXiv 2305.16225; zyxElsa/ProSpect @ 31314f1, ddpm.py) counts the other way
round, k(t) = int(t S / T), so stage = S - 1 - k. Boundaries are 0.51 timesteps below the edge, a value that no
sampler or scheduler of ComfyUI 0.3.64 uses, so every step belongs to exactly one stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ..errors import BestiaryError

TIMESTEPS = 1000
"""Timesteps of the supported models; other models give their own number."""
BELOW_EDGE = 0.5 + 0.01
"""Timesteps between the lowest timestep of a stage and the boundary below it."""
DEFAULT_STAGES = 10
MOST_STAGES = 250

Clock = Literal["discrete", "continuous"]
"""Mapping from percent to noise: over discrete timesteps (SD), or over continuous time (flow, EDM)."""


@dataclass(frozen=True)
class StageBounds:
    """Edges of consecutive stages."""

    edges: tuple[int, ...]
    """S + 1 timesteps, falling from the number of timesteps T to 0; stage s covers edges[s + 1] <= t < edges[s]."""

    def __post_init__(self) -> None:
        """Raises BestiaryError unless the edges fall from T to 0."""
        edges = self.edges
        if not 2 <= len(edges) <= MOST_STAGES + 1 or edges[-1] != 0 or any(a <= b for a, b in pairwise(edges)):
            shown = ", ".join(map(str, edges[:12])) + (", ..." if len(edges) > 12 else "")
            raise BestiaryError(
                f"stage edges ({shown}) must decrease strictly from the number of timesteps to 0, "
                f"for 1 to {MOST_STAGES} stages: two stages overlap, one is empty, or the last does not end at 0"
            )

    @classmethod
    def equal(cls, stages: int, num_timesteps: int = TIMESTEPS) -> "StageBounds":
        """`stages` stages of equal width, as ProSpect has them: edge of stage index j at ceil(T j / S).

        Raises:
            BestiaryError: the number of stages is 0, too large, or larger than that of timesteps.
        """
        if not 1 <= stages <= min(MOST_STAGES, num_timesteps):
            raise BestiaryError(f"{stages} stages: choose 1 to {min(MOST_STAGES, num_timesteps)}")
        return cls(tuple(-(-num_timesteps * k // stages) for k in range(stages, -1, -1)))

    @classmethod
    def from_fractions(cls, fractions: Sequence[float], num_timesteps: int = TIMESTEPS) -> "StageBounds":
        """Stages between the given fractions of the schedule, increasing, each above 0 and below 1; none gives one stage.

        Raises:
            BestiaryError: a share is out of range or two are closer than one timestep.
        """
        strange = [share for share in fractions if not 0 < share < 1]
        if strange:
            raise BestiaryError(f"stage boundary {strange[0]} is out of range: enter fractions above 0 and below 1")
        # 1 - 0.7 is slightly more than 0.3 in floating point: without the tolerance, ceil would move the edge by one timestep
        inner = [-int(-((1 - share) * num_timesteps - 1e-6) // 1) for share in fractions]
        return cls((num_timesteps, *inner, 0))

    @classmethod
    def from_ranges(cls, ranges: Sequence[tuple[float, float]], num_timesteps: int = TIMESTEPS) -> "StageBounds":
        """Stages from (start, end) fractions of the schedule, in any order.

        Raises:
            BestiaryError: ranges overlap, leave a gap, or do not reach from 0 to 1; the message names the place.
        """
        ordered = sorted(ranges)
        if not ordered:
            raise BestiaryError("no stages: give at least one range, such as 0 to 1")
        # each range must begin where the one before it ends
        for (_, end), (start, _) in pairwise([(0.0, 0.0), *ordered, (1.0, 1.0)]):
            if start - end > 1e-6:
                raise BestiaryError(
                    f"stages leave {end:.4g} to {start:.4g} of the schedule uncovered: add a stage there"
                )
            if end - start > 1e-6:
                raise BestiaryError(
                    f"stages overlap between {start:.4g} and {end:.4g} of the schedule: shorten one of them"
                )
        return cls.from_fractions([start for start, _ in ordered[1:]], num_timesteps)

    @property
    def stages(self) -> int:
        """S."""
        return len(self.edges) - 1

    @property
    def num_timesteps(self) -> int:
        """T."""
        return self.edges[0]

    @property
    def times(self) -> tuple[float, ...]:
        """The edges as S + 1 times, falling from 1 to 0; stage s covers times[s + 1] < t <= times[s]."""
        return tuple(edge / self.num_timesteps for edge in self.edges)

    @property
    def fractions(self) -> tuple[float, ...]:
        """The edges as S + 1 shares of the way, rising from 0 to 1."""
        return tuple(1 - edge / self.num_timesteps for edge in self.edges)

    def stage_at(self, times: Tensor | float) -> Tensor:
        """Stage of each time in (0, 1], long, of any shape like `times`."""
        return self.stage_of(torch.as_tensor(times, dtype=torch.float64) * self.num_timesteps - 1)

    def stage_of(self, timesteps: Tensor) -> Tensor:
        """Stage of each timestep, long, of any shape like `timesteps`; fractional ones fall as ComfyUI's do."""
        # just below every inner edge, rising as bucketize needs them
        boundaries = torch.tensor(
            [edge - BELOW_EDGE for edge in self.edges[1:-1]][::-1], dtype=torch.float64
        )  # (S - 1,)
        above = torch.bucketize(timesteps.detach().double().cpu(), boundaries)  # stages counted from the end
        return self.stages - 1 - above

    def percents(self, clock: Clock = "discrete") -> tuple[float, ...]:
        """The boundaries as S + 1 shares of ComfyUI's way, 0 to 1, for `start_percent` and `end_percent`.

        Never round them. The one that ends a stage is the one that starts the next. With clock "discrete" the core maps
        percent to timestep (1 - percent) * (T - 1); with "continuous" to a time (1 - percent), cut into T parts.
        """
        total = self.num_timesteps
        if clock == "discrete":
            inner = [1 - (edge - BELOW_EDGE) / (total - 1) for edge in self.edges[1:-1]]
        else:
            # entry t of a continuous model's table stands for the time (t + 1) / T
            inner = [1 - (edge + 1 - BELOW_EDGE) / total for edge in self.edges[1:-1]]
        return (0.0, *inner, 1.0)

    def percent_ranges(self, clock: Clock = "discrete") -> tuple[tuple[float, float], ...]:
        """`(start_percent, end_percent)` of every stage, in generation order."""
        return tuple(pairwise(self.percents(clock)))

    def step_percents(self, timesteps: Sequence[float]) -> tuple[float, ...]:
        """Like `percents`, for stages that share the steps of a sampler instead of the timesteps ("step clock").

        Stage s then begins at step ceil(fraction * N) of N; the boundary lies between that step's timestep and the one
        before. A stage without a step has equal ends.

        Args:
            timesteps: timestep of every step, falling; ComfyUI gives them as `model_sampling.timestep(sigmas[:-1])`.
        """
        count, last = len(timesteps), self.num_timesteps - 1
        inner = []
        for share in self.fractions[1:-1]:
            step = -int(-(share * count - 1e-6) // 1)
            if step <= 0 or step >= count:
                inner.append(0.0 if step <= 0 else 1.0)
                continue
            # strictly between two steps, so neither belongs to both stages
            inner.append(min(1.0, max(0.0, 1 - (timesteps[step - 1] + timesteps[step]) / 2 / last)))
        return (0.0, *inner, 1.0)

    def steps_per_stage(self, timesteps: Sequence[float]) -> tuple[int, ...]:
        """How many of a sampler's N timesteps `(N,)` fall into each stage; 0 marks a stage that is never reached."""
        counts = torch.bincount(self.stage_of(torch.as_tensor(timesteps, dtype=torch.float64)), minlength=self.stages)
        return tuple(counts.tolist())

    def refined_by(self, other: "StageBounds") -> "StageBounds":
        """The stages that begin wherever a stage of either begins.

        Raises:
            BestiaryError: they count different numbers of timesteps.
        """
        if other.num_timesteps != self.num_timesteps:
            raise BestiaryError(
                f"stages over {self.num_timesteps} and over {other.num_timesteps} timesteps cannot be combined: "
                "they belong to different base models"
            )
        return StageBounds(tuple(sorted({*self.edges, *other.edges}, reverse=True)))

    def stages_of_finer(self, finer: "StageBounds") -> tuple[int, ...]:
        """For every stage of `finer`, the index of the own stage that contains its first timestep."""
        first = torch.tensor([edge - 1 for edge in finer.edges[:-1]])  # (S of finer,)
        return tuple(self.stage_of(first).tolist())
