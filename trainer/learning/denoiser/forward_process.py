"""The forward process of every training: a posterior draw from cached moments, noise, and the loss of what was predicted.

Letters: B pictures, C channels of what is denoised, h and w its grid.
"""

from dataclasses import dataclass

from torch import Tensor

from ....concepts.denoiser.denoiser import Denoiser, Process


@dataclass(frozen=True)
class Noised:
    """Noised pictures, and what they were made of."""

    x: Tensor
    """`(B, C, h, w)`: what the network gets."""
    x0: Tensor
    """`(B, C, h, w)`: without noise."""
    noise: Tensor
    """`(B, C, h, w)`."""
    times: Tensor
    """`(B,)` in (0, 1]."""
    process: Process

    def loss(self, output: Tensor, *, weights: Tensor | None = None, min_snr: float = 0.0) -> Tensor:
        """Loss `(B,)` of the network's output for `x`; weights `(B, 1, h, w)`, see `Process.loss`."""
        return self.process.loss(output, self.x0, self.noise, self.times, weights=weights, min_snr=min_snr)


def add_noise(denoiser: Denoiser, moments: Tensor, noise: Tensor, times: Tensor) -> Noised:
    """Noise pictures.

    Args:
        moments: `(B, 2, C, h, w)`, as cached.
        noise: `(B, 2, C, h, w)` standard normal: the posterior draw and the noise of the process.
        times: `(B,)` in (0, 1].
    """
    posterior_noise, own = noise.unbind(1)  # (B, C, h, w) each
    x0 = denoiser.images.from_cache(moments, posterior_noise)  # (B, C, h, w)
    return Noised(denoiser.process.noised(x0, own, times), x0, own, times, denoiser.process)
