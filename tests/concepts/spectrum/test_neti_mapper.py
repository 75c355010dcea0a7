"""NeTI's mapper against the same network in torch's own modules, and mappers that are no mappers."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.neti_mapper import LAYERS, NetiMapper
from torch import Tensor, nn

FREQUENCIES, WIDTH, HIDDEN, OUTPUT = 5, 12, 8, 6


@pytest.fixture
def network() -> nn.ModuleDict:
    """The published layout: an encoder, two hidden layers with norms, one output layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, WIDTH), nn.Linear(WIDTH, HIDDEN), nn.LayerNorm(HIDDEN), nn.LeakyReLU(),
            nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN), nn.LeakyReLU(),
        )  # fmt: skip
        for layer in (net[2], net[5]):
            nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
        return nn.ModuleDict({"net": net, "output_layer": nn.Sequential(nn.Linear(HIDDEN, OUTPUT))})


@pytest.fixture
def frequencies() -> Tensor:
    """`(n, 2)` for timestep and layer."""
    return torch.linspace(-0.3, 0.4, 2 * FREQUENCIES).view(FREQUENCIES, 2)


def _mapper(network: nn.ModuleDict, frequencies: Tensor | None, norm: float | None = None) -> NetiMapper:
    return NetiMapper(dict(network.state_dict()), frequencies, norm)


@torch.no_grad()
def _theirs(network: nn.ModuleDict, frequencies: Tensor, timestep: float, layer: float, keep: int = HIDDEN) -> Tensor:
    """One point by the book: sines and cosines of unit length, the network, hidden numbers beyond `keep` dropped."""
    angles = frequencies[:, 0] * timestep + frequencies[:, 1] * layer  # (n,)
    features = torch.cat([angles.sin(), angles.cos()])
    hidden = network["net"](features / features.norm())
    hidden[keep:] = 0
    return network["output_layer"](hidden)


@pytest.mark.parametrize("keep", [HIDDEN, 3, 0])
def test_points_equal_the_reference(network, frequencies, keep: int) -> None:
    timesteps, layers = torch.tensor([0, 400, 999]), torch.tensor([0, 7, 15])
    ours = _mapper(network, frequencies).at(timesteps, layers, truncation=keep)
    theirs = torch.stack([_theirs(network, frequencies, float(t), float(layer), keep) for t, layer in zip(timesteps, layers, strict=True)])  # fmt: skip
    assert ours.shape == (3, OUTPUT) and torch.allclose(ours, theirs, atol=1e-5)


def test_the_grid_has_all_layers_of_each_timestep(network, frequencies) -> None:
    grid = _mapper(network, frequencies).grid(torch.tensor([950, 50]))
    assert grid.shape == (2, LAYERS, OUTPUT)
    assert torch.allclose(grid[1, 3], _theirs(network, frequencies, 50, 3), atol=1e-5)
    assert torch.allclose(grid[0, 15], _theirs(network, frequencies, 950, 15), atol=1e-5)


def test_a_norm_is_kept_by_every_output(network, frequencies) -> None:
    free, kept = (_mapper(network, frequencies, norm).grid(torch.tensor([10])) for norm in (None, 0.4))
    assert torch.allclose(kept.norm(dim=-1), torch.full((1, LAYERS), 0.4))
    assert torch.allclose(kept / 0.4, free / free.norm(dim=-1, keepdim=True), atol=1e-6)


def test_without_frequencies_the_two_numbers_reach_the_network_scaled_to_one(network) -> None:
    network["net"] = nn.Sequential(nn.Identity(), nn.Linear(2, HIDDEN), *list(network["net"])[2:])
    mapper = NetiMapper({k: v for k, v in network.state_dict().items() if not k.startswith("net.0")}, None)
    corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])  # (3, 2)
    with torch.no_grad():
        theirs = network["output_layer"](network["net"](corners))
    assert torch.allclose(mapper.at(torch.tensor([0, 999, 0]), torch.tensor([0, 15, 15])), theirs, atol=1e-6)


def test_mappers_that_do_not_fit_are_told(network, frequencies) -> None:
    tensors = dict(network.state_dict())
    with pytest.raises(BestiaryError, match="the mapper lacks output_layer.0.weight: not a NeTI mapper, or truncated"):
        NetiMapper({k: v for k, v in tensors.items() if k != "output_layer.0.weight"}, frequencies)
    with pytest.raises(BestiaryError, match=r"frequencies \(4, 2\) do not match the first layer \(12, 10\)"):
        NetiMapper(tensors, frequencies[:4])
    with pytest.raises(
        BestiaryError, match="the second layer of the mapper has 12 inputs, but its first one has 2 outputs"
    ):
        NetiMapper(tensors, None)
    with pytest.raises(BestiaryError, match=r"truncation 9: choose 0 \(most editable\) to 8 \(as trained\)"):
        _mapper(network, frequencies).at(torch.zeros(1), torch.zeros(1), truncation=9)
