"""Selection of the cross-attention layers to record: by name, or those with the grid used in training."""

from __future__ import annotations

from typing import Literal

from ...concepts.errors import BestiaryError

LayerChoice = Literal["auto", "all", "full", "half", "quarter", "eighth"]
LAYER_FACTORS = {"full": 1, "half": 2, "quarter": 4, "eighth": 8}
"""Edge of the latent divided by the edge of the layer."""
LEAST_AUTO_EDGE = 12
COARSEST_AUTO_FACTOR = 4
SUPPORTED = "Stable Diffusion 1.5, 2, XL or 3, Flux.1, Qwen-Image, Z-Image, Anima or the demo model"
"""Models whose attention can be recorded and confined, for messages."""


def chosen_factors(layers: LayerChoice, latent: tuple[int, int], available: frozenset[int]) -> frozenset[int]:
    """Layers to record, as ratios of the latent's edge to the layer's edge.

    "auto" selects the coarsest grid with at least 12 positions on the shorter edge, at most factor 4: 16x16 for SD 1.5 at
    512 pixels, 32x32 for SDXL at 1024, the layers at which part tokens are trained.
    """
    if layers == "all":
        return available
    if layers != "auto":
        return frozenset({LAYER_FACTORS[layers]})
    # coarse layers carry most of the semantics, but below 12 positions an edge parts can no longer be separated
    wanted = 1
    while wanted < COARSEST_AUTO_FACTOR and min(latent) / (2 * wanted) >= LEAST_AUTO_EDGE:
        wanted *= 2
    # the nearest available factor; ties go to the finer grid
    return frozenset({min(available, key=lambda factor: (max(factor / wanted, wanted / factor), factor))})


def check_blocks(layers: str, family: str) -> None:
    """Check that the choice is one for a diffusion transformer, whose blocks all have the same grid.

    Raises:
        BestiaryError: another choice than auto and all.
    """
    if layers not in ("auto", "all"):
        raise BestiaryError(
            f"Attention Maps: this MODEL is {family}, whose blocks have no layers {layers!r}; choose auto or all"
        )


def check_layers(layers: str, available: frozenset[int], model: str = "") -> None:
    """Check that this model has the chosen layers; `model` is what it is called.

    Raises:
        BestiaryError: an unknown choice, or no cross-attention at these layers, or none at all.
    """
    if not available:
        name = f" ({model})" if model else ""
        raise BestiaryError(
            f"Attention Maps: this MODEL{name} has no cross-attention that can be recorded; use {SUPPORTED}"
        )
    # list only the menu entries that this model supports
    names = ["auto", "all", *(name for name, factor in LAYER_FACTORS.items() if factor in available)]
    if layers not in names:
        raise BestiaryError(
            f"Attention Maps: this MODEL has no cross-attention at layers {layers!r}; choose {', '.join(names)}"
        )
