"""Stable Diffusion 1.5, 2, XL and the demo model over the modules of diffusers and transformers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...concepts.denoiser.adapters import Adapters
from ...concepts.denoiser.backbone import Backbone
from ...concepts.denoiser.denoiser import (
    AttentionRequest,
    Conditioning,
    NetworkOutput,
    PromptLayout,
    PromptPiece,
    TextSide,
)
from ...concepts.denoiser.process import DiscreteProcess
from ...concepts.errors import BestiaryError
from ..learning.denoiser.attention_capture import (
    build_capture,
    check_names,
    halved,
    install_fused_attention,
    reading_features,
)
from .autoencoder import Autoencoder
from .denoiser_lora import module_adapters
from .module_network import ModuleNetwork
from .sampling import SamplingDenoiser

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel


@dataclass(frozen=True)
class DenoiserParts:
    """What a diffusers folder holds, loaded: the constructor's material."""

    unet: "UNet2DConditionModel"
    vae: "AutoencoderKL | AutoencoderTiny | None"
    text: TextSide | None
    process: DiscreteProcess
    scheduler_config: Mapping[str, Any]
    """The folder's scheduler_config.json, from which samplers are built."""
    memory_format: torch.memory_format = torch.channels_last
    """Layout of the denoiser's convolution weights and inputs."""
    vae_memory_format: torch.memory_format = torch.channels_last
    """Likewise of the autoencoder."""
    float32_backward: bool = False
    """Run attention that will be differentiated in float32 (see `FusedAttention`)."""


class DiffusersDenoiser(SamplingDenoiser):
    """A latent diffusion model over diffusers modules; all weights are frozen, adapters are float32 parameters."""

    network: "UnetNetwork"
    images: Autoencoder

    def __init__(self, backbone: Backbone, parts: DenoiserParts) -> None:
        """Take over the modules: freeze them, give every attention layer fused attention that can be asked for columns."""
        network = UnetNetwork(backbone, parts)
        images = Autoencoder(parts.vae, backbone, network, parts.vae_memory_format)
        super().__init__(backbone, parts.text or NoTextEncoders(), images, parts.process, network)
        self.scheduler_config = dict(parts.scheduler_config)

    @property
    def unet(self) -> "UNet2DConditionModel":
        """The network's module."""
        return self.network.unet

    @property
    def vae(self) -> "AutoencoderKL | AutoencoderTiny | None":
        """The autoencoder's module; None once it was dropped."""
        return self.images.vae

    @property
    def autoencoder_dtype(self) -> torch.dtype:
        """Dtype in which the autoencoder computes; some overflow in the denoiser's."""
        return self.images.dtype

    def drop_autoencoder(self) -> None:
        """Free the autoencoder, for a training run that reads cached latents."""
        self.images.vae = None


