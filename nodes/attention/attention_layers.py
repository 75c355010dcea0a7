"""Which cross-attention layers are recorded: by name, or those whose grid is as coarse as that of a training."""

from __future__ import annotations

from typing import Literal

from ...concepts.errors import BestiaryError

LayerChoice = Literal["auto", "all", "full", "half", "quarter", "eighth"]
LAYER_FACTORS = {"full": 1, "half": 2, "quarter": 4, "eighth": 8}
"""Edge of the latent divided by the edge of the layer."""
LEAST_AUTO_EDGE = 12
COARSEST_AUTO_FACTOR = 4


def chosen_factors(layers: LayerChoice, latent: tuple[int, int], available: frozenset[int]) -> frozenset[int]:
    """At which layers to record, as edge of the latent over edge of the layer.

    "auto" takes the coarsest grid of at least 12 positions on the shorter edge, at most a quarter of the latent: 16x16 for
    SD 1.5 at 512 pixels, 32x32 for SDXL at 1024, the layers at which part tokens are trained.
    """
    if layers == "all":
        return available
    if layers != "auto":
        return frozenset({LAYER_FACTORS[layers]})
    # as coarse as the grid stays fine enough to tell parts apart
    wanted = 1
    while wanted < COARSEST_AUTO_FACTOR and min(latent) / (2 * wanted) >= LEAST_AUTO_EDGE:
        wanted *= 2
    # the nearest there is; of two equally near ones the finer
    return frozenset({min(available, key=lambda factor: (max(factor / wanted, wanted / factor), factor))})


def check_layers(layers: str, available: frozenset[int]) -> None:
    """Refuse a choice of layers that this model does not have.

    Raises:
        BestiaryError: no such choice, or the model has no cross-attention there, or none at all.
    """
    if not available:
        raise BestiaryError(
            "Attention Maps: this MODEL has no cross-attention that can be recorded; "
            "use Stable Diffusion 1.5, 2, XL or the demo model"
        )
    # what this model has, in the words of the menu
    names = ["auto", "all", *(name for name, factor in LAYER_FACTORS.items() if factor in available)]
    if layers not in names:
        raise BestiaryError(
            f"Attention Maps: this MODEL has no cross-attention at layers {layers!r}; choose {', '.join(names)}"
        )
