"""What diffusion transformers of diffusers have in common: joint attention that can be read, token grids, adapters, recomputation.

What differs (how latents enter, which number stands for a time, which layers there are) stands in one file per family: sd3_denoiser.py, flux_denoiser.py.
Letters: B batch, C channels of latents, h and w their grid, N tokens of the image, D their width, L text tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ...concepts.denoiser.adapters import Adapters
from ...concepts.denoiser.backbone import Backbone
from ...concepts.denoiser.denoiser import AttentionRequest, Conditioning, NetworkOutput, TextSide
from ...concepts.denoiser.joint_columns import JointKeys
from ...concepts.denoiser.process import FlowProcess
from ...concepts.errors import BestiaryError
from ..learning.denoiser.attention_capture import AttentionCapture, build_capture, check_names, reading_features
from .autoencoder import Autoencoder
from .denoiser_lora import AttentionLayers, module_adapters
from .diffusers_denoiser import NoTextEncoders
from .module_network import ModuleNetwork
from .sampling import SamplingDenoiser

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny


@dataclass(frozen=True)
class TransformerParts:
    """What a folder of a diffusion transformer holds, loaded: the constructor's material."""

    transformer: nn.Module
    """The family's own class of diffusers."""
    vae: "AutoencoderKL | AutoencoderTiny | None" = None
    text: TextSide | None = None
    process: FlowProcess | None = None
    """None takes that of the published models of the family."""
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    """The folder's scheduler_config.json."""


class ReadAttention:
    """Attention processor of one layer: fused attention, and columns if a call asks this layer for them."""

    def __init__(self, layer: str) -> None:
        """`layer`: name under which its columns are asked for."""
        self.layer = layer


