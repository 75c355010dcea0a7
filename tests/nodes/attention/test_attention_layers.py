"""Layers of attention maps: those of a training by themselves, by name, and names that a model lacks."""

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.attention.attention_layers import check_layers, chosen_factors


@pytest.mark.parametrize(
    ("latent_size", "available", "factor"),
    [
        ((64, 64), {1, 2, 4, 8}, 4),
        ((56, 88), {1, 2, 4, 8}, 4),
        ((32, 32), {1, 2, 4, 8}, 2),
        ((16, 16), {1, 2, 4}, 1),
        ((128, 128), {2, 4}, 4),
        ((16, 16), {2, 4}, 2),
        ((192, 192), {1, 2, 4, 8}, 4),
        ((64, 64), {2, 8}, 2),
    ],
)
def test_auto_takes_the_grid_at_which_parts_are_trained(latent_size, available, factor):
    assert chosen_factors("auto", latent_size, frozenset(available)) == {factor}


def test_layers_by_name():
    available = frozenset({1, 2, 4})
    assert chosen_factors("all", (64, 64), available) == available
    assert chosen_factors("half", (64, 64), available) == {2}


@pytest.mark.parametrize("layers", ["eighth", "../../evil"])
def test_layers_that_are_not_there_are_told(layers):
    with pytest.raises(
        BestiaryError, match=f"no cross-attention at layers '{layers}'; choose auto, all, half, quarter"
    ):
        check_layers(layers, frozenset({2, 4}))
