"""Pictures from a denoiser by DDIM without a sampler library: previews where only the protocol is at hand.

Song, Meng and Ermon 2021, arXiv 2010.02502, equation 12 with eta 0. Letters: N pictures, C latent channels, h and w the
latent grid, T timesteps.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import BestiaryError
from .denoiser import Denoiser, NoiseSchedule, ProgressCallback, TextConditioning


@torch.no_grad()
def sample_ddim(
    denoiser: Denoiser,
    positive: TextConditioning | Callable[[int], TextConditioning],
    negative: TextConditioning,
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    size: int,
    on_step: ProgressCallback | None = None,
) -> Tensor:
    """One picture per seed, `(N, 3, size, size)` float32 in 0..1 on the CPU; the noise of each is drawn there from its seed.

    Args:
        positive: conditioning of N prompts, or what gives it for a timestep, such as `StagedConditioning.at`.
        negative: of one prompt, from which guidance leads away; unused at guidance 1.
        steps: denoising steps, 1 to T.
        size: edge in pixels, a multiple of the latent factor.

    Raises:
        BestiaryError: steps out of range.
    """
    # everything that depends on the model is asked of the denoiser: schedule, grid and number of channels
    schedule, factor = denoiser.schedule, denoiser.backbone.latent_factor
    times = ddim_timesteps(len(schedule.alphas_cumprod), steps)
    shape = (denoiser.backbone.latent_channels, size // factor, size // factor)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    latents = torch.stack(noise).to(denoiser.device)  # (N, C, h, w)
    # one prompt to lead away from, for all pictures
    empty = _expanded(negative, len(seeds))
    for number, time in enumerate(times):
        step = torch.full((len(seeds),), time, dtype=torch.long, device=latents.device)  # (N,)
        told = positive(time) if callable(positive) else positive
        predicted = denoiser.predict(latents, step, told).prediction  # (N, C, h, w)
        # classifier-free guidance: further along the line from the plain prediction to the prompted one
        if guidance != 1:
            plain = denoiser.predict(latents, step, empty).prediction
            predicted = plain + guidance * (predicted - plain)
        clean, noise_left = _split(latents, predicted, schedule, time)
        # the last step ends at the clean latents
        alpha = float(schedule.alphas_cumprod[times[number + 1]]) if number + 1 < len(times) else 1.0
        latents = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise_left
        if on_step:
            on_step(number + 1, len(times))
    return denoiser.decode_latents(latents).float().cpu()


def ddim_timesteps(total: int, steps: int) -> list[int]:
    """Evenly spaced timesteps from `total` - 1 downwards.

    Raises:
        BestiaryError: steps below 1 or above `total`.
    """
    if not 1 <= steps <= total:
        raise BestiaryError(f"{steps} sampling steps: choose 1 to {total}")
    return [round(total * (steps - number) / steps) - 1 for number in range(steps)]


def _split(latents: Tensor, predicted: Tensor, schedule: NoiseSchedule, time: int) -> tuple[Tensor, Tensor]:
    """Clean latents and noise `(N, C, h, w)` that the prediction says `latents` consist of."""
    alpha = float(schedule.alphas_cumprod[time])
    signal, spread = alpha**0.5, (1 - alpha) ** 0.5
    # noise, or velocity, which mixes noise and picture
    if schedule.prediction == "epsilon":
        return (latents - spread * predicted) / signal, predicted
    return signal * latents - spread * predicted, spread * latents + signal * predicted


def _expanded(text: TextConditioning, count: int) -> TextConditioning:
    """One prompt for all pictures."""
    pooled = None if text.pooled is None else text.pooled.expand(count, -1)
    return replace(text, context=text.context.expand(count, -1, -1), pooled=pooled, positions=None)
