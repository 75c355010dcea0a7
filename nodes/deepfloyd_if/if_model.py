"""A stage of DeepFloyd IF as ComfyUI's MODEL: the diffusers UNet in pixel space, under ComfyUI's samplers and memory.

ComfyUI has no code for this UNet (text keys beside image keys, variance channels), so diffusers' own module is the
`diffusion_model`; sampling, guidance, LoRAs and eviction are ComfyUI's. Imported by its node when that runs.
Letters: B batch, h and w the picture in pixels, L text states, D their width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...trainer.learning.denoiser.if_folder import COLOURS, IFFolder
from ...trainer.learning.denoiser.low_picture import enlarge
from .if_lora import StagePatcher

LOW_PICTURE, NOISE_LEVEL = "bestiary_if_low_picture", "bestiary_if_noise_level"
"""Entries of a conditioning for stage II: the low picture `(B, 3, h, w)` in -1..1, and the level 0..999 it is noised to."""
_NOISE_SEED = 0x1F_5EED
"""Keeps the noise of the low picture apart from the noise that sampling starts from, which has the sampler's seed itself."""


class PixelFormat(comfy.latent_formats.LatentFormat):
    """Latents are the pictures themselves, in -1..1."""

    latent_channels = COLOURS
    spacial_downscale_ratio = 1
    latent_rgb_factors = [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]  # noqa: RUF012 as ComfyUI's class has it
    latent_rgb_factors_bias = [0.5, 0.5, 0.5]  # noqa: RUF012


class IFModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI must know of the denoiser."""

    latent_format = PixelFormat
    memory_usage_factor = 1.0
    supported_inference_dtypes = [torch.bfloat16, torch.float32]  # noqa: RUF012

    def inpaint_model(self) -> bool:
        """Six input channels of stage II are two pictures."""
        return False


class IFModel(comfy.model_base.BaseModel):
    """One stage with its noise schedule; stage II reads the low picture from the conditioning."""

    def __init__(self, folder: IFFolder, unet: torch.nn.Module, dtype: torch.dtype) -> None:
        """`unet`: see `read_unet`."""
        config = IFModelConfig({"disable_unet_model_creation": True})
        config.set_inference_dtype(dtype, None)
        super().__init__(config, comfy.model_base.ModelType.EPS)
        self.diffusion_model = unet
        self.stage = folder.stage
        self.model_sampling._register_schedule(given_betas=_betas(folder.schedule))
        levels = torch.zeros(0) if folder.level_schedule is None else _betas(folder.level_schedule)
        # how much of the low picture is left at every level
        self.register_buffer("level_alphas", torch.cumprod(1 - levels, 0).float(), persistent=False)  # (levels,)

    def extra_conds(self, **options: Any) -> dict[str, comfy.conds.CONDRegular]:
        """Conditions of one prompt: text, and in stage II the noised low picture `(B, 3, h, w)` with its level `(B,)`.

        Raises:
            BestiaryError: a low picture in stage I, or none in stage II.
        """
        given = super().extra_conds(**options)
        low = options.get(LOW_PICTURE)
        if self.stage == "I":
            if low is not None:
                raise BestiaryError(
                    "this MODEL is stage I of DeepFloyd IF, but the conditioning holds a picture to enlarge: connect the "
                    "MODEL of stage II behind IF Upscale Conditioning"
                )
            return given
        if low is None:
            raise BestiaryError(
                "this MODEL is stage II of DeepFloyd IF and enlarges a picture, but the conditioning holds none: put "
                "IF Upscale Conditioning between the text and the sampler, for positive and negative"
            )
        noise, level = options["noise"], int(options[NOISE_LEVEL])
        enlarged = comfy.utils.resize_to_batch_size(enlarge(low, noise.shape[-2:]), len(noise))  # (B, 3, h, w)
        noised = noise_to_level(enlarged, self.level_alphas.cpu(), level, int(options.get("seed") or 0))
        given["c_concat"] = comfy.conds.CONDNoiseShape(noised.to(options["device"]))
        # a whole number: half precision would round levels above 256
        given["y"] = comfy.conds.CONDRegular(torch.full((len(noise),), level, dtype=torch.long))
        return given


def noise_to_level(picture: Tensor, alphas: Tensor, level: int, seed: int) -> Tensor:
    """A picture `(B, 3, h, w)` noised to one of the `(levels,)` of `alphas` (DDPM, equation 4), the same for a seed everywhere."""
    generator = torch.Generator().manual_seed((seed + _NOISE_SEED) % 2**63)
    noise = torch.randn(picture.shape, generator=generator)  # (B, 3, h, w)
    alpha = alphas[level]
    return alpha.sqrt() * picture.cpu() + (1 - alpha).sqrt() * noise


def load_model(folder: IFFolder, dynamic_thresholding: bool) -> StagePatcher:
    """The stage as MODEL.

    Args:
        folder: which.
        dynamic_thresholding: limit every prediction of the clean picture as the folder's scheduler says.

    Raises:
        BestiaryError: diffusers is not installed, or weights are missing, damaged or those of another model.
    """
    manager = comfy.model_management
    dtype = manager.unet_dtype(
        device=manager.get_torch_device(), supported_dtypes=IFModelConfig.supported_inference_dtypes
    )
    model = StagePatcher(
        IFModel(folder, read_unet(folder.path, dtype), dtype),
        load_device=manager.get_torch_device(),
        offload_device=manager.unet_offload_device(),
    )
    if dynamic_thresholding and folder.thresholding is not None:
        ratio, most = folder.thresholding
        model.set_model_sampler_post_cfg_function(lambda given: thresholded(given["denoised"], ratio, most))
    return model


def thresholded(pictures: Tensor, ratio: float, most: float) -> Tensor:
    """Pictures `(B, 3, h, w)` within -1..1: each is clipped at its own quantile `ratio`, at most `most`, and scaled back.

    Dynamic thresholding (Saharia et al. 2022, section 2.3), as diffusers' DDPMScheduler does it.
    """
    limit = torch.quantile(pictures.float().abs().flatten(1), ratio, dim=1).clamp(1.0, max(most, 1.0))  # (B,)
    limit = limit.view(-1, 1, 1, 1)
    return (pictures.clamp(-limit, limit) / limit).to(pictures.dtype)


def read_unet(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """The stage's UNet in the form in which ComfyUI calls a `diffusion_model`, frozen.

    Raises:
        BestiaryError: as `load_model`.
    """

    class IFUnet(_diffusers().UNet2DConditionModel):
        """Noise `(B, 3, h, w)` of noised pictures `(B, 3 or 6, h, w)`; the variance channels are left out."""

        def forward(
            self,
            x: Tensor,
            timesteps: Tensor,
            context: Tensor,
            y: Tensor | None = None,
            control: Mapping[str, object] | None = None,
            transformer_options: Mapping[str, object] | None = None,
            **options: object,
        ) -> Tensor:
            """`context` `(B, L, D)`; `y` `(B,)`: level of the low picture in stage II."""
            found = super().forward(x, timesteps, encoder_hidden_states=context, class_labels=y, return_dict=False)
            return found[0][:, :COLOURS]

    place = folder / "unet"
    # some downloads hold the half-precision files alone
    variant = None if any(path.name.count(".") == 1 for path in _weight_files(place)) else "fp16"
    try:
        # the executor runs nodes in inference mode, whose tensors could never be trained
        with torch.inference_mode(False), torch.no_grad():
            unet, outcome = IFUnet.from_pretrained(
                place, torch_dtype=dtype, variant=variant, local_files_only=True, output_loading_info=True
            )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as fault:
        raise BestiaryError(
            f"the weights in {place} could not be read ({fault}): download the model folder again"
        ) from fault
    odd = [f"{len(outcome[name])} {name.replace('_', ' ')}" for name in outcome if outcome[name]]
    if odd:
        raise BestiaryError(
            f"the weights in {place} are not those of its config ({', '.join(odd)}): download the model folder again"
        )
    return unet.eval().requires_grad_(False)


def _weight_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]


def _betas(config: Mapping[str, object]) -> Tensor:
    """Noise variances `(T,)` of a scheduler's config."""
    return _diffusers().DDPMScheduler.from_config(dict(config)).betas


def _diffusers() -> ModuleType:
    """The one library that has this UNet; ComfyUI does not bring it."""
    try:
        import diffusers  # noqa: TID251 imported when the loader runs, and by nothing else in nodes/
    except ImportError as fault:
        raise BestiaryError(
            f"DeepFloyd IF needs diffusers, which cannot be imported ({fault}): run `python -m pip install diffusers` "
            "with ComfyUI's Python and start ComfyUI again"
        ) from fault
    return diffusers
