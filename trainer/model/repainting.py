"""Pictures of which a part is painted anew, by any denoiser: what is kept is noised to each step's level and laid back.

The blended loop of Avrahami et al., "Blended Latent Diffusion" (arXiv 2206.02779, Algorithm 1), with DDIM steps; it needs no
weights made for inpainting.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ...concepts.denoiser.denoiser import Conditioning, ProgressCallback
from ...concepts.errors import BestiaryError
from .sampling import Guidance, SamplingDenoiser, draw_noise


@torch.no_grad()
def repaint_images(
    denoiser: SamplingDenoiser,
    positive: Conditioning,
    negative: Conditioning | None,
    images: Tensor,
    masks: Tensor,
    *,
    seeds: Sequence[int],
    steps: int = 30,
    strength: float = 0.6,
    guidance: float = 7.5,
    on_step: ProgressCallback | None = None,
) -> Tensor:
    """Paint the masked places of pictures anew.

    Args:
        positive: text conditioning of B pictures, or of one that all share.
        negative: likewise; None is the model's empty prompt.
        images: `(B, 3, H, W)` in 0..1; edges are multiples of the model's latent factor.
        masks: `(B, H, W)` in 0..1, 1 where the picture is painted anew.
        seeds: one per picture.
        steps: of a whole denoising; `strength` of them are taken.
        strength: how noisy the picture is made first, above 0 to 1; 1 forgets the masked places.
        guidance: classifier-free guidance scale; 1 or less uses the positive prompt alone.

    Returns:
        `(B, 3, H, W)` float32 in 0..1. What is kept is what the autoencoder makes of it: lay the original over it.

    Raises:
        BestiaryError: a value out of range, or pictures, masks and seeds that do not match.
    """
    _check(denoiser, images, masks, seeds, steps, strength)
    count, _, height, width = images.shape
    positive = positive if len(positive) == count else positive.expanded(count)
    other = negative or denoiser.empty_conditioning()
    other = None if guidance <= 1 else other if len(other) == count else other.expanded(count)
    device = denoiser.device
    kept = denoiser.images.from_cache(denoiser.images.to_cache(images.to(device))).to(device)  # (B, C, h, w)
    noise = draw_noise(denoiser, seeds, (height, width)).to(device)
    # a cell that a subject covers in part is painted in part
    painted = functional.adaptive_avg_pool2d(
        masks.to(device).float().unsqueeze(1), (kept.shape[-2], kept.shape[-1])
    )  # (B, 1, h, w)
    prompts, process = Guidance(positive, other, guidance), denoiser.process
    taken, total = max(1, round(steps * strength)), process.num_timesteps
    times = [process.time_of(max(1, round(total * strength * (taken - done) / taken)) - 1) for done in range(taken)] + [
        0.0
    ]

    def noised(time: float) -> Tensor:
        return process.noised(kept, noise, torch.full((count,), time, device=device)) if time else kept

    latents = noised(times[0])
    for number, (time, following) in enumerate(zip(times, times[1:], strict=False), start=1):
        output, _ = prompts.predict(denoiser.network, latents, time, None)
        latents = process.step(latents, output, time, following)
        latents = painted * latents + (1 - painted) * noised(following)
        if on_step is not None:
            on_step(number, taken)
    pictures = denoiser.images.decode(latents).cpu()
    if not bool(torch.isfinite(pictures).all()):
        raise BestiaryError(
            "the repainted pictures contain numbers that are not finite: try dtype fp32 or bf16, or a lower guidance"
        )
    return pictures


def _check(
    denoiser: SamplingDenoiser, images: Tensor, masks: Tensor, seeds: Sequence[int], steps: int, strength: float
) -> None:
    count, _, height, width = images.shape
    if masks.shape != (count, height, width) or len(seeds) != count:
        raise BestiaryError(
            f"{count} pictures of {width} x {height} pixels need as many masks of that size and seeds; there are "
            f"{len(seeds)} seeds and masks {tuple(masks.shape)}"
        )
    if steps < 1 or not 0 < strength <= 1:
        raise BestiaryError(f"steps {steps} must be at least 1, and strength {strength:g} above 0 and at most 1")
    factor = denoiser.backbone.latent_factor
    if height % factor or width % factor:
        raise BestiaryError(
            f"picture size {width} x {height}: both edges must be multiples of {factor} pixels for this model"
        )
