"""What a LoRA file may hold, and for which kind of denoiser: plain pairs for a UNet or a diffusion transformer; everything else is refused by name."""

import re
from collections.abc import Iterable

from ..errors import BestiaryError

UNET_PREFIX, TRANSFORMER_PREFIX = "lora_unet_", "lora_transformer_"
"""Before the layers of a denoiser. ComfyUI knows diffusers' paths of a transformer under the second alone."""
_OTHER_FORMS = (
    (
        "DoRA (weights split into size and direction)",
        re.compile(r"\.dora_scale$|lora_magnitude_vector|\.magnitude$|\.m_weight$"),
    ),
    ("LoHa", re.compile(r"\.hada_[wt][12]")),
    ("LoKr", re.compile(r"\.lokr_[wt][12]")),
    ("OFT", re.compile(r"\.oft_(?:blocks|diag|R)|\.oft_")),
    ("GLoRA", re.compile(r"\.[ab][12]\.weight$")),
    ("VeRA or AdaLoRA", re.compile(r"\.vera_|\.lora_E(?:\.|$)|\.lora_embedding_[AB]")),
    ("trained norms", re.compile(r"\.[wb]_norm$")),
    ("whole differences of weights", re.compile(r"\.diff(?:_b)?$|\.set_weight$")),
    ("trained biases", re.compile(r"\.lora_(?:up|down|A|B|linear\w*)(?:\.default(?:_\d+)?)?\.bias$")),
)
"""What a LoRA file may hold besides plain pairs, by the ends of its names (LyCORIS, PEFT, kohya)."""
_TRANSFORMERS = re.compile(
    r"(?:^|[._])(?:double_blocks|single_blocks|joint_blocks|single_transformer_blocks|transformer[._](?:transformer|single))"
    r"|^(?:transformer|prior|llm|lora_te3)[._]|^(?:diffusion_model|model\.diffusion_model)\.(?:blocks|layers)\."
    r"|^lora_(?:transformer|prior)_|^lora_unet_(?:blocks|layers)_"
)
"""Layers of models that are no UNet: Flux, SD3, Wan, PixArt and others."""
_ORIGINAL_BLOCKS = re.compile(r"(?:^|[._])(?:double_blocks|single_blocks|joint_blocks)[._]")
"""Layers of SD3 and Flux as their original checkpoints name them."""


def check_forms(names: Iterable[str], prefix: str = UNET_PREFIX) -> None:
    """Make sure that a LoRA holds plain pairs, a middle matrix perhaps among them, for a UNet, or for a transformer by its `prefix`.

    Dropping what else a file holds would give other pictures than it was trained for, without a word.

    Raises:
        BestiaryError: it holds another form, which is named with one of its keys, or belongs to another kind of model.
    """
    for name in names:
        for form, pattern in _OTHER_FORMS:
            if pattern.search(name):
                raise BestiaryError(
                    f"the LoRA holds {form}, such as {name[:120]!r}, which part dictionaries cannot carry and `compose` cannot "
                    "apply: take a plain LoRA, or load this file beside ours with ComfyUI's own Load LoRA"
                )
        if prefix == TRANSFORMER_PREFIX and _ORIGINAL_BLOCKS.search(name):
            raise BestiaryError(
                f"the LoRA names layers as the original checkpoint does ({name[:120]!r}): convert it to diffusers' names "
                "(pipe.load_lora_weights, then save_lora_weights), or load it beside ours with ComfyUI's own Load LoRA"
            )
        if prefix == UNET_PREFIX and _TRANSFORMERS.search(name):
            raise BestiaryError(
                f"the LoRA is for a transformer model such as Flux or SD3 ({name[:120]!r}), not for a UNet: "
                "take one that was trained for SD 1.5, SD 2 or SDXL"
            )
