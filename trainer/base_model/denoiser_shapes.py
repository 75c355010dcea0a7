"""The two shapes of the miniature's denoiser: a UNet that predicts noise and a diffusion transformer that predicts a flow.

A shape says what a time is, how noise enters, what is predicted and what a step of sampling does; everything else of the
training is the same for both. Letters: B pictures, C channels, h and w the latent grid, L text positions, D width.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ...concepts.denoiser.backbone import BACKBONES, Backbone
from ...concepts.denoiser.process import FlowProcess
from ...concepts.denoiser.transformer_backbones import DEMO_DIT
from ..learning.denoiser.prompt_encoding import ClipStates

ShapeName = Literal["unet", "dit"]
IMAGE_SIZE = 128
LATENT_CHANNELS = 8
TEXT_WIDTH = 128
DENOISER_CHANNELS = (64, 96, 128)
DIT_HEADS, DIT_BLOCKS, DIT_PATCH, DIT_HEAD_WIDTH = 3, 6, 2, 64
DIT_PLACES = 12
"""Edge of the transformer's table of positions, in tokens: pictures up to 192 px, half as much again as it is trained on."""
DIT_PROCESS = FlowProcess(3.0, draw="logit_normal")
"""The flow of the transformer, with the shift and the times of training of Stable Diffusion 3."""
MIN_SNR_GAMMA = 5.0
"""Upper clamp of the signal-to-noise ratio in the loss weight (Hang et al. 2023, arXiv 2303.09556, equation 5)."""
SNR_FLOOR = 0.5
"""Lower clamp of the ratio after `plain_steps`. At high noise, where captions matter most, the plain weight is near 0."""

Advance = Callable[[Tensor, Tensor], Tensor]
"""Latents `(B, C, h, w)` and the prediction for them -> less noisy latents `(B, C, h, w)`."""


class DenoiserShape(ABC):
    """What a training and a sampling of the miniature ask about its denoiser."""

    name: ClassVar[ShapeName]
    component: ClassVar[str]
    """Folder of the denoiser in a model folder."""
    backbone: ClassVar[Backbone]
    text_model: ClassVar[type[CLIPTextModel] | type[CLIPTextModelWithProjection]]
    denoiser_model: ClassVar[type[UNet2DConditionModel] | type[SD3Transformer2DModel]]

    def build_text_encoder(self, config: CLIPTextConfig) -> CLIPTextModel | CLIPTextModelWithProjection:
        """A CLIP text model with random weights."""
        return self.text_model(config)

    @abstractmethod
    def build_denoiser(self) -> UNet2DConditionModel | SD3Transformer2DModel:
        """The denoiser with random weights."""

    @abstractmethod
    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Times `(B,)` of one training batch, in the unit of this shape."""

    @abstractmethod
    def noised(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Forward process: latents and noise `(B, C, h, w)` at times `(B,)` -> `(B, C, h, w)`."""

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor) -> Tensor:
        """What the denoiser must predict `(B, C, h, w)`."""

    @abstractmethod
    def weights(self, times: Tensor, *, plain: bool = False) -> Tensor:
        """Weight `(B,)` of each picture's error; `plain` leaves high noise its small weight, where the shape has one."""

    @abstractmethod
    def evaluate(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, text: ClipStates) -> Tensor:
        """The prediction `(B, C, h, w)` for noised latents `(B, C, h, w)` at times `(B,)` with a text `(B, L, D)`."""

    @abstractmethod
    def measured_times(self) -> Tensor:
        """Eight times `(8,)` spread over the whole process, at which a trained model's loss is measured."""

    @abstractmethod
    def sampling(self, steps: int) -> list[tuple[Tensor, Advance]]:
        """The times `(1,)` of a sampling, each with its step."""

    @abstractmethod
    def write(self, folder: Path, modules: Mapping[str, Any]) -> None:
        """Write vae, text_encoder, tokenizer and denoiser as a model folder of diffusers."""


class UNetShape(DenoiserShape):
    """Three levels with cross-attention, in the topology of Stable Diffusion 1.5; times are timesteps 0 to 999."""

    name = "unet"
    component = "unet"
    backbone = BACKBONES["bestiary-demo"]
    text_model = CLIPTextModel
    denoiser_model = UNet2DConditionModel

    def __init__(self) -> None:
        """Tables of the schedule and of the loss weights by timestep `(T,)`."""
        self.alphas = build_scheduler().alphas_cumprod
        self._plain, self._lifted = snr_weights(self.alphas), snr_weights(self.alphas, floor=SNR_FLOOR)

    def build_denoiser(self) -> UNet2DConditionModel:
        """Denoiser with cross-attention at 16x16, 8x8 and 4x4."""
        levels = len(DENOISER_CHANNELS)
        return UNet2DConditionModel(
            sample_size=IMAGE_SIZE // 8,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            down_block_types=("CrossAttnDownBlock2D",) * levels,
            up_block_types=("CrossAttnUpBlock2D",) * levels,
            block_out_channels=DENOISER_CHANNELS,
            layers_per_block=1,
            cross_attention_dim=TEXT_WIDTH,
            # the number of heads, despite its name in diffusers
            attention_head_dim=4,
            norm_num_groups=32,
        )

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps `(B,)`, all alike."""
        return torch.randint(len(self.alphas), (count,), generator=generator)

    def noised(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """DDPM's forward process -> `(B, C, h, w)`."""
        return add_noise(clean, noise, self.alphas[times])

    def target(self, clean: Tensor, noise: Tensor) -> Tensor:
        """The noise `(B, C, h, w)`."""
        return noise

    def weights(self, times: Tensor, *, plain: bool = False) -> Tensor:
        """Min-SNR weights `(B,)`, without their floor if `plain`."""
        return (self._plain if plain else self._lifted)[times]

    def evaluate(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, text: ClipStates) -> Tensor:
        """The predicted noise `(B, C, h, w)`."""
        return denoiser(noisy, times, encoder_hidden_states=text.hidden).sample

    def measured_times(self) -> Tensor:
        """Timesteps `(8,)`."""
        return torch.linspace(60, 940, 8).long()

    def sampling(self, steps: int) -> list[tuple[Tensor, Advance]]:
        """DDIM's steps (Song et al. 2021, arXiv 2010.02502)."""
        scheduler = build_scheduler()
        scheduler.set_timesteps(steps)

        def advance(timestep: Tensor) -> Advance:
            return lambda x, output: cast(DDIMSchedulerOutput, scheduler.step(output, int(timestep), x)).prev_sample

        return [(timestep, advance(timestep)) for timestep in scheduler.timesteps]

    def write(self, folder: Path, modules: Mapping[str, Any]) -> None:
        """A StableDiffusionPipeline folder."""
        # diffusers accepts any module with `save_pretrained`, but its annotations name the classes of Stable Diffusion 1.5
        build = cast("Callable[..., StableDiffusionPipeline]", StableDiffusionPipeline)
        pipeline = build(
            vae=modules["vae"],
            text_encoder=modules["text_encoder"],
            tokenizer=modules["tokenizer"],
            unet=modules["denoiser"],
            scheduler=build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)


