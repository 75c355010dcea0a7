"""The layers of ComfyUI's SD3 and Flux under the names that diffusers gives them: what specs, LoRA files and settings speak of.

ComfyUI fuses queries, keys and values (and in Flux's single blocks the first layer of the MLP) into one linear layer; diffusers' layers are slices of it.
Letters: I and O input and output width of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from ...concepts.errors import BestiaryError

Family = Literal["sd3", "flux"]

_TAILS = (
    "norm1.linear", "norm1_context.linear", "attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
    "attn.to_add_out", "attn.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "ff.net.2", "ff.net.0.proj",
    "ff_context.net.2", "ff_context.net.0.proj",
)  # fmt: skip
"""Layers of a block in the order in which diffusers makes them; fresh adapters are drawn in it too."""
_SD3_LATE = ("attn.add_q_proj", "attn.to_add_out")
"""In SD3 text's queries come behind its keys and values."""
_SINGLE_TAILS = ("proj_mlp", "proj_out", "norm.linear", "attn.to_q", "attn.to_k", "attn.to_v")
_READ = {"sd3": ("transformer_blocks", 9 / 24, 1), "flux": ("transformer_blocks", 15 / 19, None)}
"""Kind of block, share of the depth from which words are grounded best, and how many blocks are read; as on the command line."""
_ATTENTION = (".attn.to_", ".attn.add_", ".attn2.to_")
_TO_TEXT = (".attn.to_q", ".attn.to_out.0", ".attn.add_k_proj", ".attn.add_v_proj")


@dataclass(frozen=True)
class LayerPlace:
    """Where a layer of diffusers lies in ComfyUI's."""

    module: nn.Linear
    start: int = 0
    """First row of the module's output `(..., O)` that is this layer's."""
    size: int | None = None
    """Rows of it; None is all of them."""


@dataclass(frozen=True)
class TransformerLayers:
    """Modules of one transformer by diffusers' names."""

    family: Family
    places: Mapping[str, LayerPlace]
    """Every linear layer that can be adapted, in the order in which diffusers makes them."""
    blocks: Mapping[str, nn.Module]
    """Blocks in running order."""
    linear: Mapping[str, nn.Linear] = field(default_factory=dict)
    """Shapes `(O, I)` of the layers in `places`, without weights."""

    def attention_names(self) -> list[str]:
        """The joint attention layers in running order."""
        return [f"{name}.attn" for name in self.blocks]

    def method_layers(self) -> tuple[str, ...]:
        """The attention layers that part training reads where none are named."""
        kind, share, count = _READ[self.family]
        names = [name for name in self.attention_names() if name.startswith(f"{kind}.")]
        first = int(share * len(names))
        return tuple(names[first : None if count is None else first + count])

    def attention_projections(self, self_attention: bool) -> list[str]:
        """Projections of the attention layers; without self-attention those by which the image looks at the text."""
        wanted = _ATTENTION if self_attention else _TO_TEXT
        return [name for name in self.places if any(part in name for part in wanted)]


def family_of(network: Any) -> Family | None:
    """Which family of transformers a MODEL's network is; None for other networks."""
    from comfy.ldm.flux.model import Flux
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

    if isinstance(network, MMDiT):
        return "sd3"
    # Flux.2 shares its modulation among blocks
    is_flux = type(network) is Flux and not getattr(network.params, "global_modulation", False)
    return "flux" if is_flux and network.params.vec_in_dim else None


def read_widths(network: Any) -> tuple[int, int]:
    """Channels of the text `(B, L, E)` and of the pooled text `(B, E)` that an SD3 or Flux reads; 0 where it reads none."""
    if family_of(network) == "flux":
        return network.params.context_in_dim, network.params.vec_in_dim
    text = getattr(network.context_embedder, "in_features", 0)
    return text, 0 if network.y_embedder is None else network.y_embedder.mlp[0].in_features


def read_transformer_layers(network: Any) -> TransformerLayers:
    """Names and modules of an SD3 or Flux.1.

    Args:
        network: ComfyUI's `diffusion_model`.

    Raises:
        BestiaryError: it is another kind of model.
    """
    import comfy.utils

    family = family_of(network)
    if family is None:
        raise BestiaryError(f"this MODEL is a {type(network).__name__}: connect a Stable Diffusion 3 or Flux.1 model")
    if family == "sd3":
        sizes = {"depth": network.depth, "num_blocks": len(network.joint_blocks)}
        table: Callable[[Any], Mapping[str, Any]] = comfy.utils.mmdit_to_diffusers
        blocks = _numbered("transformer_blocks", network.joint_blocks)
    else:
        sizes = {"depth": len(network.double_blocks), "depth_single_blocks": len(network.single_blocks)}
        sizes["hidden_size"] = network.hidden_size
        table = comfy.utils.flux_to_diffusers
        blocks = _numbered("transformer_blocks", network.double_blocks)
        blocks |= _numbered("single_transformer_blocks", network.single_blocks)
    places = dict(_places(network, table(sizes)))
    # the table also lists names that other models have for the same layers
    known = [name for name in places if _is_known(name)]
    ordered = {name: places[name] for name in sorted(known, key=lambda name: _order(name, family))}
    return TransformerLayers(family, ordered, blocks, {name: _shape(place) for name, place in ordered.items()})


def _places(network: nn.Module, table: Mapping[str, Any]) -> Any:
    """Name and place of every linear layer that ComfyUI's own table names."""
    modules = dict(network.named_modules())
    for name, target in table.items():
        if not name.endswith(".weight"):
            continue
        path, offset, *changed = (target, None) if isinstance(target, str) else target
        module = modules.get(path.removesuffix(".weight"))
        # layers whose halves ComfyUI swaps (of the last block's norms) cannot take a diffusers adapter as it is
        if not isinstance(module, nn.Linear) or changed:
            continue
        name = name.removesuffix(".weight")
        yield name, LayerPlace(module) if offset is None else LayerPlace(module, offset[1], offset[2])


def _shape(place: LayerPlace) -> nn.Linear:
    rows = place.module.out_features if place.size is None else place.size
    return nn.Linear(place.module.in_features, rows, bias=False, device="meta")


def _numbered(kind: str, blocks: Any) -> dict[str, nn.Module]:
    return {f"{kind}.{number}": block for number, block in enumerate(blocks)}


def _is_known(name: str) -> bool:
    """Whether diffusers' SD3 and Flux have a layer of this name."""
    kind, _, rest = name.partition(".")
    tails = {"transformer_blocks": _TAILS, "single_transformer_blocks": _SINGLE_TAILS}.get(kind)
    return tails is None or rest.partition(".")[2] in tails


def _order(name: str, family: Family) -> tuple[int, int, int, str]:
    """Layers outside blocks, then blocks by kind and number, and in a block diffusers' order."""
    kind, _, rest = name.partition(".")
    if kind not in ("transformer_blocks", "single_transformer_blocks"):
        return 0, 0, 0, name
    number, _, tail = rest.partition(".")
    tails: list[str] = list(_TAILS if kind == "transformer_blocks" else _SINGLE_TAILS)
    if family == "sd3":
        late = [one for one in tails if one in _SD3_LATE]
        tails = [one for one in tails if one not in _SD3_LATE]
        tails[tails.index("attn.to_out.0") : tails.index("attn.to_out.0")] = late
    return 1 + (kind == "single_transformer_blocks"), int(number), tails.index(tail), tail
