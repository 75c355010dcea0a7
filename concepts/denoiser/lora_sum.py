"""The exact sum of two LoRA files: ranks side by side instead of an approximation."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import BestiaryError

DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"


def sum_loras(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], strengths: tuple[float, float]
) -> dict[str, Tensor]:
    """One set of adapters whose update is `strengths[0] * first + strengths[1] * second` in every layer.

    up1 @ down1 + up2 @ down2 = [up1 up2] @ [down1; down2]: the ranks add up and nothing is lost. Strengths and alphas go
    into the up matrices, the new alpha is the new rank (scale 1).

    Args:
        first, second: tensors under kohya names, down `(r, in, ...)` and up `(out, r, ...)`.
        strengths: factor of each; 0 leaves a set out.

    Returns:
        float32 tensors under kohya names.

    Raises:
        BestiaryError: a layer has different shapes in the two, or a pair is incomplete.
    """
    # module -> what is to be added there, strengths and alphas already in the up matrices
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for tensors, strength in zip((first, second), strengths, strict=True):
        for module in sorted(name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN)):
            if module + UP not in tensors:
                raise BestiaryError(f"the LoRA has {module}{DOWN} but no {module}{UP}; the file is incomplete")
            down, up = tensors[module + DOWN].float(), tensors[module + UP].float()
            alpha = float(tensors[module + ALPHA]) if module + ALPHA in tensors else down.shape[0]
            if strength:
                pairs.setdefault(module, []).append((down, up * (strength * alpha / down.shape[0])))
    return {name: tensor for module, layers in pairs.items() for name, tensor in _joined(module, layers).items()}


def _joined(module: str, layers: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Tensors of one layer; `layers` holds (down, up) pairs that are to be added."""
    downs, ups = [down for down, _ in layers], [up for _, up in layers]
    for down, up in layers:
        if (
            down.ndim != downs[0].ndim
            or up.ndim < 2
            or down.shape[1:] != downs[0].shape[1:]
            or (up.shape[0], *up.shape[2:]) != (ups[0].shape[0], *ups[0].shape[2:])
        ):
            raise BestiaryError(
                f"{module} is {tuple(downs[0].shape)} in one LoRA and {tuple(down.shape)} in the other: "
                "they were trained for different models"
            )
    # ranks side by side: [up1 up2] @ [down1; down2]
    rank = sum(down.shape[0] for down in downs)
    return {
        module + DOWN: torch.cat(downs, dim=0),  # (r, in, ...)
        module + UP: torch.cat(ups, dim=1),  # (out, r, ...)
        module + ALPHA: torch.tensor(float(rank)),
    }
