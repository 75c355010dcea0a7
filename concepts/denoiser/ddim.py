"""Pictures from a denoiser without a sampler library: previews where only the five capabilities are at hand.

Every step is the process' own: DDIM for discrete processes, Euler for flows. Letters: N pictures, C channels of what is denoised, h and w its grid.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .denoiser import Conditioning, Denoiser, ProgressCallback


@torch.no_grad()
def sample_ddim(
    denoiser: Denoiser,
    positive: Conditioning | Callable[[float], Conditioning],
    negative: Conditioning,
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    size: int,
    on_step: ProgressCallback | None = None,
) -> Tensor:
    """One picture per seed, `(N, 3, size, size)` float32 in 0..1 on the CPU; the noise of each is drawn there from its seed.

    Args:
        positive: conditioning of N prompts, or what gives it for a time, such as `StagedConditioning.at`.
        negative: of one prompt, from which guidance leads away; unused at guidance 1.
        steps: denoising steps, 1 to the process' number of timesteps.
        size: edge in pixels, a multiple of the latent factor.

    Raises:
        BestiaryError: steps out of range.
    """
    network, process = denoiser.network, denoiser.process
    times = process.sampling_times(steps)
    shape = denoiser.images.shape((size, size))
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    latents = torch.stack(noise).to(denoiser.device)  # (N, C, h, w)
    # one prompt to lead away from, for all pictures
    empty = negative.expanded(len(seeds))
    for number, (time, next_time) in enumerate(pairwise(times), start=1):
        now = torch.full((len(seeds),), time, dtype=torch.float32, device=latents.device)  # (N,)
        conditioning = positive(time) if callable(positive) else positive
        predicted = network.predict(latents, now, conditioning).prediction  # (N, C, h, w)
        # classifier-free guidance: further along the line from the plain prediction to the prompted one
        if guidance != 1:
            plain = network.predict(latents, now, empty).prediction
            predicted = plain + guidance * (predicted - plain)
        latents = process.step(latents, predicted, time, next_time)
        if on_step:
            on_step(number, steps)
    return denoiser.images.decode(latents).float().cpu()