class DiTShape(DenoiserShape):
    """A small Stable Diffusion 3 (MMDiT, Esser et al. 2024, arXiv 2403.03206); times are floats in (0, 1], 1 being pure noise."""

    name = "dit"
    component = "transformer"
    backbone = DEMO_DIT
    text_model = CLIPTextModelWithProjection
    denoiser_model = SD3Transformer2DModel
    process = DIT_PROCESS

    def build_denoiser(self) -> SD3Transformer2DModel:
        """A transformer whose blocks and output start at zero, so that it begins as the identity (adaLN-Zero, Peebles and Xie 2023)."""
        denoiser = SD3Transformer2DModel(
            sample_size=IMAGE_SIZE // 8,
            patch_size=DIT_PATCH,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=DIT_BLOCKS,
            attention_head_dim=DIT_HEAD_WIDTH,
            num_attention_heads=DIT_HEADS,
            joint_attention_dim=TEXT_WIDTH,
            caption_projection_dim=DIT_HEADS * DIT_HEAD_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            pos_embed_max_size=DIT_PLACES,
            qk_norm="rms_norm",
        )
        zero = ("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")
        for name, module in denoiser.named_modules():
            if name.endswith(zero):
                linear = cast(nn.Linear, module)
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
        return denoiser

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Times `(B,)`, logit-normal."""
        return self.process.times_of_shares(torch.rand(count, generator=generator, dtype=torch.float64).numpy())

    def noised(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The straight path -> `(B, C, h, w)`."""
        return self.process.noised(clean, noise, times)

    def target(self, clean: Tensor, noise: Tensor) -> Tensor:
        """The velocity `(B, C, h, w)` along the path."""
        return noise - clean

    def weights(self, times: Tensor, *, plain: bool = False) -> Tensor:
        """All ones: the draw of times is the weight."""
        return torch.ones_like(times)

    def evaluate(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, text: ClipStates) -> Tensor:
        """The predicted velocity `(B, C, h, w)`."""
        return denoiser(
            noisy,
            encoder_hidden_states=text.hidden,
            pooled_projections=text.pooled,
            timestep=1000 * self.process.sigma(times.float()),
            return_dict=False,
        )[0]

    def measured_times(self) -> Tensor:
        """Times `(8,)`."""
        return torch.linspace(0.0625, 0.9375, 8)

    def sampling(self, steps: int) -> list[tuple[Tensor, Advance]]:
        """Euler's steps along the velocity."""
        times = self.process.sampling_times(steps)

        def advance(now: float, after: float) -> Advance:
            return lambda x, output: self.process.step(x, output, now, after)

        return [(torch.tensor(now), advance(now, after)) for now, after in zip(times[:-1], times[1:], strict=True)]

    def write(self, folder: Path, modules: Mapping[str, Any]) -> None:
        """Transformer, text encoder and scheduler; autoencoder and tokenizer are those of the shipped UNet miniature."""
        modules["denoiser"].save_pretrained(folder / self.component, safe_serialization=True)
        modules["text_encoder"].save_pretrained(folder / "text_encoder", safe_serialization=True)
        FlowMatchEulerDiscreteScheduler(shift=self.process.shift).save_pretrained(folder / "scheduler")
        index = {
            "_class_name": "StableDiffusion3Pipeline",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
            "transformer": ["diffusers", "SD3Transformer2DModel"],
        }
        for name, content in (("model_index.json", index), ("bestiary.json", {"backbone": self.backbone.name})):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1.5: 1000 steps, scaled linear betas, epsilon prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def snr_weights(alphas_cumprod: Tensor, *, floor: float = 0.0, gamma: float = MIN_SNR_GAMMA) -> Tensor:
    """Loss weight of an epsilon objective by timestep, from (T,) alphas: SNR clamped to floor..gamma over SNR."""
    snr = alphas_cumprod / (1 - alphas_cumprod)  # (T,)
    return snr.clamp(floor, gamma) / snr


def add_noise(latents: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """Forward process at cumulative signal share `alpha` (B,): latents and noise (B, C, h, w) -> (B, C, h, w)."""
    alpha = alpha[:, None, None, None]
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


SHAPES: dict[ShapeName, DenoiserShape] = {"unet": UNetShape(), "dit": DiTShape()}
"""Every shape by the name that commands give it."""
