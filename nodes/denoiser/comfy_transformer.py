"""ComfyUI's SD3 and Flux as networks: joint attention that can be read, adapters on slices of fused layers, no second copy of the weights.

Layers are called by diffusers' names, so that specs, LoRA files and settings mean the same here and on the command line. Text stands before the image in both.
Letters: B batch, C channels of latents, h and w their grid, N image tokens, L text tokens, D width of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...concepts.denoiser.backbone import Backbone
from ...concepts.denoiser.denoiser import AttentionRequest, Conditioning, NetworkOutput
from ...concepts.denoiser.joint_columns import JointKeys
from ...concepts.denoiser.process import FlowProcess
from ...concepts.errors import BestiaryError
from ...trainer.learning.denoiser.attention_capture import (
    AttentionCapture,
    build_capture,
    check_names,
    reading_features,
)
from .patched_network import PatchedNetwork
from .transformer_layers import read_transformer_layers
from .transformer_training import TransformerHooks

GUIDANCE = 1.0
"""Guidance that a distilled Flux receives where a conditioning has none: in training."""
_HOST_BLOCKS = {"transformer_blocks": "double_block", "single_transformer_blocks": "single_block"}
"""ComfyUI's names of kinds of blocks in patches that replace them."""


class ComfyTransformer(PatchedNetwork):
    """The transformer of a ModelPatcher as a `Network`; the patches on the MODEL (LoRA and so on) stay in force."""

    def __init__(self, patcher: Any, backbone: Backbone, process: FlowProcess) -> None:
        """`patcher`: a clone of the MODEL, on which we may hang things.

        Raises:
            BestiaryError: it is neither SD3 nor Flux.
        """
        self._process = process
        self._transformer: Any = patcher.model.diffusion_model
        self._layers = read_transformer_layers(self._transformer)
        super().__init__(patcher, backbone, TransformerHooks(self._layers, lambda: self.device, backbone.lora_prefix))

    def attention_grids(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Every joint attention layer, in running order -> (height, width) of the token grid for latents of `size` = (h, w)."""
        return dict.fromkeys(self._layers.attention_names(), self._grid(size))

    def method_layers(self) -> tuple[str, ...]:
        """One middle block of SD3, the last blocks of two streams of Flux."""
        return self._layers.method_layers()

    def feature_grids(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Every block -> (height, width) of its image tokens for latents of `size` = (h, w)."""
        return dict.fromkeys(self._layers.blocks, self._grid(size))

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
            BestiaryError: an unknown layer or block, latents that no whole patches cover, a text of another width or without pooled vector, or
                a block that is read and that a patch on the MODEL has replaced.
        """
        self._load()
        # what is to be read is settled before the model runs
        size = (latents.shape[2], latents.shape[3])
        self._check(size, conditioning)
        capture = self._capture(attention, size, conditioning)
        check_names(features, self.feature_grids(size), "block")
        self._check_replaced([*([] if capture is None else capture.grids), *features])
        blocks = {name: self._layers.blocks[name] for name in features}
        tokens = partial(_image_tokens, self._layers.family, conditioning.context.shape[1])
        sigma = self._process.sigma(times).to(self.device, torch.float32)  # (B,)
        # an autocast of the caller must not mix its dtypes into ours
        exact = torch.autocast(self.device.type, enabled=False)
        with exact, self._hooked(), self._hooks.reading(capture), reading_features(blocks, tokens) as read:
            prediction = self._evaluate(latents.to(self.device, self.dtype), sigma, conditioning)  # (B, C, h, w)
        maps = {} if capture is None else {name: columns.float() for name, columns in capture.maps.items()}
        activations = {name: own.transpose(1, 2).unflatten(2, self._grid(size)) for name, own in read.items()}
        return NetworkOutput(prediction.float(), maps, activations)

    def _evaluate(self, latents: Tensor, sigma: Tensor, text: Conditioning) -> Tensor:
        """The velocity `(B, C, h, w)` at noised latents `(B, C, h, w)` and levels `(B,)`."""
        own = self._patcher.model_options.get("transformer_options", {})
        options: dict[str, Any] = {"transformer_options": {**own, "sigmas": sigma, "cond_or_uncond": [0]}}
        if self._layers.family == "flux":
            options["guidance"] = self._guidance(text, len(latents))
        # SD3 is given 1000 sigma, Flux sigma: its schedule knows
        timestep = self._patcher.get_model_object("model_sampling").timestep(sigma).float()  # (B,)
        return self._transformer(
            latents,
            timestep,
            context=text.context.to(self.device, self.dtype),
            y=self._pooled(text),
            **options,
        )

    def _guidance(self, text: Conditioning, batch: int) -> Tensor | None:
        """Guidance `(B,)` of a distilled model; None for others, which have no place for it."""
        if not self._transformer.params.guidance_embed:
            return None
        given = text.extras.get("guidance")
        return torch.full((batch,), GUIDANCE, device=self.device) if given is None else given.to(self.device).float()

    def _capture(
        self, request: AttentionRequest | None, size: tuple[int, int], text: Conditioning
    ) -> AttentionCapture | None:
        if request is None:
            return None
        capture = build_capture(request, self.attention_grids(size), self.method_layers(), self._backbone, self.device)
        capture.keys = JointKeys(text.context.shape[1], text_first=True)
        return capture

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self._backbone.patch, size[1] // self._backbone.patch

    def _pooled(self, text: Conditioning) -> Tensor:
        """Pooled text `(B, E)`."""
        if text.pooled is None:
            raise BestiaryError(f"{self._backbone.name} needs the pooled text vector, but the conditioning has none")
        return text.pooled.to(self.device, self.dtype)

    def _check(self, size: tuple[int, int], text: Conditioning) -> None:
        patch = self._backbone.patch
        if size[0] % patch or size[1] % patch:
            raise BestiaryError(
                f"latents of {size[0]} x {size[1]} are not covered by patches of {patch} x {patch}: choose pictures whose edges are multiples of "
                f"{self._backbone.pixel_step} pixels"
            )
        if text.context.shape[-1] != self._backbone.context_width:
            raise BestiaryError(
                f"the text is {text.context.shape[-1]} wide, {self._backbone.name} reads {self._backbone.context_width}: MODEL and CLIP are of "
                "different models; take both from one"
            )

    def _check_replaced(self, names: Sequence[str]) -> None:
        """Raises BestiaryError if another pack's patch replaces a block that is read."""
        replaced = self._patcher.model_options.get("transformer_options", {}).get("patches_replace", {}).get("dit", {})
        for name in names:
            kind, number = name.removesuffix(".attn").split(".")
            if (_HOST_BLOCKS[kind], int(number)) in replaced:
                raise BestiaryError(
                    f"{name} cannot be read: another node (a cache or an IP-Adapter, for instance) has replaced its block on this MODEL; connect "
                    "the MODEL from before that node"
                )


def _image_tokens(family: str, text: int, output: Any) -> Tensor:
    """The image's tokens `(B, N, D)` in what a block gives: text and image, image and text, or both in one stream."""
    if not isinstance(output, tuple):
        tokens = output[:, text:]
    else:
        _, tokens = output if family == "sd3" else output[::-1]
    # the next block writes into them
    return tokens.clone()
