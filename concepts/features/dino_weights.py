"""Reads DINOv2 checkpoints in all common layouts: timm, Meta with and without registers, and training checkpoints.

Names of weights: facebookresearch/dinov2 @ e1277af, dinov2/models/vision_transformer.py (training checkpoints use chunks,
`blocks.CHUNK.N`) and dinov2/train/ssl_meta_arch.py (`teacher`, `backbone.`). Letters: W width of a token.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import BestiaryError
from ..files.concept_file import read_header, read_tensors
from ..files.safe_pickle import load_inert

SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}
"""W -> timm's name of the size."""
_WRAPPERS = ("teacher", "model_ema", "model", "state_dict", "student")
_PREFIXES = ("module.", "teacher.", "backbone.", "encoder.")
_CHUNK = re.compile(r"^blocks\.\d+\.(\d+)\.")
_HEADS = ("dino_head.", "ibot_head.", "head.", "mask_token")


def read_dino_weights(path: Path, model: str) -> tuple[str, dict[str, Tensor]]:
    """timm's name of the transformer in a file, and its weights under timm's names.

    Args:
        path: a checkpoint, safetensors or pickled; no code in it is executed.
        model: the expected transformer; for DINOv2 the size is detected from the file.

    Raises:
        BestiaryError: unsafe, damaged, or not a supported vision transformer; the message describes the content.
    """
    if path.suffix == ".safetensors":
        read_header(path)
        content: object = read_tensors(path)
    else:
        content = load_inert(path)
    weights = plain_weights(content)
    token = weights.get("cls_token")
    if token is None or token.ndim != 3 or not any(name.startswith("blocks.") for name in weights):
        found = ", ".join(list(weights)[:3]) or "no tensors"
        raise BestiaryError(
            f"{path} is not a DINOv2 checkpoint: it contains {found}, expected cls_token and blocks of a vision transformer. "
            "Use dinov2_vitb14_pretrain.pth from Meta or model.safetensors of timm's vit_base_patch14_dinov2.lvd142m"
        )
    if "dinov2" not in model:
        return model, weights
    # the width identifies the size, the register tokens the variant
    size, registers = SIZES.get(token.shape[-1]), weights.get("register_tokens", weights.get("reg_token"))
    if size is None:
        widths = ", ".join(f"{width} ({name})" for width, name in SIZES.items())
        raise BestiaryError(f"{path} is a vision transformer of width {token.shape[-1]}; DINOv2 has {widths}")
    patch = weights.get("patch_embed.proj.weight")
    if patch is None or tuple(patch.shape[-2:]) != (14, 14):
        shown = "none" if patch is None else "x".join(map(str, patch.shape[-2:]))
        raise BestiaryError(f"{path} is a vision transformer with patches of {shown} pixels; DINOv2 has 14x14")
    found = f"vit_{size}_patch14_{'reg4_' if registers is not None else ''}dinov2"
    # keep the tag (.lvd142m, ...) of a name that already matches
    return model if model.split(".")[0] == found else f"{found}.lvd142m", weights


def plain_weights(content: object) -> dict[str, Tensor]:
    """Weights of any shape under their plain names, without wrappers and heads of training checkpoints."""
    for _ in _WRAPPERS:
        inner = (
            next((content[name] for name in _WRAPPERS if name in content), None)
            if isinstance(content, Mapping)
            else None
        )
        if not isinstance(inner, Mapping):
            break
        content = inner
    found: dict[str, Tensor] = {}
    for name, tensor in content.items() if isinstance(content, Mapping) else ():
        if not isinstance(tensor, Tensor):
            continue
        plain = str(name)
        while prefix := next((one for one in _PREFIXES if plain.startswith(one)), None):
            plain = plain.removeprefix(prefix)
        plain = _CHUNK.sub(r"blocks.\1.", plain)
        # keep mask_token: timm recognises Meta's files by it, and drops it afterwards
        if not plain.startswith(_HEADS) or plain == "mask_token":
            found[plain] = tensor.detach()
    return found
