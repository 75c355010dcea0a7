"""Low-rank adapters as plain tensors (LoRA, Hu et al. 2021, arXiv 2106.09685).

Adapters are trained in float32 whatever the dtype of the frozen weights. The frozen product and the update share one
autograd step, which saves kernel launches and keeps only the rank-wide activation besides the input.
Letters: N rows, I and O input and output width of a layer, r rank.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank adapters on a network's attention layers."""

    rank: int = 4
    alpha: float = 4.0
    """Scale of the update is alpha / rank."""
    self_attention: bool = True
    """Also adapt the self-attention layers; cross-attention layers always are."""
    targets: tuple[str, ...] | None = None
    """Ends of the names of the linear layers that are adapted, such as to_q; None takes the attention's, as the network says."""


class LowRankUpdate(nn.Module):
    """One adapter of one layer: `scale * up @ down`; down starts with deviation 1 / r, up from zero.

    So does diffusers' LoRALinearLayer, which PartCraft trains.
    """

    def __init__(self, down: Tensor, up: Tensor, scale: float, *, trainable: bool) -> None:
        """`down` `(r, I)` and `up` `(O, r)`; for convolutions `(r, I, kh, kw)` and `(O, r, 1, 1)`."""
        super().__init__()
        self.down = nn.Parameter(down, requires_grad=trainable)
        self.up = nn.Parameter(up, requires_grad=trainable)
        self.scale = scale


def fresh_update(layer: nn.Linear, spec: LoraSpec, device: torch.device) -> LowRankUpdate:
    """A trainable adapter of a linear layer `(O, I)` that changes nothing yet; draws from torch's own generator."""
    down = torch.randn(spec.rank, layer.in_features, dtype=torch.float32) / spec.rank  # (r, I)
    up = torch.zeros(layer.out_features, spec.rank, dtype=torch.float32)  # (O, r)
    return LowRankUpdate(down.to(device), up.to(device), spec.alpha / spec.rank, trainable=True)


class _Saved(FunctionCtx):
    """What the forward pass leaves for the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    """Rows `(N, I)`, inner activation `(N, r)`, weight, down and up."""
    needs_input_grad: tuple[bool, ...]
    dtypes: tuple[torch.dtype, torch.dtype]
    """Of down and up as they are learned."""
    scale: float


class _LowRankLinear(torch.autograd.Function):
    """`x W^T + b + scale * (x down^T) up^T` with frozen W and b."""

    @staticmethod
    def forward(
        ctx: _Saved, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        # one product of rows, whatever stands before the channels
        rows = x.reshape(-1, x.shape[-1])  # (N, I)
        ctx.dtypes = down.dtype, up.dtype
        down, up = down.to(x.dtype), up.to(x.dtype)
        inner = rows @ down.t()  # (N, r)
        out = F.linear(rows, weight, bias)  # (N, O)
        out.addmm_(inner, up.t(), alpha=scale)
        # the input and the rank-wide activation: all that the backward pass needs
        ctx.save_for_backward(rows, inner, weight, down, up)
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Saved, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, down, up = ctx.saved_tensors
        shape = (*grad.shape[:-1], rows.shape[-1])
        grad = grad.reshape(-1, grad.shape[-1])  # (N, O)
        through = grad @ up  # (N, r), what flows back through the adapter's inner activation
        grad_x = grad_down = grad_up = None
        if ctx.scale != 1:
            through = through * ctx.scale
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(through, down).view(shape)  # (..., I)
        # the frozen weight has no gradient, so down and up are all that is left
        if ctx.needs_input_grad[3]:
            grad_down = (through.t() @ rows).to(ctx.dtypes[0])  # (r, I)
            grad_up = (grad.t() @ inner).to(ctx.dtypes[1])  # (O, r)
            grad_up = grad_up if ctx.scale == 1 else grad_up * ctx.scale
        return grad_x, None, None, grad_down, grad_up, None


def low_rank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, update: LowRankUpdate) -> Tensor:
    """Output `(..., O)` of a frozen linear layer with its adapter, for inputs `(..., I)`, weight `(O, I)`, bias `(O,)`."""
    return _LowRankLinear.apply(x, weight, bias, update.down, update.up, update.scale)