class TransformerNetwork(ModuleNetwork, ABC):
    """A transformer of diffusers with joint attention as a `Network`. Predictions come back in float32."""

    text_first: bool
    """Whether text stands before the image among the keys of its attention."""
    attention: AttentionLayers
    """How the projections of attention are known by their names."""

    def __init__(self, backbone: Backbone, transformer: nn.Module, process: FlowProcess) -> None:
        """Take over the transformer, freeze it, and give its attention layers what can be asked for columns.

        Raises:
            BestiaryError: an attention layer was replaced by another program's.
        """
        super().__init__(transformer, transformer.proj_out)
        self._backbone, self._process = backbone, process
        # the families share no class that says what they hold
        self.transformer: Any = transformer
        self._patch = backbone.patch
        self._install()
        self.adapters: Adapters = module_adapters(
            self.transformer, lambda: self.device, self.attention, backbone.lora_prefix
        )

    @abstractmethod
    def method_layers(self) -> tuple[str, ...]:
        """The attention layers that part training reads where none are named."""

    @abstractmethod
    def _install(self) -> None:
        """Give every attention layer its processor."""

    @abstractmethod
    def _attention_names(self) -> list[str]:
        """The joint attention layers in running order."""

    @abstractmethod
    def _image_tokens(self, output: Any) -> Tensor:
        """The image's tokens `(B, N, D)` in what a block gives."""

    @abstractmethod
    def _evaluate(self, latents: Tensor, sigma: Tensor, text: Conditioning, options: dict[str, Any] | None) -> Tensor:
        """The velocity `(B, C, h, w)` at noised latents `(B, C, h, w)` and levels `(B,)`."""

    def attention_grids(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Every joint attention layer, in running order -> (height, width) of the token grid for latents of `size` = (h, w)."""
        return dict.fromkeys(self._attention_names(), self._grid(size))

    def feature_grids(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Every block -> (height, width) of its image tokens for latents of `size` = (h, w)."""
        return {name.removesuffix(".attn"): grid for name, grid in self.attention_grids(size).items()}

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
            BestiaryError: an unknown layer or block, latents that no whole patches cover, or no pooled text.
        """
        latents = latents.to(self.device, self.dtype)
        size = (latents.shape[2], latents.shape[3])
        self._check(size, conditioning)
        capture = self._capture(attention, size, conditioning)
        check_names(features, self.feature_grids(size), "block")
        blocks = {name: self.transformer.get_submodule(name) for name in features}
        sigma = self._process.sigma(times).to(self.device, torch.float32)  # (B,)
        # an autocast of the caller must not mix its dtypes into ours
        with (
            torch.autocast(self.device.type, enabled=False),
            reading_features(blocks, self._image_tokens) as read,
        ):
            prediction = self._evaluate(latents, sigma, conditioning, None if capture is None else {"capture": capture})
        activations = {name: self._on_grid(tokens, size) for name, tokens in read.items()}
        return NetworkOutput(prediction.float(), {} if capture is None else _closed(capture), activations)

    def _capture(
        self, request: AttentionRequest | None, size: tuple[int, int], text: Conditioning
    ) -> AttentionCapture | None:
        if request is None:
            return None
        capture = build_capture(request, self.attention_grids(size), self.method_layers(), self._backbone, self.device)
        capture.keys = JointKeys(text.context.shape[1], self.text_first)
        return capture

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self._patch, size[1] // self._patch

    def _on_grid(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """`(B, N, D)` -> `(B, D, h / patch, w / patch)`."""
        return tokens.transpose(1, 2).unflatten(2, self._grid(size))

    def _pooled(self, text: Conditioning) -> Tensor:
        """Pooled text `(B, E)`."""
        if text.pooled is None:
            raise BestiaryError(f"{self._backbone.name} needs the pooled text vector, but the conditioning has none")
        return text.pooled.to(self.device, self.dtype)

    def _check(self, size: tuple[int, int], text: Conditioning) -> None:
        if size[0] % self._patch or size[1] % self._patch:
            raise BestiaryError(
                f"latents of {size[0]} x {size[1]} are not covered by patches of {self._patch} x {self._patch}: choose pictures whose edges are "
                f"multiples of {self._backbone.pixel_step} pixels"
            )
        if text.context.shape[-1] != self._backbone.context_width:
            raise BestiaryError(
                f"the text is {text.context.shape[-1]} wide, {self._backbone.name} reads {self._backbone.context_width}: text encoders and "
                "transformer are of different models; take both from one"
            )


class TransformerDenoiser(SamplingDenoiser):
    """A latent diffusion transformer; all weights are frozen, adapters are float32 parameters."""

    network: TransformerNetwork
    images: Autoencoder
    family: ClassVar[type[TransformerNetwork]]
    """Its network."""
    published: ClassVar[FlowProcess]
    """The process of the family's published models."""

    def __init__(self, backbone: Backbone, parts: TransformerParts) -> None:
        """Take over the modules and freeze them; `backbone` has the widths that they really have."""
        process = parts.process or self.published
        network = self.family(backbone, parts.transformer, process)
        images = Autoencoder(parts.vae, backbone, network, torch.contiguous_format)
        super().__init__(backbone, parts.text or NoTextEncoders(), images, process, network)
        self.scheduler_config = dict(parts.scheduler_config)

    def drop_autoencoder(self) -> None:
        """Free the autoencoder, for a training run that reads cached latents."""
        self.images.vae = None


def refuse_other_processors(layers: Mapping[str, Any], known: Sequence[str]) -> None:
    """Make sure that attention layers are the model's own.

    Raises:
        BestiaryError: the processor of one is of another class than those named.
    """
    for name, layer in layers.items():
        kind = type(layer.processor).__name__
        if kind not in known:
            raise BestiaryError(
                f"attention layer {name} was replaced by {kind} (an IP-Adapter, for instance), which is not read: load the model without it"
            )


def _closed(capture: AttentionCapture) -> dict[str, Tensor]:
    """What was collected, float32 `(B, P, h, w)`; a backward pass that computes layers again adds nothing."""
    capture.open = False
    return {name: maps.float() for name, maps in capture.maps.items()}
