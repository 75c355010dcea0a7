"""The Denoiser protocol over the modules of diffusers and transformers: Stable Diffusion 1.5, 2, XL and the demo model."""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...concepts.denoiser.backbone import Backbone
from ...concepts.denoiser.denoiser import (
    AttentionRequest,
    DenoiserOutput,
    LoraSpec,
    NoiseSchedule,
    PromptPiece,
    PromptTokens,
    TextConditioning,
)
from ...concepts.errors import BestiaryError
from ..learning.denoiser.attention_capture import AttentionCapture, halved, install_fused_attention
from .denoiser_lora import DenoiserLora
from .text_conditioning import TextEncoders

logger = logging.getLogger(__name__)

NO_SPREAD = -30.0
"""Log-variance of an autoencoder without a posterior: its latents are the same at every draw."""


@dataclass(frozen=True)
class DenoiserParts:
    """What a diffusers folder holds, loaded: the constructor's material."""

    unet: nn.Module
    vae: nn.Module | None
    text: TextEncoders | None
    schedule: NoiseSchedule
    scheduler_config: Mapping[str, object]
    """The folder's scheduler_config.json, from which samplers are built."""
    memory_format: torch.memory_format = torch.channels_last
    """Layout of the denoiser's convolution weights and inputs."""
    vae_memory_format: torch.memory_format = torch.channels_last
    """Likewise of the autoencoder."""
    float32_backward: bool = False
    """Run attention that will be differentiated in float32 (see `FusedAttention`)."""


