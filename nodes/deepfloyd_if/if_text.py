"""The T5 encoder that DeepFloyd IF reads, as ComfyUI's CLIP: from the model's folder or from one file as SD3 and Flux use it.

Letters: B prompts, L text states, D their width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.t5
import comfy.utils
import torch
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel
from comfy.text_encoders.sd3_clip import T5XXLTokenizer
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...trainer.learning.denoiser.if_folder import TEXT_LENGTH, normalised
from ...trainer.learning.denoiser.t5_weights import TABLE, UNREADABLE, check_t5, t5_files, t5_shape
from ..host.comfy_version import fixed_clip_options, quantised_text

log = logging.getLogger(__name__)

KEY = "t5xxl"
"""What ComfyUI calls this encoder in prompts' tokens and in embedding files."""
_END, _PAD = 1, 0


class IFTokenizer(T5XXLTokenizer):
    """Prompts in lower case and of exactly 77 pieces: longer ones are cut, as IF was trained and as diffusers cuts them."""

    def __init__(self, **options: Any) -> None:
        """`options`: what ComfyUI hands to a tokenizer."""
        super().__init__(min_length=TEXT_LENGTH, **options)

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: Any) -> list[list[tuple]]:
        """One row of 77 (piece, weight) or (piece, weight, word)."""
        rows = super().tokenize_with_weights(_lowered(text), return_word_ids, **options)
        pieces = [piece for row in rows for piece in row]
        if len(pieces) > TEXT_LENGTH:
            log.warning(
                "DeepFloyd IF reads %d pieces of a prompt, this one has %d: the rest is cut off: %s",
                TEXT_LENGTH,
                len(pieces),
                text[:80],
            )
            end = (_END, 1.0, 0) if return_word_ids else (_END, 1.0)
            pieces = [*pieces[: TEXT_LENGTH - 1], end]
        return [pieces]


def load_text(source: Path, text_width: int) -> comfy.sd.CLIP:
    """A CLIP over the T5 weights of a folder (`text_encoder` of IF) or of one file.

    Args:
        source: folder or file.
        text_width: D, channels of the states that the UNet reads.

    Raises:
        BestiaryError: no weights, weights of another model, or of another width.
    """
    weights = {name: tensor for path in t5_files(source) for name, tensor in _read_file(path).items()}
    check_t5(source, weights, text_width)
    table = weights[TABLE]
    shape = {**t5_shape(weights), "dense_act_fn": "gelu_pytorch_tanh", "model_type": "t5"}
    weights, options, early = quantised_text(weights)
    target = comfy.supported_models_base.ClipTarget(
        partial(SD1Tokenizer, name=KEY, tokenizer=IFTokenizer),
        partial(SD1ClipModel, name=KEY, clip_model=partial(_encoder, shape, options)),
    )
    # in the precision of the file
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=_embedding_folders(),
        model_options={"dtype": table.dtype},
        **early,
        **fixed_clip_options(),
    )
    lacking, unknown = clip.load_sd(weights)
    unknown = [name for name in unknown if name not in ("encoder.embed_tokens.weight", "scaled_fp8")]
    if lacking or unknown:
        raise BestiaryError(
            f"{source} lacks {len(lacking)} weights of its T5 encoder and holds {len(unknown)} unknown ones"
            f" ({', '.join(sorted([*lacking, *unknown])[:3])}): download it again"
        )
    return clip


def _encoder(
    shape: Mapping[str, object],
    options: Mapping[str, object],
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    model_options: Mapping[str, object] | None = None,
) -> SDClipModel:
    """ComfyUI's T5, token ids `(B, L)` -> states `(B, L, D)`; padding is masked, as in IF's training."""
    return SDClipModel(
        device=device,
        dtype=dtype,
        layer="last",
        textmodel_json_config=dict(shape),
        model_class=comfy.text_encoders.t5.T5,
        special_tokens={"end": _END, "pad": _PAD},
        enable_attention_masks=True,
        return_attention_masks=True,
        model_options={**(model_options or {}), **options, "model_name": KEY},
    )


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        return comfy.utils.load_torch_file(str(path), safe_load=True)
    except UNREADABLE as fault:
        raise BestiaryError(f"{path} could not be read ({fault}): download it again") from fault


def _lowered(text: str) -> str:
    """The prompt as IF was trained, but for names of files behind `embedding:`."""
    words = normalised(text).split("embedding:")
    given = text.strip().split("embedding:")
    if len(words) != len(given):
        return normalised(text)
    # the name ends at the first blank
    rest = [
        own.split(" ", 1)[0] + low[len(own.split(" ", 1)[0]) :] for own, low in zip(given[1:], words[1:], strict=True)
    ]
    return "embedding:".join([words[0], *rest])


def _embedding_folders() -> list[str]:
    import folder_paths

    return folder_paths.get_folder_paths("embeddings")
