"""The layers of ComfyUI's UNet under the names that diffusers gives them: what specs, LoRA files and settings speak of.

ComfyUI's blocks are numbered through; diffusers counts levels, and residual and attention layers in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...concepts.errors import BestiaryError

_SECTIONS = ("down_blocks", "up_blocks", "mid_block")
"""Diffusers makes its layers in this order; fresh adapters are drawn in it too."""
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class UnetLayers:
    """Modules of one UNet by diffusers' names."""

    linear: Mapping[str, nn.Linear | nn.Conv2d]
    """Every linear and convolution layer, in the order in which diffusers makes them."""
    attention: Mapping[str, nn.Module]
    """Self- and cross-attention layers, ending in `.attn1` and `.attn2`."""
    blocks: Mapping[str, nn.Module]
    """Residual layers, attention layers and whole blocks, whose activations can be read."""
    factors: Mapping[str, int]
    """Downsampling relative to the latent of every name in `attention` and `blocks`."""

    def cross_attention(self) -> dict[str, int]:
        """Cross-attention layer -> downsampling, in the order in which they run."""
        order = ("down_blocks", "mid_block", "up_blocks")
        names = sorted((n for n in self.attention if n.endswith(".attn2")), key=lambda n: order.index(_section(n)))
        return {name: self.factors[name] for name in names}

    def attention_projections(self, self_attention: bool) -> dict[str, nn.Linear | nn.Conv2d]:
        """Linear layers `(O, I)` q, k, v and out of the attention layers, by name."""
        kinds = ("attn1", "attn2") if self_attention else ("attn2",)
        wanted = tuple(f".{kind}.{projection}" for kind in kinds for projection in _PROJECTIONS)
        return {name: layer for name, layer in self.linear.items() if name.endswith(wanted)}


def read_unet_layers(unet: nn.Module, config: Mapping[str, Any]) -> UnetLayers:
    """Names and modules of a UNet of the Stable Diffusion 1.5, 2 or XL kind.

    Args:
        unet: ComfyUI's `diffusion_model`.
        config: its `unet_config`.

    Raises:
        BestiaryError: it is another kind of model.
    """
    import comfy.utils

    if not hasattr(unet, "input_blocks") or not hasattr(unet, "output_blocks") or "num_res_blocks" not in config:
        raise BestiaryError(
            f"this MODEL is a {type(unet).__name__}: connect a Stable Diffusion 1.5, 2 or XL checkpoint, "
            "a Stable Diffusion 3 or Flux.1 model, or a demo model"
        )
    # ComfyUI's own table: diffusers' names of weights -> its own
    names = comfy.utils.unet_to_diffusers(dict(config))
    modules = dict(unet.named_modules())
    # the table also lists samplers of levels that have none
    known = {name: place for name, place in names.items() if name.endswith(".weight")}
    pairs = {n.removesuffix(".weight"): place.removesuffix(".weight") for n, place in known.items()}
    named = {name: modules[place] for name, place in sorted(pairs.items(), key=_order) if place in modules}
    linear = {name: layer for name, layer in named.items() if isinstance(layer, nn.Linear | nn.Conv2d)}
    # only what this UNet really has
    inner = {name: place for name, place in pairs.items() if place in modules}
    attention = {
        name.removesuffix(".to_q"): modules[inner[name].removesuffix(".to_q")]
        for name in linear
        if name.endswith((".attn1.to_q", ".attn2.to_q"))
    }
    # whole blocks are named by diffusers alone: their last layer stands for them
    levels = len(config["channel_mult"])
    blocks = dict(_blocks(unet, modules, inner, levels))
    factors = {name: 2 ** _level(name, levels) for name in (*attention, *blocks)}
    factors |= {name: _outer_factor(name, linear, levels) for name in blocks if not _is_inner(name)}
    return UnetLayers(linear, attention, blocks, factors)


def _blocks(
    unet: nn.Module, modules: Mapping[str, nn.Module], places: Mapping[str, str], levels: int
) -> Iterator[tuple[str, nn.Module]]:
    """Blocks, each giving `(B, D, h, w)`, in diffusers' running order; a block's own name comes after its layers."""
    names = [f"down_blocks.{i}" for i in range(levels)] + ["mid_block"] + [f"up_blocks.{i}" for i in range(levels)]
    for block in names:
        own = {name: place for name, place in places.items() if name.startswith(f"{block}.")}
        for kind, mark in (("resnets", "conv1"), ("attentions", "proj_in")):
            found = sorted(
                (int(name.split(".")[-2]), place)
                for name, place in own.items()
                if re.fullmatch(rf"{re.escape(block)}\.{kind}\.\d+\.{mark}", name)
            )
            for index, place in found:
                # in_layers.2 and proj_in lie two and one names below their layer
                depth = 2 if kind == "resnets" else 1
                yield f"{block}.{kind}.{index}", modules[place.rsplit(".", depth)[0]]
        yield block, _last_layer(unet, block, own)


def _last_layer(unet: nn.Module, block: str, places: Mapping[str, str]) -> nn.Module:
    """The layer whose output is the block's: ComfyUI calls the layers, never the sequence that holds them."""
    if block == "mid_block":
        return list(unet.get_submodule("middle_block").children())[-1]
    # the highest number on this side is the block that ran last
    side, number = max((place.split(".")[0], int(place.split(".")[1])) for place in places.values())
    return getattr(unet, side)[number][-1]


def _outer_factor(name: str, linear: Mapping[str, nn.Linear | nn.Conv2d], levels: int) -> int:
    """Downsampling of a whole block's output `(B, D, h, w)`, which lies behind its down- or upsampler."""
    level = _level(name, levels)
    if f"{name}.downsamplers.0.conv" in linear:
        return 2 ** (level + 1)
    return 2 ** (level - 1) if f"{name}.upsamplers.0.conv" in linear else 2**level


def _level(name: str, levels: int) -> int:
    section, number = _section(name), name.split(".")[1:2]
    if section == "down_blocks":
        return int(number[0])
    return levels - 1 - int(number[0]) if section == "up_blocks" else levels - 1


def _is_inner(name: str) -> bool:
    return ".resnets." in name or ".attentions." in name


def _section(name: str) -> str:
    return name.split(".")[0]


def _order(pair: tuple[str, str]) -> tuple[int, list[tuple[int, str]], int]:
    """Diffusers' order of making: sections, numbers in them, and q, k, v and out of an attention layer."""
    name = pair[0]
    section = _SECTIONS.index(_section(name)) if _section(name) in _SECTIONS else -1
    projection = next((i for i, end in enumerate(_PROJECTIONS) if name.endswith(f".{end}")), -1)
    stem = name.removesuffix(f".{_PROJECTIONS[projection]}") if projection >= 0 else name
    return section, [(int(word), "") if word.isdigit() else (-1, word) for word in stem.split(".")[1:]], projection
