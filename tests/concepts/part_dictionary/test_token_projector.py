"""The token projector against hand computation and published shapes."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.token_projector import ProjectorShape, TokenProjector, infer_shape
from torch import Tensor


def ramp(module: torch.nn.Module) -> None:
    """Fill every parameter with an evenly spaced ramp from -1 to 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))


def published(parts: int, kinds: int, width: int, depth: int, positional: bool) -> dict[str, Tensor]:
    tensors = {"embedding.weight": torch.randn(parts * (kinds + 1), width)}
    if positional:
        tensors["pe"] = torch.randn(parts, width)
    for level in range(depth):
        tensors[f"projection.{2 * level}.weight"] = torch.randn(width, width) / width**0.5
        tensors[f"projection.{2 * level}.bias"] = torch.randn(width)
    return tensors


def by_hand(tensors: dict[str, Tensor], part: int, kind: int, kinds: int, depth: int) -> Tensor:
    y = tensors["embedding.weight"][part * (kinds + 1) + kind]
    if "pe" in tensors:
        y = y + tensors["pe"][part]
    for level in range(depth):
        y = tensors[f"projection.{2 * level}.weight"] @ y + tensors[f"projection.{2 * level}.bias"]
        y = y.clamp(min=0) if level < depth - 1 else y
    return y


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("positional", [True, False])
def test_published_keys_are_inferred_and_computed_as_by_hand(depth: int, positional: bool) -> None:
    torch.manual_seed(depth)
    tensors = published(3, 4, 6, depth, positional)
    projector = TokenProjector.from_state_dict(tensors, num_parts=None if positional else 3)
    assert infer_shape(tensors, 3) == ProjectorShape(3, 4, 6, depth, positional)
    assert projector.state_dict().keys() == tensors.keys()
    table = projector.collapse()
    assert table.shape == (3, 5, 6)
    for part in range(3):
        for kind in range(5):
            theirs = by_hand(tensors, part, kind, 4, depth)
            ours = projector(torch.tensor(part), torch.tensor(kind))
            assert torch.allclose(ours, theirs, atol=1e-5)
            assert torch.allclose(table[part, kind], ours, atol=1e-6)


@pytest.mark.parametrize("width", [768, 1024, 2048])
def test_published_sizes(width: int) -> None:
    shape = infer_shape(published(8, 256, width, 1, True))
    assert shape == ProjectorShape(8, 256, width, 1, True)
    projector = TokenProjector(8, 256, 768, depth=1)
    assert sum(p.numel() for p in projector.parameters()) == 2_175_744


def test_two_numbers_computed_on_paper() -> None:
    projector = TokenProjector(1, 1, 2, depth=2)
    ramp(projector)
    # row 0 = (-1, -1/3), pe = (-1, 1): x = (-2, 2/3); W = ((-1, -1/3), (1/3, 1)), b = (-1, 1)
    # first layer: (2 - 2/9 - 1, -2/3 + 2/3 + 1) = (7/9, 1); second: (-7/9 - 1/3 - 1, 7/27 + 1 + 1) = (-19/9, 61/27)
    ours = projector(torch.tensor([0]), torch.tensor([0]))
    assert ours.tolist()[0] == pytest.approx([-19 / 9, 61 / 27], abs=1e-6)


def test_a_negative_kind_is_the_absent_row() -> None:
    projector = TokenProjector(2, 3, 4)
    absent = projector(torch.tensor([1]), torch.tensor([-1]))
    assert torch.equal(absent, projector(torch.tensor([1]), torch.tensor([3])))


def test_gradient_reaches_only_the_rows_of_the_batch() -> None:
    projector = TokenProjector(2, 3, 4, depth=1)
    projector(torch.tensor([[0, 1]]), torch.tensor([[2, 0]])).square().sum().backward()
    touched = projector.embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert touched == [2, 4]


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_start_from_words_yields_the_words(depth: int) -> None:
    projector = TokenProjector(3, 2, 5, depth=depth)
    words = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)) * 0.02
    projector.start_from(words)
    ours = projector.collapse()  # (3, 3, 5)
    assert torch.allclose(ours, words[:, None].expand(3, 3, 5), atol=1e-6)
    projector.start_from(words, noise=0.01, generator=torch.Generator().manual_seed(2))
    spread = projector.collapse() - words[:, None]
    assert 0.004 < spread.std().item() < 0.02


def test_init_scale_and_generator_decide_the_start() -> None:
    small = TokenProjector(4, 60, 32, init_scale=0.02, generator=torch.Generator().manual_seed(3))
    again = TokenProjector(4, 60, 32, init_scale=0.02, generator=torch.Generator().manual_seed(3))
    assert torch.equal(small.embedding.weight, again.embedding.weight)
    assert small.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert TokenProjector(4, 60, 32).embedding.weight.std().item() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding.weight": None}, "not a token projector: expected a table 'embedding.weight'"),
        ({"pe": torch.zeros(3, 5)}, r"the tensor .pe. is a tensor of float32 \[3, 5\], expected floats \(M, 6\)"),
        ({"embedding.weight": torch.zeros(16, 6)}, "a table of 16 rows cannot be divided among 3 parts"),
        ({"projection.0.bias": None}, "the projector lacks projection.0.bias"),
        ({"projection.0.weight": torch.zeros(6, 7)}, r"float32 \[6, 7\], expected floats \(6, 6\)"),
        (
            {"projection.0.bias": torch.full((6,), float("nan"))},
            "the tensor .projection.0.bias. contains values that are not finite",
        ),
    ],
)
def test_contradictory_files_are_refused(change: dict[str, Tensor | None], message: str) -> None:
    tensors = {**published(3, 4, 6, 1, True), **change}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(BestiaryError, match=message):
        TokenProjector.from_state_dict(tensors)


def test_without_positions_the_number_of_parts_must_be_given() -> None:
    with pytest.raises(BestiaryError, match="give num_parts"):
        TokenProjector.from_state_dict(published(3, 4, 6, 1, False))
    many = published(1, 1, 2, 9, True)
    with pytest.raises(BestiaryError, match="9 projection layers; a projector has at most 8"):
        infer_shape(many)


def test_wrong_arguments_show_their_values() -> None:
    with pytest.raises(BestiaryError, match="projector depth is 4"):
        TokenProjector(2, 2, 2, depth=4)
    with pytest.raises(BestiaryError, match="num_parts 0"):
        TokenProjector(0, 2, 2)
    with pytest.raises(BestiaryError, match=r"vectors have shape \(1, 2\), expected \(2, 2\)"):
        TokenProjector(2, 2, 2).start_from(torch.zeros(1, 2))
