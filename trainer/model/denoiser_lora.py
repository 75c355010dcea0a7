"""Low-rank adapters on the layers of a diffusers network: adapted layers hang in the place of plain ones.

Letters: I and O input and output width of a layer.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...concepts.denoiser.adapters import Adapters, adapted_output
from ...concepts.denoiser.lora_forms import UNET_PREFIX
from ...concepts.denoiser.low_rank import LowRankUpdate


class AdaptedLayer(nn.Module):
    """A frozen linear or convolution layer with adapters; without adapters it is the layer itself, bit by bit."""

    def __init__(self, base: nn.Linear | nn.Conv2d, adapters: Iterable[LowRankUpdate] = ()) -> None:
        """`base` keeps its weights, `(O, I)` or `(O, I, kh, kw)`; they are shared, not copied."""
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleList(adapters)

    @property
    def weight(self) -> Tensor:
        """The frozen weight, `(O, I)` or `(O, I, kh, kw)`."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """Output `(..., O)` of input `(..., I)`, or of a convolution `(B, O, h, w)`, all updates added, in the layer's dtype."""
        updates = (update for update in self.adapters if isinstance(update, LowRankUpdate))
        return adapted_output(x, self.base, updates, self.base)


@dataclass
class _Site:
    """Where a layer hangs in the module tree."""

    parent: nn.Module
    attribute: str
    layer: nn.Linear | nn.Conv2d
    """The plain layer."""

    def put(self, module: nn.Module) -> None:
        # an index of a ModuleList is also a name of a submodule
        self.parent._modules[self.attribute] = module


@dataclass(frozen=True)
class AttentionLayers:
    """How the projections of attention are known by their names."""

    every: tuple[str, ...]
    """What the name of each holds."""
    to_text: tuple[str, ...]
    """Likewise of those by which the image looks at the text."""


UNET_LAYERS = AttentionLayers((".attn1.to_", ".attn2.to_"), (".attn2.to_",))
"""Every attention layer has attn1 (to itself) and attn2 (to the text)."""
IF_LAYERS = AttentionLayers(
    (".to_q", ".to_k", ".to_v", ".to_out.0", ".add_k_proj", ".add_v_proj"),
    (".to_q", ".to_out.0", ".add_k_proj", ".add_v_proj"),
)
"""DeepFloyd IF looks at both at once: its keys and values of text are `add_k_proj` and `add_v_proj`."""


def module_adapters(
    network: nn.Module,
    device: Callable[[], torch.device],
    known: AttentionLayers = UNET_LAYERS,
    prefix: str = UNET_PREFIX,
) -> Adapters:
    """The adapters of a diffusers network with frozen weights `(O, I)` or `(O, I, kh, kw)`; none is attached yet."""
    sites = dict(_adaptable_layers(network))

    def attention(self_attention: bool) -> list[str]:
        kinds = known.every if self_attention else known.to_text
        return [path for path in sites if any(kind in path for kind in kinds)]

    def changed(names: Iterable[str]) -> None:
        for name in names:
            site, updates = sites[name], adapters.of(name)
            site.put(AdaptedLayer(site.layer, updates) if updates else site.layer)

    adapters = Adapters({path: site.layer for path, site in sites.items()}, attention, device, changed, prefix)
    return adapters


def _adaptable_layers(network: nn.Module) -> Iterator[tuple[str, _Site]]:
    """Path and place of every linear and convolution layer."""
    for path, parent in network.named_modules():
        for attribute, child in parent.named_children():
            if isinstance(child, nn.Linear | nn.Conv2d):
                yield f"{path}.{attribute}" if path else attribute, _Site(parent, attribute, child)
