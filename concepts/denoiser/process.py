"""Forward processes: how noise is mixed in, what a network predicts, its loss, and one step back.

`DiscreteProcess` is DDPM's (Ho et al. 2020, arXiv 2006.11239) with noise or velocity as target, `FlowProcess` the straight path of rectified
flow (Liu et al. 2022, arXiv 2209.03003; Esser et al. 2024, arXiv 2403.03206). Times are floats in (0, 1], 1 being pure noise.
Letters: B pictures, C channels of what is denoised, h and w its grid, T entries of a table.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import BestiaryError

Prediction = Literal["epsilon", "v_prediction"]
TimeDraw = Literal["uniform", "logit_normal"]
STEPS_OF_TIME = 1000
"""Into how many timesteps files and settings divide time where a process has no table of its own."""


@dataclass(frozen=True)
class DiscreteProcess:
    """Diffusion over a table of timesteps; timestep i (0 to T - 1) is the time (i + 1) / T.

    A network with twice the channels (a learned variance) has its prediction in the first half; the second half is not trained.
    """

    alphas_cumprod: Tensor
    """`(T,)` float32, decreasing."""
    prediction: Prediction

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.alphas_cumprod)

    @cached_property
    def _table(self) -> list[float]:
        # read back from its device once
        return self.alphas_cumprod.tolist()

    def timesteps(self, times: Tensor) -> Tensor:
        """Times `(B,)` as timesteps of the table, of the dtype of `times`; fractional where a sampler steps between entries."""
        exact = times * self.num_timesteps - 1  # (B,)
        # float32 times lie within 1e-4 of a timestep, float64 ones far closer
        nearest, tolerance = exact.round(), 1e-2 if times.dtype == torch.float32 else 1e-6
        return torch.where((exact - nearest).abs() < tolerance, nearest, exact)

    def time_of(self, timestep: float) -> float:
        """Time of a timestep, which may be fractional."""
        return (timestep + 1) / self.num_timesteps

    def times_of_shares(self, shares: np.ndarray) -> Tensor:
        """Times `(B,)` float32 of uniform shares `(B,)` in [0, 1): every timestep is equally likely."""
        indices = torch.from_numpy((shares * self.num_timesteps).astype(np.int64))
        return (indices + 1) / self.num_timesteps

    def draw_between(self, low: float, high: float, rng: np.random.Generator) -> float:
        """One of the table's times in (low, high], all alike; both must lie on edges of timesteps."""
        total = self.num_timesteps
        return self.time_of(int(rng.integers(round(low * total), round(high * total))))

    def noised(self, x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Noised `(B, C, h, w)` at times `(B,)` (DDPM, equation 4)."""
        alpha = self._alphas(times, x0.device)
        return alpha.sqrt().to(x0.dtype) * x0 + (1 - alpha).sqrt().to(x0.dtype) * noise

    def target(self, x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the network must predict `(B, C, h, w)`: the noise, or the velocity (Salimans and Ho 2022, appendix D)."""
        if self.prediction == "epsilon":
            return noise
        alpha = self._alphas(times, x0.device)
        return alpha.sqrt().to(x0.dtype) * noise - (1 - alpha).sqrt().to(x0.dtype) * x0

    def snr(self, times: Tensor) -> Tensor:
        """Signal-to-noise ratio `(B,)` at times `(B,)`."""
        alpha = self.alphas_cumprod.to(times.device)[self.timesteps(times).long()]
        return alpha / (1 - alpha)

    def log_snr(self, time: float) -> float:
        """Natural logarithm of the signal-to-noise ratio; between entries of the table by linear interpolation."""
        return float(np.interp(time * self.num_timesteps - 1, np.arange(self.num_timesteps), self._levels))

    def time_of_log_snr(self, level: float) -> float:
        """The time at which `log_snr` is `level`; levels beyond the table give its first or last time."""
        # interpolation wants rising levels, and time rises as they fall
        falling = np.arange(self.num_timesteps)[::-1]
        return self.time_of(float(np.interp(level, self._levels[::-1], falling)))

    @cached_property
    def _levels(self) -> np.ndarray:
        """Logarithms of the signal-to-noise ratio `(T,)`, finite in schedules that end at pure noise, too."""
        alphas = np.clip(np.array(self._table), 1e-12, 1 - 1e-12)
        return np.log(alphas / (1 - alphas))

    def loss(
        self,
        output: Tensor,
        x0: Tensor,
        noise: Tensor,
        times: Tensor,
        *,
        weights: Tensor | None = None,
        min_snr: float = 0.0,
    ) -> Tensor:
        """Mean squared error `(B,)` float32 of every picture.

        Args:
            output: the network's output `(B, C, h, w)`, or `(B, 2 C, h, w)` with a learned variance.
            x0: what was noised `(B, C, h, w)`.
            noise: what it was noised with `(B, C, h, w)`.
            times: `(B,)`.
            weights: `(B, 1, h, w)`, 0 or more, how much each place counts; scaled to a mean of 1 within a picture.
            min_snr: gamma of the min-SNR weights, 0 for none.
        """
        loss = _weighted_error(_prediction_of(output, x0), self.target(x0, noise, times), weights)  # (B,)
        if not min_snr:
            return loss
        return loss * min_snr_weights(self.snr(times), min_snr, self.prediction)

    def step(self, x: Tensor, output: Tensor, time: float, next_time: float) -> Tensor:
        """From `x` `(B, C, h, w)` at `time` to the less noisy `next_time`, 0 being clean.

        DDIM (Song et al. 2021, arXiv 2010.02502, equation 12 with eta 0).
        """
        output, alpha = _prediction_of(output, x), self._alpha(time)
        signal, spread = alpha**0.5, (1 - alpha) ** 0.5
        # what x consists of, by a prediction of the noise or of the velocity, which mixes both
        if self.prediction == "epsilon":
            clean, noise = (x - spread * output) / signal, output
        else:
            clean, noise = signal * x - spread * output, spread * x + signal * output
        after = self._alpha(next_time) if next_time > 0 else 1.0
        return after**0.5 * clean + (1 - after) ** 0.5 * noise

    def sampling_times(self, steps: int) -> tuple[float, ...]:
        """Times of `steps` steps, evenly spaced from 1 downwards, and 0 at the end.

        Raises:
            BestiaryError: steps below 1 or above T.
        """
        total = self.num_timesteps
        _check_steps(steps, total)
        return (*(self.time_of(round(total * (steps - number) / steps) - 1) for number in range(steps)), 0.0)

    def _alpha(self, time: float) -> float:
        return self._table[round(time * self.num_timesteps) - 1]

    def _alphas(self, times: Tensor, device: torch.device) -> Tensor:
        """The table at times `(B,)`, `(B, 1, 1, 1)` on the device."""
        return self.alphas_cumprod.to(device)[self.timesteps(times).long().to(device)].view(-1, 1, 1, 1)


@dataclass(frozen=True)
class FlowProcess:
    """The straight path from picture to noise: x = (1 - sigma) x0 + sigma noise, and the network predicts noise - x0.

    Time is uniform before the shift: sigma(t) = s t / (1 + (s - 1) t). Stages and settings count in time, so they mean the same at any shift.
    What number the network receives for a time is the network's affair (1000 sigma for SD3, sigma for Flux).
    """

    shift: float = 1.0
    """s, above 0; 3 for SD3."""
    draw: TimeDraw = "uniform"
    """How training times are distributed: uniform, or the sigmoid of a normal number, which favours the middle."""
    mean: float = 0.0
    """Mean of that normal number."""
    spread: float = 1.0
    """Its standard deviation."""
    prediction: Literal["flow"] = "flow"

    def __post_init__(self) -> None:
        """Raises BestiaryError for a shift or a spread that is not positive."""
        if self.shift <= 0 or self.spread <= 0:
            raise BestiaryError(f"flow shift {self.shift} and spread {self.spread} must both be above 0")

    @classmethod
    def exponential(cls, mu: float) -> "FlowProcess":
        """The flow whose shift is written as exp(mu), as Flux has it (mu 1.15)."""
        return cls(math.exp(mu))

    @property
    def num_timesteps(self) -> int:
        """Timesteps into which settings divide time."""
        return STEPS_OF_TIME

    def time_of(self, timestep: float) -> float:
        """Time of a timestep, which may be fractional."""
        return (timestep + 1) / STEPS_OF_TIME

    def times_of_shares(self, shares: np.ndarray) -> Tensor:
        """Times `(B,)` float32 of uniform shares `(B,)` in [0, 1), distributed as `draw` says; rising with the share."""
        # a share of 0 would be no time at all
        uniform = torch.from_numpy(shares.astype(np.float64)).clamp(1e-6, 1 - 1e-6)  # (B,)
        if self.draw == "uniform":
            return uniform.float()
        normal = math.sqrt(2) * torch.erfinv(2 * uniform - 1)  # (B,)
        return torch.sigmoid(self.mean + self.spread * normal).float()

    def draw_between(self, low: float, high: float, rng: np.random.Generator) -> float:
        """A time in (low, high], uniform: stages get equal shares whatever `draw` says."""
        return high - (high - low) * float(rng.random())

    def sigma(self, times: Tensor) -> Tensor:
        """Share of noise `(B,)` at times `(B,)`."""
        return self.shift * times / (1 + (self.shift - 1) * times)

    def noised(self, x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Noised `(B, C, h, w)` at times `(B,)`."""
        sigma = self.sigma(times).to(x0).view(-1, 1, 1, 1)
        return (1 - sigma) * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The velocity `(B, C, h, w)` along the path, the same at every time `(B,)`."""
        return noise - x0

    def snr(self, times: Tensor) -> Tensor:
        """Signal-to-noise ratio `(B,)` at times `(B,)`."""
        sigma = self.sigma(times)
        return ((1 - sigma) / sigma).square()

    def time_of_sigma(self, sigma: float) -> float:
        """The time at which the share of noise is `sigma`, 0 to 1."""
        return sigma / (self.shift - (self.shift - 1) * sigma)

    def log_snr(self, time: float) -> float:
        """Natural logarithm of the signal-to-noise ratio at a time in (0, 1); minus infinity at 1."""
        # (1 - sigma) / sigma without the difference of nearly equal numbers
        signal, noise = 1 - time, self.shift * time
        return 2 * math.log(signal / noise) if signal > 0 else -math.inf

    def time_of_log_snr(self, level: float) -> float:
        """The time at which `log_snr` is `level`."""
        # half of it, where the exponential cannot overflow
        return self.time_of_sigma(1 / (1 + math.exp(min(level / 2, 700.0))))

    def loss(
        self,
        output: Tensor,
        x0: Tensor,
        noise: Tensor,
        times: Tensor,
        *,
        weights: Tensor | None = None,
        min_snr: float = 0.0,
    ) -> Tensor:
        """Mean squared error `(B,)` float32; arguments and shapes as in `DiscreteProcess.loss`.

        Raises:
            BestiaryError: min-SNR weights, which are defined for noise and velocity only.
        """
        min_snr_of(min_snr, self.prediction)
        return _weighted_error(_prediction_of(output, x0), self.target(x0, noise, times), weights)

    def step(self, x: Tensor, output: Tensor, time: float, next_time: float) -> Tensor:
        """From `x` `(B, C, h, w)` at `time` to the less noisy `next_time`, 0 being clean, along the velocity (Euler)."""
        now, after = (float(self.sigma(torch.tensor(t, dtype=torch.float64))) for t in (time, next_time))
        return x + (after - now) * _prediction_of(output, x)

    def sampling_times(self, steps: int) -> tuple[float, ...]:
        """Times of `steps` steps, evenly spaced from 1 to the smallest sigma, and 0 at the end.

        The sigmas of diffusers' FlowMatchEulerDiscreteScheduler and of ComfyUI's scheduler `normal`.

        Raises:
            BestiaryError: steps below 1 or above the number of timesteps.
        """
        _check_steps(steps, STEPS_OF_TIME)
        last = float(self.sigma(torch.tensor(1 / STEPS_OF_TIME, dtype=torch.float64)))
        return (*np.linspace(1, last, steps).tolist(), 0.0)


def min_snr_of(asked: float | None, prediction: str, usual: float = 0.0) -> float:
    """Gamma of the min-SNR weights of a model: what was asked for, else what is usual, which of flow models is none.

    Raises:
        BestiaryError: weights are asked for of a flow model.
    """
    if asked is None:
        return 0.0 if prediction == "flow" else usual
    if asked and prediction == "flow":
        raise BestiaryError(
            f"min-SNR weights (gamma {asked:g}) are defined for models that predict noise or velocity; this one is a flow model: "
            "set min_snr to 0",
            option="method.min_snr",
        )
    return asked


def min_snr_weights(snr: Tensor, gamma: float, prediction: Prediction = "epsilon") -> Tensor:
    """Weight of each picture's squared error `(B,)` (Hang et al. 2023, arXiv 2303.09556, equation 8 and appendix).

    min(snr, gamma) / snr when the network predicts noise, min(snr, gamma) / (snr + 1) when it predicts velocity.

    Args:
        snr: signal-to-noise ratio `(B,)`, 0 or more; 0 (a zero-terminal schedule) gives the limits 1 and 0.
        gamma: usually 5; 0 turns the weighting off (all ones).

    Raises:
        BestiaryError: gamma is negative or the prediction has another name.
    """
    if gamma < 0:
        raise BestiaryError(f"min-SNR gamma is {gamma}: give 0 (off) or a positive number, usually 5")
    if prediction not in ("epsilon", "v_prediction"):
        raise BestiaryError(f"unknown prediction {prediction!r}: choose epsilon or v_prediction")
    if gamma == 0:
        return torch.ones_like(snr)
    if prediction == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)  # (B,)
    # min(snr, gamma) / snr, written so that snr = 0 gives its limit 1 and not 0 / 0
    return (gamma / snr).clamp(max=1)  # (B,)


def _prediction_of(output: Tensor, like: Tensor) -> Tensor:
    """The prediction `(B, C, h, w)` in an output that may hold a learned variance in a second half of its channels."""
    return output if output.shape[1] == like.shape[1] else output[:, : like.shape[1]]


def _weighted_error(output: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Mean squared error `(B,)` of predictions `(B, C, h, w)`, places weighted by `(B, 1, h, w)`."""
    error = (output.float() - target).square()  # (B, C, h, w)
    if weights is not None:
        # weights average to 1 within a picture, so that small things do not weaken its loss
        error = error * weights / weights.mean((1, 2, 3), keepdim=True).clamp_min(1e-3)
    return error.mean((1, 2, 3))


def _check_steps(steps: int, most: int) -> None:
    if not 1 <= steps <= most:
        raise BestiaryError(f"{steps} sampling steps: choose 1 to {most}")
