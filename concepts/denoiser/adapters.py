"""Low-rank adapters of a network's layers by name: fresh trainable ones, and loaded ones added on top of each other.

One set for every host. A host says which layers there are and calls `adapted_output` where one of them runs.
Letters: I and O input and output width of a layer, r rank.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BestiaryError
from .lora_forms import UNET_PREFIX
from .lora_names import ALPHA, DOWN, UP, LoraLayer, resolve_lora
from .low_rank import LoraSpec, LowRankUpdate, fresh_update, low_rank_linear

Layers = Mapping[str, nn.Linear | nn.Conv2d]


class Adapters:
    """All adapters of one network."""

    def __init__(
        self,
        layers: Layers,
        attention: Callable[[bool], Iterable[str]],
        device: Callable[[], torch.device],
        changed: Callable[[Iterable[str]], None] | None = None,
        prefix: str = UNET_PREFIX,
    ) -> None:
        """Take a network's layers; none has an adapter yet.

        Args:
            layers: every linear and convolution layer, weights `(O, I)` or `(O, I, kh, kw)`, by diffusers' dotted name.
            attention: names of the attention projections in the order in which fresh adapters are drawn; True with self-attention.
            device: where the network computes.
            changed: called with the names of layers whose adapters changed.
            prefix: before the names of layers in LoRA files, see `Backbone.lora_prefix`.
        """
        self._prefix = prefix
        self._layers, self._attention, self._device, self._changed = layers, attention, device, changed
        self._trained: dict[str, LowRankUpdate] = {}
        self._attached: dict[str, list[LowRankUpdate]] = {}

    def of(self, name: str) -> list[LowRankUpdate]:
        """The adapters of a layer, in the order in which they were attached."""
        return self._attached.get(name, [])

    def add(self, spec: LoraSpec) -> dict[str, nn.Parameter]:
        """Attach fresh adapters to the attention's projections; parameters by kohya name, down `(r, I)` and up `(O, r)`.

        Raises:
            BestiaryError: trainable adapters are attached already, the rank is below 1, or a target is the end of no layer's name.
        """
        if self._trained:
            raise BestiaryError("the denoiser has trainable adapters already: unload them first")
        if spec.rank < 1:
            raise BestiaryError(f"LoRA rank is {spec.rank}: it must be at least 1")
        for name in self._attention(spec.self_attention) if spec.targets is None else self._ending(spec.targets):
            # projections of attention are linear layers
            if isinstance(layer := self._layers[name], nn.Linear):
                self._trained[name] = fresh_update(layer, spec, self._device())
        self._attach(self._trained)
        named: dict[str, nn.Parameter] = {}
        for name, update in self._trained.items():
            named[kohya_name(name, self._prefix) + DOWN] = update.down
            named[kohya_name(name, self._prefix) + UP] = update.up
        return named

    def _ending(self, targets: Iterable[str]) -> list[str]:
        """Linear layers whose names end with one of `targets`, in the network's order."""
        linear = [name for name, layer in self._layers.items() if isinstance(layer, nn.Linear)]
        for target in targets:
            if not any(f".{name}".endswith(f".{target}") for name in linear):
                ends = sorted({name.rpartition(".")[2] for name in self._attention(True)} - {"0"})
                raise BestiaryError(
                    f"lora.targets names {target!r}, which no linear layer's name ends with: choose among {', '.join(ends)}, to_out.0 and other "
                    "ends of layers' names",
                    option="lora.targets",
                )
        return [name for name in linear if any(f".{name}".endswith(f".{target}") for target in targets)]

    def tensors(self) -> dict[str, Tensor]:
        """The trainable adapters as float32 CPU tensors under kohya names: `(r, I)`, `(O, r)` and the scalar alpha."""
        exported: dict[str, Tensor] = {}
        for name, update in self._trained.items():
            module = kohya_name(name, self._prefix)
            exported[module + DOWN] = update.down.detach().float().cpu().clone()
            exported[module + UP] = update.up.detach().float().cpu().clone()
            exported[module + ALPHA] = torch.tensor(update.scale * update.down.shape[0])
        return exported

    def load(self, tensors: Mapping[str, Tensor], strength: float = 1.0) -> int:
        """Add frozen adapters under any naming; the number of layers reached, those of text encoders not counted.

        Strength 0 attaches nothing, so the outputs stay bit-equal.

        Raises:
            BestiaryError: no layer of this network is named, or a shape does not fit.
        """
        found = resolve_lora(tensors, self._layers, self._prefix)
        updates = {name: self._loaded(name, layer, strength) for name, layer in found.items()}
        # every layer is checked before the first is attached, so a fault leaves the network as it was
        if strength:
            self._attach(updates)
        return len(updates)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """The network without any adapter as long as the context lasts; nothing is lost."""
        attached, self._attached = self._attached, {}
        self._tell(attached)
        try:
            yield
        finally:
            self._attached = attached
            self._tell(attached)

    def trained(self) -> dict[str, LowRankUpdate]:
        """The trainable adapters by diffusers' dotted name."""
        return dict(self._trained)

    def unload(self) -> None:
        """Remove all adapters, trainable ones too; the network is what it was before."""
        names = list(self._attached)
        self._trained.clear()
        self._attached.clear()
        self._tell(names)

    def _attach(self, updates: Mapping[str, LowRankUpdate]) -> None:
        for name, update in updates.items():
            self._attached.setdefault(name, []).append(update)
        self._tell(updates)

    def _tell(self, names: Iterable[str]) -> None:
        if self._changed:
            self._changed(list(names))

    def _loaded(self, name: str, layer: LoraLayer, strength: float) -> LowRankUpdate:
        expected = self._layers[name].weight.shape  # (O, I) or (O, I, kh, kw)
        down, up = layer.down, layer.up  # (r, I, ...) and (O, r, ...)
        # some files keep linear layers as 1 x 1 convolutions
        if len(expected) == 2:
            down, up = down.flatten(1), up.flatten(1)
        if down.shape[1:] != expected[1:] or up.shape[:2] != (expected[0], down.shape[0]):
            raise BestiaryError(
                f"LoRA layer {name}: down {tuple(down.shape)} and up {tuple(up.shape)} do not fit a layer of shape "
                f"{tuple(expected)}: this LoRA was trained for another base model"
            )
        # in float32 whatever the frozen layer is in
        down, up = (tensor.detach().to(self._device(), torch.float32) for tensor in (down, up))
        return LowRankUpdate(down, up, strength * layer.scale, trainable=False)


