"""Learned vectors of stages: directly, and through ProSpect's network."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.stage_table import ProspectNetwork, StageTable


def test_only_asked_stages_have_a_gradient() -> None:
    table = StageTable(torch.randn(2, 8), 5)
    table.stages_of([3, 1]).square().sum().backward()
    assert [row.grad is None for row in table.rows] == [True, False, True, False, True]


def test_kept_norms_are_those_of_the_start() -> None:
    start = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    table = StageTable(start, 3)
    table.perturb(2.0, torch.Generator().manual_seed(0))
    assert torch.allclose(table.matrix().norm(dim=-1), torch.tensor([5.0, 0.5]).expand(3, 2))
    assert not torch.allclose(table.matrix()[0], table.matrix()[1])


@pytest.mark.parametrize(("norm", "wanted"), [("free", [0.5, 20.0]), ("clamp", [0.5, 5.0]), ("keep", [5.0, 5.0])])
def test_norm_rules(norm: str, wanted: list[float]) -> None:
    table = StageTable(torch.tensor([[3.0, 4.0]]), 2, norm=norm)
    with torch.no_grad():
        table.rows[0].mul_(0.1)
        table.rows[1].mul_(4)
    assert table.matrix().norm(dim=-1).flatten().tolist() == pytest.approx(wanted)


def test_fresh_tables_hold_the_start_exactly_where_norms_are_free() -> None:
    start = torch.randn(3, 16)
    assert torch.equal(StageTable(start, 4, norm="free").matrix(), start.expand(4, 3, 16))


def test_perturbing_is_seeded() -> None:
    tables = [StageTable(torch.ones(1, 8), 3) for _ in range(2)]
    for table in tables:
        table.perturb(0.1, torch.Generator().manual_seed(7))
    assert torch.equal(tables[0].matrix(), tables[1].matrix())


def test_the_network_counts_as_published() -> None:
    with torch.device("meta"):
        network = ProspectNetwork(torch.empty(1, 768), 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 31_477_248
    assert len(list(network.parameters())) == 20


def test_the_network_drops_out_only_while_training() -> None:
    torch.manual_seed(0)
    network = ProspectNetwork(torch.randn(1, 32), 4).train()
    assert not torch.equal(network.stages_of([0]), network.stages_of([0]))
    assert torch.equal(network.matrix(), network.matrix()) and network.training
    assert network.matrix().shape == (4, 1, 32)


def test_the_network_lists_the_last_stage_first() -> None:
    network = ProspectNetwork(torch.randn(1, 32), 4).eval()
    assert torch.equal(network.matrix()[:, 0], network().flip(0))


def test_queries_and_keys_learn_nothing() -> None:
    network = ProspectNetwork(torch.randn(1, 32), 2)
    network.stages_of([0, 1]).sum().backward()
    idle = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert {"attn1.to_q.weight", "attn1.to_k.weight", "attn2.to_q.weight", "attn2.to_k.weight"} <= idle


def test_published_weights_that_do_not_fit() -> None:
    good = dict(ProspectNetwork(torch.randn(1, 32), 4).state_dict())
    assert ProspectNetwork.from_published(torch.zeros(1, 32), good).stages == 4
    with pytest.raises(BestiaryError, match="its tensor extra has shape"):
        ProspectNetwork.from_published(torch.zeros(1, 32), good | {"extra": torch.zeros(1)})
    del good["norm1.bias"]
    with pytest.raises(BestiaryError, match=r"its tensor norm1.bias has shape none, \(32,\) is needed"):
        ProspectNetwork.from_published(torch.zeros(1, 32), good)
