"""ComfyUI's frozen weights in a form that gradients may pass: no copy is made and no number changes.

Nodes run in inference mode, so what they load are inference tensors, which autograd refuses to save for a backward pass.
Here every such tensor gets a second, normal handle on the same memory. Letters: N rows, I and O widths of a layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.grad import conv2d_input

from ...concepts.errors import BestiaryError

_PLAIN_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def make_trainable(module: nn.Module, what: str) -> int:
    """Replace all inference tensors of a module by normal ones on the same storage, frozen; returns how many there were.

    Must run outside inference mode, at every start of a training: moving weights in inference mode makes inference
    tensors again.

    Raises:
        BestiaryError: weights are quantised or of a kind of their own; `what` names the model in the message.
    """
    count = 0
    for path, owner in module.named_modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            _check_plain(parameter, f"{path}.{name}", what)
            if parameter.is_inference():
                owner._parameters[name] = nn.Parameter(normal_handle(parameter), requires_grad=False)
                count += 1
            else:
                parameter.requires_grad_(False)
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if buffer.is_inference():
                owner._buffers[name] = normal_handle(buffer)
                count += 1
    return count


def normal_handle(tensor: Tensor) -> Tensor:
    """A normal tensor on the storage of an inference tensor of any shape."""
    handle = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return handle.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def _check_plain(parameter: nn.Parameter, name: str, what: str) -> None:
    plain = type(parameter.data) is Tensor and (parameter.dtype in _PLAIN_DTYPES or not parameter.is_floating_point())
    if not plain:
        raise BestiaryError(
            f"the {what} holds {name} as {str(parameter.dtype).removeprefix('torch.')} {type(parameter.data).__name__}: "
            "quantised weights cannot be trained on; load the model in fp16, bf16 or fp32"
        )


def needs_cast(layer: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """True where ComfyUI makes a copy of a layer's weights for every use: offloaded, or kept in another dtype."""
    weight = layer.weight
    return weight.device.type != device.type or weight.dtype != dtype or bool(layer.weight_function)


class _Kept(FunctionCtx):
    """What the forward pass leaves for the backward pass."""

    layer: nn.Linear | nn.Conv2d
    shape: torch.Size
    """Of the input."""
    like: Tensor
    """Empty, with the input's dtype and device."""


class _CastLayer(torch.autograd.Function):
    """A frozen layer whose weights are cast for the forward pass and cast again for the backward pass, never kept."""

    @staticmethod
    def forward(ctx: _Kept, x: Tensor, layer: nn.Linear | nn.Conv2d) -> Tensor:
        weight, bias = _cast(layer, x)
        ctx.layer, ctx.shape, ctx.like = layer, x.shape, x.new_empty(0)
        return F.linear(x, weight, bias) if isinstance(layer, nn.Linear) else layer._conv_forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Kept, grad: Tensor) -> tuple[Tensor, None]:
        weight, _ = _cast(ctx.layer, ctx.like)
        if isinstance(ctx.layer, nn.Linear):
            return grad @ weight, None  # (..., I)
        layer = ctx.layer
        settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
        # torch declares single numbers for its settings, and takes pairs
        input_gradient: Callable[..., Tensor] = conv2d_input
        return input_gradient(ctx.shape, weight, grad.contiguous(), *settings), None  # (B, I, h, w)


def cast_layer(x: Tensor, layer: nn.Linear | nn.Conv2d) -> Tensor:
    """Output of a frozen linear `(..., I)` -> `(..., O)` or convolution layer, in the dtype and on the device of `x`."""
    return _CastLayer.apply(x, layer)


def _cast(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
    import comfy.ops

    with torch.no_grad():
        return comfy.ops.cast_bias_weight(layer, like)