class DiffusersDenoiser:
    """A latent diffusion model over diffusers modules; see `bestiary.concepts.denoiser.denoiser.Denoiser` for the protocol.

    All weights are frozen. Predictions come back in float32. Adapters are float32 parameters.
    """

    def __init__(self, backbone: Backbone, parts: DenoiserParts) -> None:
        """Take over the modules: freeze them, give every attention layer fused attention that can be asked for columns."""
        self.backbone = backbone
        self.schedule = parts.schedule
        self.scheduler_config = dict(parts.scheduler_config)
        # frozen: only adapters and learned vectors ever get gradients
        self.unet = parts.unet.eval().requires_grad_(False)
        self.vae = None if parts.vae is None else parts.vae.eval().requires_grad_(False)
        self.text = parts.text
        self._autoencoder_config = {} if parts.vae is None else dict(parts.vae.config)
        self._num_levels = len(self.unet.config.block_out_channels)
        self._memory_format, self._vae_memory_format = parts.memory_format, parts.vae_memory_format
        # attention that can be asked for columns, and the names by which layers are asked
        install_fused_attention(self.unet, parts.float32_backward)
        self._layers = dict(_cross_attention_layers(self.unet, self._num_levels))
        self._blocks = dict(_feature_blocks(self.unet, self._num_levels))
        self._lora = DenoiserLora(self.unet)
        self._known_sizes: dict[tuple[int, int], Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where the denoiser's weights are."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the denoiser computes."""
        return self.unet.conv_in.weight.dtype

    @property
    def autoencoder_dtype(self) -> torch.dtype:
        """Dtype in which the autoencoder computes; some overflow in the denoiser's."""
        return self._autoencoder().dtype

    # text

    def tokenize(self, pieces: Sequence[PromptPiece], chunks: int | None = None) -> PromptTokens:
        """Lay out a prompt; `chunks` fixes C (longer prompts are cut, shorter ones filled), None takes what it needs."""
        return self._text_encoders().tokenize(pieces, chunks)

    def encode_prompts(self, prompts: Sequence[PromptTokens], vectors: Tensor | None) -> TextConditioning:
        """Encode B prompts with learned vectors `(B, P, D)` in their places; differentiable in the vectors."""
        return self._text_encoders().encode(prompts, vectors)

    def empty_conditioning(self) -> TextConditioning:
        """What an empty negative prompt says, `(1, L, E)`: its encoding, as in every graph of ComfyUI and in training captions.

        diffusers' own pipeline gives zeros for SDXL instead; pictures of a graph and of a command would then differ.
        """
        return self.encode_prompts([self.tokenize([], chunks=1)], None)

    def word_vectors(self, words: str) -> Tensor:
        """Embedding rows `(n, D)` of plain words, all text encoders side by side."""
        return self._text_encoders().word_vectors(words)

    def unknown_words(self, words: str) -> list[str]:
        """Words of `words` that the tokenizer does not know."""
        return self._text_encoders().unknown_words(words)

    # denoiser

    def cross_attention_layers(self) -> Mapping[str, int]:
        """Name of every cross-attention layer -> its downsampling relative to the latent (1, 2, 4, 8)."""
        return dict(self._layers)

    def method_layers(self) -> tuple[str, ...]:
        """Cross-attention layers on the grid the method reads (image edge / `backbone.attention_divisor`)."""
        factor = self.backbone.attention_divisor // self.backbone.latent_factor
        return tuple(name for name, own in self._layers.items() if own == factor)

    def feature_blocks(self) -> Mapping[str, int]:
        """Name of every block whose activations can be read -> its downsampling relative to the latent."""
        return dict(self._blocks)

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: TextConditioning,
        attention: AttentionRequest | None = None,
        features: Sequence[str] = (),
    ) -> DenoiserOutput:
        """One evaluation at scaled, noised latents `(B, C, h, w)` and timesteps `(B,)`.

        Attention columns and features come back float32 and differentiable; nothing is kept that was not asked for.

        Raises:
            BestiaryError: an unknown layer or block, or no layer on the method's grid.
        """
        latents = latents.to(self.device, self.dtype, memory_format=self._memory_format)
        capture = None if attention is None else self._capture(attention, latents)
        # an autocast of the caller must not mix its dtypes into ours
        with torch.autocast(self.device.type, enabled=False), self._reading(features) as read:
            prediction = self.unet(
                latents,
                timesteps.to(self.device),
                encoder_hidden_states=text.context.to(self.device, self.dtype),
                cross_attention_kwargs=None if capture is None else {"capture": capture},
                added_cond_kwargs=self._added_conditions(latents, text),
                return_dict=False,
            )[0]  # (B, C, h, w)
        maps = {} if capture is None else {name: columns.float() for name, columns in capture.maps.items()}
        return DenoiserOutput(prediction.float(), maps, dict(read))

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass (about a third more work for much less memory), or keep them."""
        if not enabled:
            self.unet.disable_gradient_checkpointing()
            return
        # nothing in the denoiser draws random numbers, so their state need not be fetched from the device
        self.unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, preserve_rng_state=False))

    def _capture(self, request: AttentionRequest, latents: Tensor) -> AttentionCapture:
        names = self.method_layers() if request.layers is None else request.layers
        if not names:
            raise BestiaryError(
                f"no cross-attention layer lies on the grid of image / {self.backbone.attention_divisor}: name layers "
                f"yourself; there are {_listed(self._layers)}"
            )
        _check_names(names, self._layers, "cross-attention layer")
        # the grid of each layer follows from the latent's size and how often it was halved before
        size = (latents.shape[2], latents.shape[3])  # of (B, C, h, w)
        grids = {name: halved(size, self._layers[name]) for name in names}
        return AttentionCapture(request.positions.to(self.device), grids, request.method)

    @contextmanager
    def _reading(self, blocks: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Collect activations of blocks from calls of this thread, as long as the context lasts."""
        _check_names(blocks, self._blocks, "block")
        read: dict[str, Tensor] = {}
        thread = threading.get_ident()

        # hooks see calls of all threads; only this one asked
        def keep(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
            if threading.get_ident() == thread:
                first = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
                read[name] = first.float()  # (B, D, h, w)

        handles = [self.unet.get_submodule(name).register_forward_hook(partial(keep, name)) for name in blocks]
        try:
            yield read
        finally:
            for handle in handles:
                handle.remove()

    def _added_conditions(self, latents: Tensor, text: TextConditioning) -> dict[str, Tensor] | None:
        """Pooled text `(B, E)` and sizes `(B, 6)` for backbones that take them."""
        if self.unet.config.addition_embed_type != "text_time":
            return None
        if text.pooled is None:
            raise BestiaryError(f"{self.backbone.name} needs the pooled text vector, but the conditioning has none")
        # not told: a whole picture at the size of the latent
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
            rows, columns = (edge * self.backbone.latent_factor for edge in key)
            self._known_sizes[key] = torch.tensor([rows, columns, 0, 0, rows, columns], device=self.device)
        return self._known_sizes[key]

    # autoencoder

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance `(B, C, h, w)` float32, unscaled, of images `(B, 3, H, W)` in 0..1."""
        vae = self._autoencoder()
        # the autoencoder works on -1..1
        pixels = (images * 2 - 1).to(self.device, vae.dtype, memory_format=self._vae_memory_format)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            encoded = vae.encode(pixels)
        if not hasattr(encoded, "latent_dist"):  # AutoencoderTiny has no posterior
            latents = encoded.latents.float()  # (B, C, h, w)
            return latents, torch.full_like(latents, NO_SPREAD)
        return encoded.latent_dist.mean.float(), encoded.latent_dist.logvar.float()

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Latents of the autoencoder `(B, C, h, w)` -> latents of the denoiser, same shape."""
        # the denoiser wants about unit deviation around zero
        shift, scale = self._shift_and_scale()
        return (latents - shift) * scale

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Denoiser latents `(B, C, h, w)` -> images `(B, 3, H, W)` float32 in 0..1."""
        vae = self._autoencoder()
        shift, scale = self._shift_and_scale()
        latents = (latents.float() / scale + shift).to(self.device, vae.dtype, memory_format=self._vae_memory_format)
        with torch.autocast(self.device.type, enabled=False):
            pixels = vae.decode(latents, return_dict=False)[0]  # (B, 3, H, W) in -1..1
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    # adapters

    def add_lora(self, spec: LoraSpec) -> Mapping[str, nn.Parameter]:
        """Attach fresh adapters; their parameters by kohya name, down `(rank, in)` and up `(out, rank)`, float32."""
        return self._lora.add(spec)

    def lora_tensors(self) -> dict[str, Tensor]:
        """The trainable adapters under kohya names: `....lora_down.weight` `(r, in)`, `.lora_up.weight` `(out, r)`, `.alpha`."""
        return self._lora.tensors()

    def load_lora(self, tensors: Mapping[str, Tensor], strength: float = 1.0) -> int:
        """Add adapters `(r, I)` and `(O, r)` under any naming; how many layers they reached, zero is an error."""
        return self._lora.load(tensors, strength)

    def unload_lora(self) -> None:
        """Take off all adapters."""
        self._lora.unload()

    # parts that may be absent

    def drop_autoencoder(self) -> None:
        """Free the autoencoder, for a training run that reads cached latents."""
        self.vae = None

    def _autoencoder(self) -> nn.Module:
        if self.vae is None:
            raise BestiaryError("the autoencoder was dropped from this denoiser: load the model again to use images")
        return self.vae

    def _text_encoders(self) -> TextEncoders:
        if self.text is None:
            raise BestiaryError("this denoiser was loaded without text encoders: load the whole model to use prompts")
        return self.text

    def _shift_and_scale(self) -> tuple[float, float]:
        config = self._autoencoder_config
        return config.get("shift_factor") or 0.0, config["scaling_factor"]


def _listed(names: Mapping[str, int]) -> str:
    return ", ".join(f"{name} (1/{factor})" for name, factor in names.items())


def _check_names(names: Sequence[str], known: Mapping[str, int], kind: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BestiaryError(f"unknown {kind} {unknown[0]!r}: choose from {_listed(known)}")


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


def _feature_blocks(unet: nn.Module, num_levels: int) -> Iterator[tuple[str, int]]:
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
