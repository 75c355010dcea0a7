"""Attention of a diffusers denoiser: fused everywhere, with the columns of a few tokens where they are asked for.

The probabilities of all tokens are never kept. A request travels with the call through `cross_attention_kwargs`, so two
threads may ask for different things, nothing is patched for the call and nothing is left behind after an exception.
Letters: B batch, H heads, N places of a grid, L context tokens, P tokens asked for, d width of a head.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....concepts.denoiser.attention_maps import attend_with_columns
from ....concepts.denoiser.backbone import Backbone
from ....concepts.denoiser.denoiser import AttentionMethod, AttentionRequest, ColumnForm
from ....concepts.denoiser.joint_columns import JointKeys, attend_jointly
from ....concepts.errors import BestiaryError


@dataclass
class AttentionCapture:
    """What one evaluation collects, and what it has collected."""

    columns: Tensor
    """`(B, P, K)` long: columns of the context, -1 where absent."""
    grids: Mapping[str, tuple[int, int]]
    """Height and width of the grid of every layer asked for."""
    method: AttentionMethod
    maps: dict[str, Tensor] = field(default_factory=dict)
    """Layer name -> probabilities `(B, P, h, w)`, mean over heads."""
    form: ColumnForm = "text"
    """What maps of joint attention show."""
    keys: JointKeys | None = None
    """Where text and image stand in joint attention; None where the image looks at text alone."""
    open: bool = True
    """False after the forward pass: a backward pass that computes a layer again forms columns but keeps none."""


class AttentionLayer(Protocol):
    """What is used of an attention layer of diffusers."""

    heads: int
    scale: float
    to_q: Callable[[Tensor], Tensor]
    to_k: Callable[[Tensor], Tensor]
    to_v: Callable[[Tensor], Tensor]
    to_out: Sequence[Callable[[Tensor], Tensor]]
    """The output projection, then dropout."""


class FusedAttention:
    """Attention processor of one layer: fused attention, and part columns if the call asks this layer for them.

    Same operations as diffusers' AttnProcessor2_0 on layers without norms of their own; outputs are bit-equal.
    """

    def __init__(self, layer: str, float32_backward: bool = False) -> None:
        """Name the layer, and say whether attention that will be differentiated runs in float32.

        Args:
            layer: name under which columns of this layer are asked for.
            float32_backward: torch's fused bf16 backward on CPUs takes 2 to 3 times as long as the float32 one.
        """
        self.layer = layer
        self.float32_backward = float32_backward

    def __call__(
        self,
        attn: AttentionLayer,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        capture: AttentionCapture | None = None,
    ) -> Tensor:
        """Attend from `(B, N, D)` to itself or to a context `(B, L, E)`; called by diffusers."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = split_heads(attn.to_q(hidden_states), attn.heads)  # (B, H, N, d)
        k = split_heads(attn.to_k(context), attn.heads)  # (B, H, L, d)
        v = split_heads(attn.to_v(context), attn.heads)
        # back to this dtype before the output projection
        dtype = v.dtype
        if self.float32_backward and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
            q, k, v = q.float(), k.float(), v.float()
        mixed = attend(q, k, v, attn.scale, self.layer, capture, attention_mask)  # (B, H, N, d)
        b, heads, n, width = mixed.shape
        mixed = mixed.transpose(1, 2).reshape(b, n, heads * width).to(dtype)  # (B, N, D)
        return attn.to_out[1](attn.to_out[0](mixed))


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    layer: str,
    capture: AttentionCapture | None,
    mask: Tensor | None = None,
) -> Tensor:
    """Fused attention of a layer `(B, H, N, d)`; its columns go into `capture` if that asks for the layer.

    In joint attention q has the rows of text and image, and so has what comes back: `(B, H, T, d)`.
    """
    # columns are formed only in the layers that were asked
    if capture is None or layer not in capture.grids:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if capture.keys is None:
        mixed, columns = attend_with_columns(q, k, v, capture.columns, scale, capture.method)
    else:
        mixed, columns = attend_jointly(
            q, k, v, capture.columns, capture.keys, form=capture.form, method=capture.method, scale=scale
        )
    # the grid of the layer makes maps of its columns; what checkpointing computes again is not kept
    height, width = capture.grids[layer]
    if capture.open:
        capture.maps[layer] = columns.transpose(1, 2).unflatten(2, (height, width))  # (B, P, h, w)
    return mixed