def adapted_output(
    x: Tensor,
    layer: nn.Module,
    updates: Iterable[LowRankUpdate],
    frozen: Callable[[Tensor], Tensor],
    *,
    shares_step: bool = True,
) -> Tensor:
    """Output `(..., O)` of input `(..., I)`, or of a convolution `(B, O, h, w)`, all updates added, in the layer's dtype.

    Args:
        layer: the linear or convolution layer that is adapted.
        updates: its adapters; with none the output is that of `frozen`, bit by bit.
        frozen: the layer's own product.
        shares_step: the first adapter of a linear layer shares one autograd step with the frozen product, from the layer's weight as it lies.
    """
    rest = list(updates)
    if rest and shares_step and isinstance(layer, nn.Linear):
        out = low_rank_linear(x, layer.weight, layer.bias, rest.pop(0))
    else:
        out = frozen(x)
    for update in rest:
        out = out + _added(x, layer, update)
    return out


def _added(x: Tensor, layer: nn.Module, update: LowRankUpdate) -> Tensor:
    """What one adapter adds, `(..., O)` or `(B, O, h, w)`: down to r channels, up to O, scaled."""
    down, up = update.down.to(x.dtype), update.up.to(x.dtype)
    if not isinstance(layer, nn.Conv2d):
        return F.linear(F.linear(x, down), up) * update.scale
    # the down matrix does the convolution, with the layer's own stride; the up matrix is 1 x 1
    inner = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)  # (B, r, h, w)
    return F.conv2d(inner, up) * update.scale


def kohya_name(name: str, prefix: str = UNET_PREFIX) -> str:
    """Name of a layer in a LoRA file."""
    return prefix + name.replace(".", "_")
