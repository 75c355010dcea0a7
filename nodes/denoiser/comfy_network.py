"""ComfyUI's UNet as a network: no second copy of the weights.

Layers are called by diffusers' names, so that specs, LoRA files and settings mean the same here and on the command line.
What a call needs besides ComfyUI's own code (attention whose columns can be read, adapters, recomputed blocks) hangs on
the modules only while it lasts, or while a training lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...concepts.denoiser.backbone import Backbone
from ...concepts.denoiser.denoiser import AttentionRequest, Conditioning, NetworkOutput
from ...concepts.denoiser.process import DiscreteProcess
from ...concepts.errors import BestiaryError
from ...trainer.learning.denoiser.attention_capture import (
    AttentionCapture,
    build_capture,
    check_names,
    halved,
    reading_features,
)
from .patched_network import PatchedNetwork
from .unet_layers import read_unet_layers
from .unet_training import UnetHooks


class ComfyNetwork(PatchedNetwork):
    """The UNet of a ModelPatcher as a `Network`; the patches on the MODEL (LoRA and so on) stay in force."""

    def __init__(self, patcher: Any, backbone: Backbone, process: DiscreteProcess) -> None:
        """`patcher`: a clone of the MODEL, on which we may hang things."""
        self._process = process
        self._unet: nn.Module = patcher.model.diffusion_model
        self._layers = read_unet_layers(self._unet, patcher.model.model_config.unet_config)
        super().__init__(patcher, backbone, UnetHooks(self._layers, lambda: self.device))

    def attention_grids(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Every cross-attention layer, in running order -> (height, width) of its grid for latents of `size` = (h, w)."""
        return {name: halved(size, factor) for name, factor in self._layers.cross_attention().items()}

    def method_layers(self) -> tuple[str, ...]:
        """Cross-attention layers on the grid the method reads (image edge / `backbone.attention_divisor`)."""
        factor = self._backbone.attention_divisor // self._backbone.latent_factor
        return tuple(name for name, own in self._layers.cross_attention().items() if own == factor)

    def feature_grids(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Every block whose activations can be read -> (height, width) of them for latents of `size` = (h, w)."""
        return {name: halved(size, self._layers.factors[name]) for name in self._layers.blocks}

    def predict(
        self,
        latents: Tensor,
        times: Tensor,
        conditioning: Conditioning,
        attention: AttentionRequest | None = None,
        features: Sequence[str] = (),
    ) -> NetworkOutput:
        """One evaluation at scaled, noised latents `(B, C, h, w)` and times `(B,)` in (0, 1].

        Attention columns and features come back float32 and differentiable.

        Raises:
            BestiaryError: an unknown layer or block, no layer on the method's grid, or one whose attention a patch on the
                MODEL has replaced.
        """
        self._load()
        # what is to be read is settled before the model runs
        size, capture = (latents.shape[2], latents.shape[3]), None
        if attention is not None:
            grids = self.attention_grids(size)
            capture = build_capture(attention, grids, self.method_layers(), self._backbone, self.device)
        check_names(features, self.feature_grids(size), "block")
        blocks = {name: self._layers.blocks[name] for name in features}
        x = latents.to(self.device, self.dtype)  # (B, C, h, w)
        timesteps = self._process.timesteps(times).to(self.device, torch.float32)  # (B,)
        # an autocast of the caller must not mix its dtypes into ours
        exact = torch.autocast(self.device.type, enabled=False)
        with exact, self._hooked(), self._hooks.reading(capture), reading_features(blocks) as read:
            prediction = self._unet(
                x,
                timesteps,
                context=conditioning.context.to(self.device, self.dtype),
                y=self._size_conditions(latents, conditioning),
                transformer_options=self._options(timesteps),
            )  # (B, C, h, w)
        if capture is not None:
            _check_captured(capture)
        maps = {} if capture is None else {name: columns.float() for name, columns in capture.maps.items()}
        return NetworkOutput(prediction.float(), maps, dict(read))

    def _options(self, timesteps: Tensor) -> dict[str, object]:
        """What patches of other nodes expect beside the activations; a fresh dictionary, since the UNet writes into it."""
        # the noise level of every timestep, as patches of other nodes read it
        table = self._patcher.get_model_object("model_sampling").sigmas.to(timesteps.device)  # (T,)
        own = self._patcher.model_options.get("transformer_options", {})
        return {**own, "sigmas": table[timesteps.round().long()], "cond_or_uncond": [0]}

    def _size_conditions(self, latents: Tensor, text: Conditioning) -> Tensor | None:
        """Pooled text and embedded sizes `(B, E_pooled + 6 * 256)` for backbones that take them."""
        base = self._patcher.model
        if not base.adm_channels:
            return None
        if text.pooled is None:
            raise BestiaryError(f"{self._backbone.name} needs the pooled text vector, but the conditioning has none")
        # not given: a whole picture at the size of the latent
        sizes = text.sizes
        if sizes is None:
            height, width = (edge * self._backbone.latent_factor for edge in latents.shape[-2:])
            sizes = torch.tensor([[height, width, 0, 0, height, width]]).expand(len(latents), -1)  # (B, 6)
        embedded = base.embedder(sizes.to(self.device).float().flatten()).view(len(latents), -1)  # (B, 6 * 256)
        return torch.cat([text.pooled.to(embedded), embedded], dim=1).to(self.dtype)


def _check_captured(capture: AttentionCapture) -> None:
    missing = [name for name in capture.grids if name not in capture.maps]
    if missing:
        raise BestiaryError(
            f"the attention of {missing[0]} cannot be read: another node (such as an IP-Adapter) has replaced it on this "
            "MODEL; connect the MODEL from before that node"
        )