def build_capture(
    request: AttentionRequest,
    known: Mapping[str, tuple[int, int]],
    default: Sequence[str],
    backbone: Backbone,
    device: torch.device,
) -> AttentionCapture:
    """What a request collects from a network.

    Args:
        known: layer -> (height, width) of its grid for the evaluation's latents.
        default: the layers that are read where the request names none.

    Raises:
        BestiaryError: a layer does not exist, or none is named and none lies on the method's grid.
    """
    names = tuple(default) if request.layers is None else request.layers
    if not names:
        raise BestiaryError(
            f"no cross-attention layer lies on the grid of image / {backbone.attention_divisor}: name layers "
            f"yourself; there are {listed_grids(known)}",
            option="attention_loss.layers",
        )
    check_names(names, known, "cross-attention layer")
    grids = {name: known[name] for name in names}
    return AttentionCapture(request.columns.to(device), grids, request.method, form=request.form)


def check_names(names: Sequence[str], known: Mapping[str, tuple[int, int]], kind: str) -> None:
    """Refuse names that a network does not have."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BestiaryError(f"unknown {kind} {unknown[0]!r}: choose from {listed_grids(known)}")


def listed_grids(known: Mapping[str, tuple[int, int]]) -> str:
    """Names with their grids, for a message."""
    return ", ".join(f"{name} ({height} x {width})" for name, (height, width) in known.items())


@contextmanager
def reading_features(
    blocks: Mapping[str, nn.Module], activation: Callable[[Any], Tensor] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Collect activations `(B, D, h, w)` of blocks from calls of this thread, as long as the context lasts.

    `activation` finds them in what a block gives; None takes the first tensor of a tuple, or a record's `sample`.
    """
    read: dict[str, Tensor] = {}
    thread = threading.get_ident()
    found = activation or _first

    # hooks see calls of all threads; only this one asked
    def keep(name: str, _module: nn.Module, _inputs: object, output: Any) -> None:
        if threading.get_ident() == thread:
            read[name] = found(output).float()

    handles = [module.register_forward_hook(partial(keep, name)) for name, module in blocks.items()]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else getattr(output, "sample", output)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`(B, N, heads * d)` -> `(B, heads, N, d)`, a view."""
    b, n, width = x.shape
    return x.view(b, n, heads, width // heads).transpose(1, 2)  # (B, H, N, d)


def install_fused_attention(denoiser: nn.Module, float32_backward: bool = False) -> None:
    """Give every attention layer of a diffusers denoiser its `FusedAttention`; see there for `float32_backward`.

    Raises:
        BestiaryError: a layer has norms, added keys or a residual of its own, so the network is not of the Stable Diffusion family.
    """
    for name, module in denoiser.named_modules():
        set_processor = getattr(module, "set_processor", None)
        if set_processor is None or not hasattr(module, "to_q"):
            continue
        # what our processor does not compute must not be there
        special = [
            part
            for part in ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross", "add_k_proj")
            if getattr(module, part, None)
        ]
        if special or module.residual_connection or module.rescale_output_factor != 1:
            raise BestiaryError(
                f"attention layer {name} has {', '.join(special) or 'a residual of its own'}: this denoiser is not of the "
                "Stable Diffusion 1.5, 2 or XL family; choose one of those as the base model"
            )
        set_processor(FusedAttention(name, float32_backward))


def halved(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Grid after stride-2 convolutions: a latent `(h, w)` at downsampling `factor` (a power of two), odd edges rounded up."""
    height, width = size
    while factor > 1:
        height, width, factor = (height + 1) // 2, (width + 1) // 2, factor // 2
    return height, width
