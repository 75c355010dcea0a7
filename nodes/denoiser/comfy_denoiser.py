"""The Denoiser protocol over MODEL, CLIP and VAE as ComfyUI loaded them: no second copy of the weights.

Layers are called by diffusers' names, so that specs, LoRA files and settings mean the same here and on the command line.
What a call needs besides ComfyUI's own code (attention whose columns can be read, adapters, recomputed blocks) hangs on
the modules only while it lasts, or while a training lasts. Letters as in `concepts.denoiser.denoiser`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ...concepts.denoiser.denoiser import (
    AttentionRequest,
    DenoiserOutput,
    LoraSpec,
    PromptPiece,
    PromptTokens,
    TextConditioning,
)
from ...concepts.errors import BestiaryError
from ...trainer.learning.denoiser.attention_capture import AttentionCapture, halved
from ...trainer.learning.denoiser.prompt_encoding import PromptEncoding
from .comfy_autoencoder import ComfyAutoencoder
from .comfy_text import text_encoders
from .denoiser_record import detect_backbone, noise_schedule
from .forward_overrides import ForwardOverrides
from .trainable_weights import make_trainable
from .training_faults import host_in_training
from .unet_layers import read_unet_layers
from .unet_training import UnetHooks


class ComfyDenoiser:
    """A latent diffusion model over ComfyUI's objects; see `concepts.denoiser.denoiser.Denoiser` for the protocol."""

    def __init__(self, model: object, clip: object, vae: object | None = None) -> None:
        """`model` ModelPatcher, `clip` CLIP and `vae` VAE; the MODEL's own patches (LoRA and so on) stay in force.

        Raises:
            BestiaryError: the MODEL or CLIP is of another kind than Stable Diffusion 1.5, 2, XL and the demo model, or
                they do not belong together.
        """
        # a clone: what we hang on it never reaches the graph's own MODEL
        self._patcher, self._clip = model.clone(), clip
        self._unet: nn.Module = model.model.diffusion_model
        self._layers = read_unet_layers(self._unet, model.model.model_config.unet_config)
        # schedule and backbone as this model has them, patches of other nodes included
        self.schedule = noise_schedule(model)
        encoders = text_encoders(clip)
        self.backbone = detect_backbone(model, {name: encoder.width for name, encoder in encoders.items()})
        self._text = PromptEncoding(self.backbone, encoders)
        self._vae = None if vae is None else ComfyAutoencoder(vae)
        self._hooks = UnetHooks(self._layers, self.device, self.dtype)
        self._overrides = ForwardOverrides()
        self._training = False

    @property
    def device(self) -> torch.device:
        """Where the denoiser computes."""
        return torch.device(self._patcher.load_device)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the denoiser computes."""
        base = self._patcher.model
        return base.manual_cast_dtype or base.get_dtype()

    # text

    def tokenize(self, pieces: Sequence[PromptPiece], chunks: int | None = None) -> PromptTokens:
        """Lay out a prompt; `chunks` fixes C (longer prompts are cut, shorter ones filled), None takes what it needs."""
        return self._text.tokenize(pieces, chunks)

    def encode_prompts(self, prompts: Sequence[PromptTokens], vectors: Tensor | None) -> TextConditioning:
        """Encode B prompts with learned vectors `(B, P, D)` in their places; differentiable in the vectors."""
        self._load_text()
        with torch.autocast(self._text.device.type, enabled=False):
            return self._text.encode(prompts, vectors)

    def empty_conditioning(self) -> TextConditioning:
        """What an empty negative prompt says, `(1, L, E)`: its encoding, as everywhere in ComfyUI."""
        return self.encode_prompts([self.tokenize([], chunks=1)], None)

    def word_vectors(self, words: str) -> Tensor:
        """Embedding rows `(n, D)` of plain words, all text encoders side by side."""
        self._load_text()
        return self._text.word_vectors(words)

    def unknown_words(self, words: str) -> list[str]:
        """Words of `words` that the tokenizer does not know."""
        return self._text.unknown_words(words)

    # denoiser

    def cross_attention_layers(self) -> Mapping[str, int]:
        """Name of every cross-attention layer -> its downsampling relative to the latent (1, 2, 4, 8)."""
        return self._layers.cross_attention()

    def method_layers(self) -> tuple[str, ...]:
        """Cross-attention layers on the grid the method reads (image edge / `backbone.attention_divisor`)."""
        factor = self.backbone.attention_divisor // self.backbone.latent_factor
        return tuple(name for name, own in self.cross_attention_layers().items() if own == factor)

    def feature_blocks(self) -> Mapping[str, int]:
        """Name of every block whose activations can be read -> its downsampling relative to the latent."""
        return {name: self._layers.factors[name] for name in self._layers.blocks}

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: TextConditioning,
        attention: AttentionRequest | None = None,
        features: Sequence[str] = (),
    ) -> DenoiserOutput:
        """One evaluation at scaled, noised latents `(B, C, h, w)` and timesteps `(B,)`.

        Attention columns and features come back float32 and differentiable.

        Raises:
            BestiaryError: an unknown layer or block, no layer on the method's grid, or one whose attention a patch on the
                MODEL has replaced.
        """
        self._load_model()
        # what is to be read is settled before the model runs
        capture = None if attention is None else self._capture(attention, latents)
        x = latents.to(self.device, self.dtype)  # (B, C, h, w)
        times = timesteps.to(self.device)
        # an autocast of the caller must not mix its dtypes into ours
        exact = torch.autocast(self.device.type, enabled=False)
        with exact, self._hooked(), self._hooks.reading(capture), self._reading(features) as read:
            prediction = self._unet(
                x,
                times.float(),
                context=text.context.to(self.device, self.dtype),
                y=self._size_conditions(latents, text),
                transformer_options=self._options(times),
            )  # (B, C, h, w)
        if capture is not None:
            _check_captured(capture)
        maps = {} if capture is None else {name: columns.float() for name, columns in capture.maps.items()}
        return DenoiserOutput(prediction.float(), maps, dict(read))

    # autoencoder

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance `(B, C, h, w)` float32, unscaled, of images `(B, 3, H, W)` in 0..1."""
        return self._autoencoder().encode(images)

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Latents of the autoencoder `(B, C, h, w)` -> latents of the denoiser, same shape."""
        return self._patcher.model.process_latent_in(latents)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Denoiser latents `(B, C, h, w)` -> images `(B, 3, H, W)` float32 in 0..1."""
        return self._autoencoder().decode(self._patcher.model.process_latent_out(latents.float()))

    # adapters

    def add_lora(self, spec: LoraSpec) -> Mapping[str, nn.Parameter]:
        """Attach fresh adapters; their parameters by kohya name, down `(rank, in)` and up `(out, rank)`, float32."""
        return self._hooks.add_lora(spec)

    def lora_tensors(self) -> dict[str, Tensor]:
        """The trainable adapters under kohya names: `....lora_down.weight` `(r, in)`, `.lora_up.weight` `(out, r)`, `.alpha`."""
        return self._hooks.lora_tensors()

    def load_lora(self, tensors: Mapping[str, Tensor], strength: float = 1.0) -> int:
        """Add adapters `(r, in)` and `(out, r)` under any naming; how many layers they reached, zero is an error."""
        return self._hooks.load_lora(tensors, strength)

    def unload_lora(self) -> None:
        """Take off all adapters that were added here; those of the MODEL stay."""
        self._hooks.unload_lora()

    # training

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass, or keep them."""
        self._hooks.recompute = enabled

    @contextmanager
    def training(self) -> Iterator[None]:
        """Everything a training needs, as long as it lasts: room, all weights loaded, gradients, hooks on the modules.

        Raises:
            BestiaryError: weights are quantised, or two trainings run on one denoiser.
        """
        if self._training:
            raise BestiaryError("a training runs on this MODEL already: wait for its end or cancel it")
        # ComfyUI runs nodes in inference mode, in which nothing can be learned
        with torch.inference_mode(False), torch.enable_grad(), host_in_training():
            self.make_room()
            # hooks stay on for the whole training, so that no call of it puts them on and off
            self._training = True
            try:
                self._hook()
                yield
            finally:
                self._overrides.take_off()
                self._training = False

    def make_room(self) -> None:
        """Ask ComfyUI to unload what else is on the device, and to load all weights; needed again after previews."""
        import comfy.model_management

        # ComfyUI unloads other models until this much is free: all of them, as its own training does
        comfy.model_management.load_models_gpu(
            [self._patcher, self._clip.patcher], memory_required=1e20, force_full_load=True
        )
        make_trainable(self._patcher.model, "MODEL")
        make_trainable(self._clip.cond_stage_model, "CLIP")

    # inside

    def _hook(self) -> None:
        self._hooks.put_on(self._overrides)

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        """The hooks on the modules for one call, unless a training keeps them there."""
        if self._training:
            yield
            return
        # the modules are shared with the graph: everything comes off again
        self._hook()
        try:
            yield
        finally:
            self._overrides.take_off()

    def _load_model(self) -> None:
        import comfy.model_management

        if not self._training:
            comfy.model_management.load_models_gpu([self._patcher])

    def _load_text(self) -> None:
        import comfy.model_management

        if not self._training:
            comfy.model_management.load_models_gpu([self._clip.patcher])

    def _capture(self, request: AttentionRequest, latents: Tensor) -> AttentionCapture:
        known = self.cross_attention_layers()
        names = self.method_layers() if request.layers is None else request.layers
        if not names:
            raise BestiaryError(
                f"no cross-attention layer lies on the grid of image / {self.backbone.attention_divisor}: name layers "
                f"yourself; there are {_listed(known)}"
            )
        _check_names(names, known, "cross-attention layer")
        # the grid of each layer follows from the latent's size and how often it was halved before
        size = (latents.shape[2], latents.shape[3])  # of (B, C, h, w)
        grids = {name: halved(size, known[name]) for name in names}
        return AttentionCapture(request.positions.to(self.device), grids, request.method)

    @contextmanager
    def _reading(self, blocks: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Collect activations `(B, D, h, w)` of blocks from calls of this thread, as long as the context lasts."""
        _check_names(blocks, self.feature_blocks(), "block")
        read: dict[str, Tensor] = {}
        thread = threading.get_ident()

        def keep(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
            if threading.get_ident() == thread:
                read[name] = output.float()

        handles = [self._layers.blocks[name].register_forward_hook(partial(keep, name)) for name in blocks]
        try:
            yield read
        finally:
            for handle in handles:
                handle.remove()

    def _options(self, timesteps: Tensor) -> dict[str, object]:
        """What patches of other nodes expect beside the activations; a fresh dictionary, since the UNet writes into it."""
        # the noise level of every timestep, as patches of other nodes read it
        sigmas = self._patcher.get_model_object("model_sampling").sigmas.to(timesteps.device)[timesteps]  # (B,)
        own = self._patcher.model_options.get("transformer_options", {})
        return {**own, "sigmas": sigmas, "cond_or_uncond": [0]}

    def _size_conditions(self, latents: Tensor, text: TextConditioning) -> Tensor | None:
        """Pooled text and embedded sizes `(B, E_pooled + 6 * 256)` for backbones that take them."""
        base = self._patcher.model
        if not base.adm_channels:
            return None
        if text.pooled is None:
            raise BestiaryError(f"{self.backbone.name} needs the pooled text vector, but the conditioning has none")
        # not told: a whole picture at the size of the latent
        sizes = text.sizes
        if sizes is None:
            height, width = (edge * self.backbone.latent_factor for edge in latents.shape[-2:])
            sizes = torch.tensor([[height, width, 0, 0, height, width]]).expand(len(latents), -1)  # (B, 6)
        embedded = base.embedder(sizes.to(self.device).float().flatten()).view(len(latents), -1)  # (B, 6 * 256)
        return torch.cat([text.pooled.to(embedded), embedded], dim=1).to(self.dtype)

    def _autoencoder(self) -> ComfyAutoencoder:
        if self._vae is None:
            raise BestiaryError("pictures are needed here: connect a VAE")
        return self._vae


def _check_captured(capture: AttentionCapture) -> None:
    missing = [name for name in capture.grids if name not in capture.maps]
    if missing:
        raise BestiaryError(
            f"the attention of {missing[0]} cannot be read: another node (such as an IP-Adapter) has replaced it on this "
            "MODEL; connect the MODEL from before that node"
        )


def _listed(names: Mapping[str, int]) -> str:
    return ", ".join(f"{name} (1/{factor})" for name, factor in names.items())


def _check_names(names: Sequence[str], known: Mapping[str, int], kind: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BestiaryError(f"unknown {kind} {unknown[0]!r}: choose from {_listed(known)}")
