"""Sampling and features of a sweep: pictures from the same noise, and their features for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..attention.attention_pictures import overview, picture_of, plain_frame
from ..host.comfy_objects import Conditioning
from ..part_map.part_pictures import as_images
from .attribute_sweep import Sampling, Seeing, Sweep, picture_features, sweep_labels
from .stage_schedule import sampler_sigmas

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE


@dataclass(frozen=True)
class SweepSampler:
    """KSampler's settings."""

    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str


def sampling_of(model: ModelPatcher, latent: Tensor, settings: SweepSampler) -> Sampling:
    """Samples from the same pure noise every time; `latent` `(N, C, H, W)` defines size and number.

    Raises:
        BestiaryError: an unknown sampler or scheduler.
    """
    import comfy.sample

    # raises for unknown names before anything is encoded
    sampler_sigmas(model, settings.sampler, settings.scheduler, settings.steps, 1.0)
    empty = comfy.sample.fix_empty_latent_channels(model, latent).clone().zero_()
    noise = comfy.sample.prepare_noise(empty, settings.seed)

    def sample(positive: Conditioning, negative: Conditioning) -> Tensor:
        options = {"disable_pbar": True, "seed": settings.seed}
        walk = (settings.steps, settings.cfg, settings.sampler, settings.scheduler)
        return comfy.sample.sample(model, noise.clone(), *walk, positive, negative, empty.clone(), **options)

    return sample


def seeing_of(vae: VAE, clip_vision: ClipVisionModel | None) -> Seeing:
    """Decodes latents `(N, C, H, W)`; features are CLIP image embeddings, or small pixels without a CLIP vision model."""

    def see(latents: Tensor) -> tuple[Tensor, Tensor]:
        pictures = vae.decode(latents)  # (N, H, W, 3)
        if clip_vision is None:
            return picture_features(pictures), pictures
        vectors = clip_vision.encode_image(pictures)["image_embeds"]  # (N, F)
        return vectors / vectors.norm(dim=-1, keepdim=True), pictures

    return see


def sweep_sheet(sweep: Sweep) -> Tensor:
    """All pictures of a sweep with their scores on one sheet `(1, H, W, 3)`."""
    frames = [
        plain_frame(picture_of(pixels), label)
        for pixels, label in zip(sweep.pictures, sweep_labels(sweep), strict=True)
    ]
    return as_images([overview(frames)])