class UnetNetwork(ModuleNetwork):
    """A UNet of diffusers as a `Network`. Predictions come back in float32."""

    def __init__(self, backbone: Backbone, parts: DenoiserParts) -> None:
        """Take over the UNet of `parts` and freeze it."""
        super().__init__(parts.unet, parts.unet.conv_in)
        self._backbone, self._process = backbone, parts.process
        self.unet = parts.unet
        self._memory_format = parts.memory_format
        # attention that can be asked for columns, and the names by which layers are asked
        install_fused_attention(self.unet, parts.float32_backward)
        levels = len(self.unet.config["block_out_channels"])
        self._layers = dict(_cross_attention_layers(self.unet, levels))
        self._blocks = dict(_feature_blocks(self.unet, levels))
        self.adapters: Adapters = module_adapters(self.unet, lambda: self.device)
        self._known_sizes: dict[tuple[int, int], Tensor] = {}

    def attention_grids(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Every cross-attention layer, in running order -> (height, width) of its grid for latents of `size` = (h, w)."""
        return {name: halved(size, factor) for name, factor in self._layers.items()}

    def method_layers(self) -> tuple[str, ...]:
        """Cross-attention layers on the grid the method reads (image edge / `backbone.attention_divisor`)."""
        factor = self._backbone.attention_divisor // self._backbone.latent_factor
        return tuple(name for name, own in self._layers.items() if own == factor)

    def feature_grids(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Every block whose activations can be read -> (height, width) of them for latents of `size` = (h, w)."""
        return {name: halved(size, factor) for name, factor in self._blocks.items()}

    def predict(
        self,
        latents: Tensor,
        times: Tensor,
        conditioning: Conditioning,
        attention: AttentionRequest | None = None,
        features: Sequence[str] = (),
    ) -> NetworkOutput:
        """One evaluation at scaled, noised latents `(B, C, h, w)` and times `(B,)` in (0, 1].

        Attention columns and features come back float32 and differentiable; nothing is kept that was not asked for.

        Raises:
            BestiaryError: an unknown layer or block, or no layer on the method's grid.
        """
        latents = latents.to(self.device, self.dtype, memory_format=self._memory_format)
        size = (latents.shape[2], latents.shape[3])
        capture = None
        if attention is not None:
            grids = self.attention_grids(size)
            capture = build_capture(attention, grids, self.method_layers(), self._backbone, self.device)
        check_names(features, self.feature_grids(size), "block")
        blocks = {name: self.unet.get_submodule(name) for name in features}
        # an autocast of the caller must not mix its dtypes into ours
        with torch.autocast(self.device.type, enabled=False), reading_features(blocks) as read:
            prediction = self.unet(
                latents,
                self._process.timesteps(times).to(self.device, torch.float32),
                encoder_hidden_states=conditioning.context.to(self.device, self.dtype),
                cross_attention_kwargs=None if capture is None else {"capture": capture},
                added_cond_kwargs=self._added_conditions(latents, conditioning),
                return_dict=False,
            )[0]  # (B, C, h, w)
        maps = {} if capture is None else {name: columns.float() for name, columns in capture.maps.items()}
        return NetworkOutput(prediction.float(), maps, dict(read))

    def _added_conditions(self, latents: Tensor, text: Conditioning) -> dict[str, Tensor] | None:
        """Pooled text `(B, E)` and sizes `(B, 6)` for backbones that take them."""
        if self.unet.config["addition_embed_type"] != "text_time":
            return None
        if text.pooled is None:
            raise BestiaryError(f"{self._backbone.name} needs the pooled text vector, but the conditioning has none")
        # not given: a whole picture at the size of the latent
        sizes = text.sizes
        if sizes is None:
            sizes = self._whole_picture(latents.shape[-2], latents.shape[-1]).expand(latents.shape[0], -1)  # (B, 6)
        # half precision would round 1000 pixels and 1004 to one number
        return {
            "text_embeds": text.pooled.to(self.device, self.dtype),
            "time_ids": sizes.to(self.device, torch.float32),
        }

    def _whole_picture(self, height: int, width: int) -> Tensor:
        """Sizes `(6,)` of an uncropped picture with a latent of `height` x `width`; made once, to spare the device a copy."""
        key = (height, width)
        if key not in self._known_sizes:
            rows, columns = (edge * self._backbone.latent_factor for edge in key)
            self._known_sizes[key] = torch.tensor([rows, columns, 0, 0, rows, columns], device=self.device)
        return self._known_sizes[key]


class NoTextEncoders:
    """The text side of a model that was loaded without text encoders: every use says so."""

    def tokenize(self, pieces: Sequence[PromptPiece], chunks: int | None = None) -> PromptLayout:
        """Raises BestiaryError."""
        raise self._fault()

    def encode(self, prompts: Sequence[PromptLayout], vectors: Mapping[str, Tensor] | None) -> Conditioning:
        """Raises BestiaryError, whatever vectors `(B, P, W)` are given."""
        raise self._fault()

    def word_vectors(self, words: str) -> dict[str, Tensor]:
        """Raises BestiaryError instead of giving rows `(n, W)`."""
        raise self._fault()

    def unknown_words(self, words: str) -> list[str]:
        """Raises BestiaryError."""
        raise self._fault()

    @staticmethod
    def _fault() -> BestiaryError:
        return BestiaryError("this denoiser was loaded without text encoders: load the whole model to use prompts")


def _level_of(path: str, num_levels: int) -> int:
    """How often the latent is halved where the attention and residual layers of a block run."""
    parts = path.split(".")
    if parts[0] == "down_blocks":
        return int(parts[1])
    if parts[0] == "up_blocks":
        return num_levels - 1 - int(parts[1])
    return num_levels - 1


def _cross_attention_layers(unet: nn.Module, num_levels: int) -> Iterator[tuple[str, int]]:
    """Name and factor of each, in the order in which they run; its maps are `(B, P, h / factor, w / factor)`."""
    order = ("down_blocks", "mid_block", "up_blocks")
    names = [name for name, _ in unet.named_modules() if name.endswith(".attn2")]
    for name in sorted(names, key=lambda name: order.index(name.split(".")[0])):
        yield name, 2 ** _level_of(name, num_levels)


def _feature_blocks(unet: "UNet2DConditionModel", num_levels: int) -> Iterator[tuple[str, int]]:
    """Whole blocks, whose outputs `(B, D, h, w)` lie behind the down- or upsampler, and the layers in them."""
    blocks = [
        *((f"down_blocks.{index}", block) for index, block in enumerate(unet.down_blocks)),
        ("mid_block", unet.mid_block),
        *((f"up_blocks.{index}", block) for index, block in enumerate(unet.up_blocks)),
    ]
    for name, block in blocks:
        # layers lie before the block's down- or upsampler, its output behind it
        level = _level_of(name, num_levels)
        for kind in ("resnets", "attentions"):
            for index in range(len(getattr(block, kind, ()))):
                yield f"{name}.{kind}.{index}", 2**level
        yield name, 2 ** (level + _level_change(block))


def _level_change(block: nn.Module) -> int:
    """How a block changes the level of `(B, D, h, w)`: 1 halves the grid, -1 doubles it, 0 keeps it."""
    if getattr(block, "downsamplers", None):
        return 1
    return -1 if getattr(block, "upsamplers", None) else 0
