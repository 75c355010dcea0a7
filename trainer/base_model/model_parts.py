"""The modules of the miniature base model: shapes, tokenizer, schedule, and export to a diffusers folder."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderTiny, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from ...concepts.files.pack import ROOT
from ...demo.captions import vocabulary
from .denoiser_shapes import LATENT_CHANNELS, SHAPES, TEXT_WIDTH, DenoiserShape, ShapeName

logger = logging.getLogger(__name__)

START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"
MAX_TOKENS = 77
LATENT_NOISE = 0.05
"""Standard deviation of the noise added to unscaled latents when the decoder is trained."""
SHARED_PARTS = ROOT / "demo" / "base_model"
"""Folder of the shipped UNet miniature, whose autoencoder and tokenizer the transformer's takes."""


@dataclass
class BaseModel:
    """All trainable modules of the miniature model, and its tokenizer."""

    autoencoder: AutoencoderTiny
    denoiser: UNet2DConditionModel | SD3Transformer2DModel
    text_encoder: CLIPTextModel | CLIPTextModelWithProjection
    tokenizer: PreTrainedTokenizerFast
    shape: DenoiserShape

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The text encoder's table `(V, D)` of words."""
        return cast(nn.Embedding, self.text_encoder.get_input_embeddings())


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the closed vocabulary, start and end token as in CLIP, padded to 77 with the end token.

    Ids: unknown 0, words, start, end; the end token has the highest id because CLIP pools there.
    """
    # the end token comes last: CLIP models pool at the highest id
    words = [UNKNOWN, *vocabulary(), START, END]
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    # split at whitespace; punctuation marks are separate words
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[,.;:!?]"), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def build_autoencoder() -> AutoencoderTiny:
    """Autoencoder with factor 8 and 8 latent channels, in the layout of TAESD (github.com/madebyollin/taesd).

    It has no normalisation layers: at this width a group norm with 32 groups would be an instance norm, which loses colours.
    """
    return AutoencoderTiny(latent_channels=LATENT_CHANNELS)


def text_config(tokenizer: PreTrainedTokenizerFast) -> CLIPTextConfig:
    """A CLIP text model of three layers over the tokenizer's vocabulary."""
    ids = tokenizer.get_vocab()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="quick_gelu",
        bos_token_id=ids[START],
        eos_token_id=ids[END],
        # CLIP pads with the end token
        pad_token_id=ids[END],
    )


def build_base_model(seed: int, name: ShapeName = "unet") -> BaseModel:
    """A model of the final shape with random weights from `seed`."""
    torch.manual_seed(seed)
    tokenizer, shape = build_tokenizer(), SHAPES[name]
    autoencoder, denoiser = build_autoencoder(), shape.build_denoiser()
    return BaseModel(autoencoder, denoiser, shape.build_text_encoder(text_config(tokenizer)), tokenizer, shape)


def encode_captions(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> torch.Tensor:
    """Captions -> token ids (B, 77) long."""
    batch = tokenizer(captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    return batch.input_ids


def encode(autoencoder: AutoencoderTiny, images: torch.Tensor) -> torch.Tensor:
    """Unscaled latents `(B, C, h, w)` of images `(B, 3, H, W)` in -1..1."""
    return cast(AutoencoderTinyOutput, autoencoder.encode(images)).latents


def decode(autoencoder: AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    """Images `(B, 3, H, W)` in about -1..1 of unscaled latents `(B, C, h, w)`."""
    return cast(DecoderOutput, autoencoder.decode(latents)).sample


def export_base_model(model: BaseModel, scaling_factor: float, out: Path) -> int:
    """Writes a model folder of diffusers in fp16; returns the bytes of all its files.

    New files are written beside `out` and renamed into place one by one, so a reader never sees a partial file.
    """
    # half-precision copies: the model itself continues training in fp32
    model.autoencoder.register_to_config(scaling_factor=float(scaling_factor))
    modules = {"vae": model.autoencoder, "text_encoder": model.text_encoder, "denoiser": model.denoiser}
    halved = {name: copy.deepcopy(module).half() for name, module in modules.items()}
    fresh = out.with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        model.shape.write(fresh, {**halved, "tokenizer": model.tokenizer})
        _make_portable(fresh)
        for source in sorted(path for path in fresh.rglob("*") if path.is_file()):
            target = out / source.relative_to(fresh)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _make_portable(folder: Path) -> None:
    """Makes the folder loadable by all versions: no local source path, no version-bound class name, fp32 on loading."""
    for path in folder.rglob("*.json"):
        text = path.read_text(encoding="utf-8").replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"')
        content = json.loads(text)
        content.pop("_name_or_path", None)
        if "dtype" in content:
            content["dtype"] = "float32"  # else transformers 5 keeps fp16 beside an fp32 denoiser
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    # world-readable, independent of the umask of the process
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)


def load_base_model(folder: Path) -> BaseModel:
    """Reads a folder written by `export_base_model` in fp32; what it lacks is read from the shipped UNet miniature."""
    shape = SHAPES["dit" if (folder / SHAPES["dit"].component).is_dir() else "unet"]
    return BaseModel(
        load_autoencoder(folder),
        shape.denoiser_model.from_pretrained(folder / shape.component, torch_dtype=torch.float32),
        shape.text_model.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32),
        PreTrainedTokenizerFast.from_pretrained(_component(folder, "tokenizer")),
        shape,
    )


def load_autoencoder(folder: Path = SHARED_PARTS) -> AutoencoderTiny:
    """The autoencoder of a folder, or the shipped one where it has none, in fp32."""
    return AutoencoderTiny.from_pretrained(_component(folder, "vae"), torch_dtype=torch.float32)


def load_text_weights(model: BaseModel) -> None:
    """Gives a model's text encoder the weights of the shipped UNet miniature's, which reads captions already.

    The projection of its pooled state, which the UNet's has not, keeps its own weights.
    """
    trained = CLIPTextModel.from_pretrained(SHARED_PARTS / "text_encoder", torch_dtype=torch.float32).state_dict()
    # layers by their names in every version and class of transformers, some of which put a prefix before them
    known = {name.removeprefix("text_model."): weight for name, weight in trained.items()}
    own = model.text_encoder.state_dict()
    model.text_encoder.load_state_dict(
        {name: known.get(name.removeprefix("text_model."), weight) for name, weight in own.items()}
    )


def _component(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else SHARED_PARTS / name
