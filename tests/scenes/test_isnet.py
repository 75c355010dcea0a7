"""The network: its names and sizes, what it does with a picture, and how it is wired."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.isnet import IsNet, expected_shapes, network_with, segment, wiring
from torch import Tensor, nn


@pytest.fixture(scope="module")
def network() -> IsNet:
    return IsNet().requires_grad_(False).eval()


def test_names_and_shapes_are_those_of_the_published_weights(network: IsNet) -> None:
    assert sum(parameter.numel() for parameter in network.parameters()) == 44_046_790
    shapes = expected_shapes()
    assert len(shapes) == 798 and shapes == {name: tuple(t.shape) for name, t in network.state_dict().items()}
    known = {
        "conv_in.weight": (64, 3, 3, 3),
        "stage1.rebnconvin.conv_s1.weight": (64, 64, 3, 3),
        "stage1.rebnconv7.bn_s1.running_var": (32,),
        "stage1.rebnconv6d.conv_s1.weight": (32, 64, 3, 3),
        "stage4.rebnconv1d.conv_s1.weight": (512, 256, 3, 3),
        "stage5.rebnconv4.conv_s1.bias": (256,),
        "stage5d.rebnconvin.conv_s1.weight": (512, 1024, 3, 3),
        "stage1d.rebnconv6d.bn_s1.num_batches_tracked": (),
        "side6.weight": (1, 512, 3, 3),
    }
    assert {name: shapes[name] for name in known} == known
    assert "stage5.rebnconv5.conv_s1.weight" not in shapes and "stage6d.rebnconvin.conv_s1.weight" not in shapes
    assert network.stage2.rebnconv6.conv_s1.dilation == (2, 2) and network.stage6.rebnconv4.conv_s1.dilation == (8, 8)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 71)])
def test_answers_have_the_size_of_the_picture(network: IsNet, height: int, width: int) -> None:
    x = torch.rand(1, 3, height, width) - 0.5
    answer = network(x)
    assert answer.shape == (1, 1, height, width) and 0 <= float(answer.min()) <= float(answer.max()) <= 1
    sides = network.side_outputs(x)
    assert [tuple(side.shape) for side in sides] == [(1, 1, height, width)] * 6
    torch.testing.assert_close(sides[0], answer)


def test_the_wiring_names_every_convolution_once() -> None:
    steps = wiring()
    names = [step.convolution for step in steps if step.operation == "Conv"]
    assert len(names) == len(set(names)) == 119
    known = {name for name in expected_shapes() if name.rsplit(".", 1)[0] in names}
    assert len(known) == 2 * 119
    # whatever is taken was made before
    made: set[str] = set()
    for step in steps:
        assert set(step.inputs) <= made
        made.add(step.output)
    assert {len(step.inputs) for step in steps if step.operation in ("Concat", "Add")} == {2}


def test_numbers_that_are_not_finite_are_refused(network: IsNet) -> None:
    state = dict(network.state_dict())
    state["side3.bias"] = torch.tensor([float("nan")])
    with pytest.raises(BestiaryError, match="side3.bias holds numbers that are not finite"):
        network_with(state)
    with pytest.raises(BestiaryError, match="it holds more than IS-Net's, such as 'head'"):
        network_with({**network.state_dict(), "head": torch.zeros(1)})


def test_weights_without_counters_are_complete(network: IsNet) -> None:
    """Files of other frameworks do not count batches."""
    state = {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert len(network_with(state).state_dict()) == 798


class Bright(nn.Module):
    """Stands in for the network: what is red belongs to the thing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return (x[:, :1] + 0.5) * self.weight


def test_a_mask_lies_on_its_picture() -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[10:30, 50:70, 0] = 255
    network = Bright()
    alpha = segment(network, picture, edge=64)
    assert alpha.shape == (40, 80) and alpha.dtype == np.float32
    assert alpha[20, 60] == 1 and alpha[20, 10] == 0 and abs(float(alpha.mean()) - 400 / 3200) < 0.01
    assert network.seen is not None and network.seen.shape == (1, 3, 64, 64)
    assert float(network.seen.min()) == -0.5 and float(network.seen.max()) == 0.5


def test_a_constant_picture_is_not_stretched() -> None:
    """Whatever stretched the answer to 0..1 would divide by zero here, or turn faint noise white."""
    alpha = segment(Bright(), np.full((30, 30, 3), 10, np.uint8), edge=32)
    assert np.isfinite(alpha).all() and np.allclose(alpha, 10 / 255, atol=1e-3)


def test_bf16_gives_nearly_the_same() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    ours, theirs = (segment(Bright(), picture, edge=32, bf16=bf16) for bf16 in (True, False))
    assert np.abs(ours - theirs).max() < 0.01


def test_no_other_file_of_the_package_imports_torch() -> None:
    folder = Path(__file__).parents[2] / "scenes"
    guilty = []
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # for type checkers it may stand in `if TYPE_CHECKING`
        checked = {id(node) for block in ast.walk(tree) if isinstance(block, ast.If) for node in ast.walk(block)}
        names = [
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in checked
            for name in ([node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
        ]
        if any(name and name.split(".")[0] == "torch" for name in names):
            guilty.append(path.name)
    assert guilty == ["isnet.py"]


@pytest.mark.slow
def test_full_size(network: IsNet) -> None:
    alpha = segment(network, np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    assert alpha.shape == (300, 400) and np.isfinite(alpha).all()
