"""Sampling along a flow, in the form in which samplers of diffusers are used.

Letters: S steps, B pictures, C channels of latents, h and w their grid.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...concepts.denoiser.process import FlowProcess


class FlowEuler:
    """Euler's steps along a flow, over the noise levels of diffusers' FlowMatchEulerDiscreteScheduler and ComfyUI's scheduler `normal`."""

    init_noise_sigma = 1.0
    """A flow starts at pure noise."""

    def __init__(self, process: FlowProcess) -> None:
        """Follow this process."""
        self._process, self._next = process, dict[float, tuple[float, float]]()
        self.timesteps = torch.empty(0, dtype=torch.float64)

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose so many timesteps `(S,)`: fractional, so that each is a time of the process."""
        times = self._process.sampling_times(num_inference_steps)
        # the process counts timesteps from 0
        steps = [time * self._process.num_timesteps - 1 for time in times[:-1]]
        self.timesteps = torch.tensor(steps, dtype=torch.float64)
        self._next = dict(zip(steps, pairwise(times), strict=True))

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """Latents `(B, C, h, w)` as they are."""
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *, return_dict: bool) -> tuple[Tensor]:
        """One step of latents `(B, C, h, w)` by the velocity `(B, C, h, w)`."""
        return (self._process.step(sample, model_output, *self._next[float(timestep)]),)
