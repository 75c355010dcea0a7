"""Low-rank adapters on a diffusers denoiser, in the place of its layers.

Letters: I and O input and output width of a layer, r rank.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...concepts.denoiser.denoiser import LoraSpec
from ...concepts.denoiser.lora_names import ALPHA, DOWN, UNET_PREFIX, UP, LoraLayer, resolve_lora
from ...concepts.denoiser.low_rank import LowRankUpdate, fresh_update, low_rank_linear
from ...concepts.errors import BestiaryError


class AdaptedLayer(nn.Module):
    """A frozen linear or convolution layer with adapters; without adapters it is the layer itself, bit by bit."""

    def __init__(self, base: nn.Linear | nn.Conv2d) -> None:
        """`base` keeps its weights, `(O, I)` or `(O, I, kh, kw)`; they are shared, not copied."""
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleList()

    @property
    def weight(self) -> Tensor:
        """The frozen weight, `(O, I)` or `(O, I, kh, kw)`."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """Output `(..., O)` of input `(..., I)`, or of a convolution `(B, O, h, w)`, all updates added, in the layer's dtype."""
        # the first adapter shares its step with the frozen product, further ones are added one by one
        adapters = list(self.adapters)
        if isinstance(self.base, nn.Conv2d) or not adapters:
            out = self.base(x)
        else:
            first = adapters.pop(0)
            out = low_rank_linear(x, self.base.weight, self.base.bias, first)
        for adapter in adapters:
            out = out + self._update(x, adapter)
        return out

    def _update(self, x: Tensor, adapter: LowRankUpdate) -> Tensor:
        """What one adapter adds `(..., O)`, or `(B, O, h, w)`: down to r channels, up to O, scaled."""
        down, up = adapter.down.to(x.dtype), adapter.up.to(x.dtype)
        if isinstance(self.base, nn.Linear):
            return F.linear(F.linear(x, down), up) * adapter.scale
        # the down matrix does the convolution, with the layer's own stride; the up matrix is 1 x 1
        base = self.base
        inner = F.conv2d(x, down, None, base.stride, base.padding, base.dilation)  # (B, r, h, w)
        return F.conv2d(inner, up) * adapter.scale


@dataclass
class _Site:
    """Where a layer hangs in the module tree."""

    parent: nn.Module
    attribute: str

    def get(self) -> nn.Module:
        return getattr(self.parent, self.attribute)

    def put(self, module: nn.Module) -> None:
        # an index of a ModuleList is also a name of a submodule
        self.parent._modules[self.attribute] = module


class DenoiserLora:
    """All adapters of one denoiser: fresh trainable ones, and loaded ones added on top of each other."""

    def __init__(self, denoiser: nn.Module) -> None:
        """`denoiser`: a diffusers UNet whose weights, `(O, I)` or `(O, I, kh, kw)`, are frozen."""
        self.denoiser = denoiser
        self._sites = dict(_adaptable_layers(denoiser))
        self._trained: dict[str, LowRankUpdate] = {}

    def add(self, spec: LoraSpec) -> dict[str, nn.Parameter]:
        """Attach fresh adapters, `(r, I)` and `(O, r)`, to the attention's q, k, v and out; parameters by kohya name.

        Raises:
            BestiaryError: trainable adapters are attached already, or the rank is below 1.
        """
        if self._trained:
            raise BestiaryError("the denoiser has trainable adapters already: unload them first")
        if spec.rank < 1:
            raise BestiaryError(f"LoRA rank is {spec.rank}: it must be at least 1")
        # every attention layer has attn1 (to itself) and attn2 (to the text)
        wanted = ("attn1", "attn2") if spec.self_attention else ("attn2",)
        for path, site in self._sites.items():
            if not any(f".{kind}.to_" in path for kind in wanted):
                continue
            base = _base_of(site.get())
            update = fresh_update(base, spec, base.weight.device)
            self._attach(site, update)
            self._trained[_kohya_name(path)] = update
        return self.parameters()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters under kohya names: down `(r, I)` and up `(O, r)`."""
        named: dict[str, nn.Parameter] = {}
        for name, update in self._trained.items():
            named[name + DOWN] = update.down
            named[name + UP] = update.up
        return named

    def tensors(self) -> dict[str, Tensor]:
        """The trainable adapters as float32 CPU tensors under kohya names: `(r, I)`, `(O, r)` and the scalar alpha."""
        exported = {name: parameter.detach().float().cpu().clone() for name, parameter in self.parameters().items()}
        for name, update in self._trained.items():
            exported[name + ALPHA] = torch.tensor(update.scale * update.down.shape[0])
        return exported

    def load(self, tensors: Mapping[str, Tensor], strength: float) -> int:
        """Add frozen adapters; returns the number of layers reached, those of text encoders not counted.

        Strength 0 attaches nothing, so the outputs stay bit-equal.

        Raises:
            BestiaryError: no layer of this denoiser is named, or a shape does not fit.
        """
        layers = resolve_lora(tensors, self._sites)
        updates = {path: self._loaded(path, layer, strength) for path, layer in layers.items()}
        # every layer is checked before the first is attached, so a fault leaves the denoiser as it was
        if strength != 0:
            for path, update in updates.items():
                self._attach(self._sites[path], update)
        return len(updates)

    def unload(self) -> None:
        """Take off all adapters, trainable ones too; the denoiser is what it was before."""
        for site in self._sites.values():
            if isinstance(site.get(), AdaptedLayer):
                site.put(_base_of(site.get()))
        self._trained.clear()

    def _loaded(self, path: str, layer: LoraLayer, strength: float) -> LowRankUpdate:
        base = _base_of(self._sites[path].get())
        expected = base.weight.shape  # (O, I) or (O, I, kh, kw)
        down, up = layer.down, layer.up  # (r, I, ...) and (O, r, ...)
        if isinstance(base, nn.Linear):
            down, up = down.flatten(1), up.flatten(1)  # some files keep them as 1x1 convolutions
        if down.shape[1:] != expected[1:] or up.shape[:2] != (expected[0], down.shape[0]):
            raise BestiaryError(
                f"LoRA layer {path}: down {tuple(down.shape)} and up {tuple(up.shape)} do not fit a layer of shape "
                f"{tuple(expected)}: this LoRA was trained for another base model"
            )
        # in float32 whatever the frozen layer is in
        place = {"device": base.weight.device, "dtype": torch.float32}
        return LowRankUpdate(
            down.detach().to(**place), up.detach().to(**place), strength * layer.scale, trainable=False
        )

    @staticmethod
    def _attach(site: _Site, update: LowRankUpdate) -> None:
        layer = site.get()
        if not isinstance(layer, AdaptedLayer):
            layer = AdaptedLayer(layer)
            site.put(layer)
        layer.adapters.append(update)


def _base_of(layer: nn.Module) -> nn.Module:
    return layer.base if isinstance(layer, AdaptedLayer) else layer


def _kohya_name(path: str) -> str:
    return UNET_PREFIX + path.replace(".", "_")


def _adaptable_layers(denoiser: nn.Module) -> Iterator[tuple[str, _Site]]:
    """Path and place of every linear and convolution layer."""
    for path, parent in denoiser.named_modules():
        for attribute, child in parent.named_children():
            if isinstance(child, nn.Linear | nn.Conv2d):
                yield f"{path}.{attribute}" if path else attribute, _Site(parent, attribute)
