"""Diffusion transformers whose attention can be read and steered, as data: where text and image stand in it, and which blocks ground words.

Blocks are named by a kind and a number as in ComfyUI's `patches_replace["dit"]`, such as ("double_block", 9). The method reads and confines
few of them, in which places of the picture look at the words that they show: block 9 of 24 in SD3 (Seg4Diff trains and reads it), late double
blocks 15 to 18 of 19 in Flux.1 (what its users average). Those of the other families are middle ones, which are not measured yet.
Letters: K positions of the context, N image places.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ..host.comfy_objects import Model

Block = tuple[str, int]
"""Kind and number."""


@dataclass(frozen=True)
class TransformerFamily:
    """One family of networks."""

    name: str
    model: str
    """Class of its model in ComfyUI."""
    network: str
    """Class of its network in ComfyUI."""
    blocks: tuple[tuple[str, str], ...]
    """Kinds of its blocks, and the attribute of the network that holds each."""
    method: tuple[str, tuple[int, ...], int]
    """Kind and numbers of the blocks that the method uses, and how many there are in the model for which they are given."""
    named_by: Literal["patch", "host", "cross"] = "patch"
    """How an attention knows its block: by a patch around the block; by the number that ComfyUI tells; or, in true cross-attention over
    the text alone, by the patch of its input."""
    required: str | None = None
    """Attribute of the network that is not None in this family, and is in others of the same class."""


FAMILIES = (
    TransformerFamily(
        "Stable Diffusion 3",
        "SD3",
        "OpenAISignatureMMDITWrapper",
        (("double_block", "joint_blocks"),),
        ("double_block", (9,), 24),
    ),
    TransformerFamily(
        "Flux.1",
        "Flux",
        "Flux",
        (("double_block", "double_blocks"), ("single_block", "single_blocks")),
        ("double_block", (15, 16, 17, 18), 19),
        required="vector_in",
    ),
    TransformerFamily(
        "Qwen-Image",
        "QwenImage",
        "QwenImageTransformer2DModel",
        (("double_block", "transformer_blocks"),),
        ("double_block", (28, 29, 30, 31), 60),
    ),
    TransformerFamily(
        "Z-Image",
        "Lumina2",
        "NextDiT",
        (("double_block", "layers"),),
        ("double_block", (13, 14, 15, 16), 30),
        named_by="host",
        required="pad_tokens_multiple",
    ),
    TransformerFamily(
        "Anima", "Anima", "Anima", (("block", "blocks"),), ("block", (12, 13, 14, 15), 28), named_by="cross"
    ),
)


@dataclass(frozen=True)
class Transformer:
    """The transformer of one MODEL."""

    family: TransformerFamily
    depths: tuple[tuple[str, int], ...]
    """Kinds of its blocks, and how many there are of each."""
    patch: int
    """Edge of a token in places of the latent."""
    multiple: int
    """Text and image are padded to multiples of this many tokens each."""

    @cached_property
    def all_blocks(self) -> frozenset[Block]:
        return frozenset((kind, number) for kind, depth in self.depths for number in range(depth))

    @cached_property
    def method_blocks(self) -> frozenset[Block]:
        """The blocks of the method, at the same share of the depth in a model that is deeper or shallower."""
        kind, numbers, known = self.family.method
        depth = dict(self.depths)[kind]
        return frozenset((kind, min(depth - 1, round(number * depth / known))) for number in numbers)

    def padded(self, tokens: int) -> int:
        """Tokens of text or image with the padding behind them."""
        return -(-tokens // self.multiple) * self.multiple

    def grid(self, latent: tuple[int, int]) -> tuple[int, int]:
        """Height and width in tokens of a latent of (height, width)."""
        return -(-latent[0] // self.patch), -(-latent[1] // self.patch)


def transformer_of(model: Model) -> Transformer | None:
    """The transformer of a MODEL; None if its family is not supported, or it is none."""
    network = _network(model)
    names = type(model.model).__name__, type(network).__name__
    for family in FAMILIES:
        if (family.model, family.network) != names:
            continue
        if family.required is not None and getattr(network, family.required, None) is None:
            continue
        depths = tuple((kind, len(getattr(network, attribute))) for kind, attribute in family.blocks)
        patch = getattr(network, "patch_size", None) or getattr(network, "patch_spatial", 2)
        return Transformer(family, depths, patch, getattr(network, "pad_tokens_multiple", None) or 1)
    return None


def family_name(model: Model) -> str:
    """What a model is called whose family is not supported: the class of its configuration in ComfyUI, and a network of another pack."""
    name, network = type(model.model.model_config).__name__, type(_network(model)).__name__
    is_foreign = any(family.model == type(model.model).__name__ and family.network != network for family in FAMILIES)
    return f"{name} run by {network}" if is_foreign else name


def _network(model: Model) -> Any:
    """The network of a model, also of one that was compiled."""
    network = getattr(model.model, "diffusion_model", None)
    return getattr(network, "_orig_mod", network)
