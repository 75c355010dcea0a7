"""Attention columns against the explicit softmax, and averages over layers."""

import pytest
import torch
from bestiary.concepts.denoiser.attention_maps import attend_with_columns, attention_columns, average_maps
from bestiary.concepts.errors import BestiaryError
from torch import Tensor
from torch.nn import functional


def draw(batch: int = 2, heads: int = 3, queries: int = 12, tokens: int = 7, width: int = 5) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(batch, heads, queries, width), (batch, heads, tokens, width), (batch, heads, tokens, width)]
    return [torch.randn(shape, dtype=torch.float32, requires_grad=True) for shape in shapes]


def explicit(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    probabilities = (q @ k.transpose(-1, -2) * scale).softmax(-1)  # (B, H, N, T)
    mean = probabilities.mean(1)  # (B, N, T)
    columns = torch.zeros(mean.shape[0], mean.shape[1], positions.shape[1])
    for row, places in enumerate(positions.tolist()):
        for column, place in enumerate(places):
            if place >= 0:
                columns[row, :, column] = mean[row, :, place]
    return probabilities @ v, columns


POSITIONS = torch.tensor([[1, 6, -1], [0, -1, 3]])


@pytest.mark.parametrize("method", ["lse", "one_hot"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_columns_and_output_equal_the_softmax(method: str, scale: float | None) -> None:
    q, k, v = draw()
    theirs, their_columns = explicit(q, k, v, POSITIONS, scale or 5**-0.5)
    ours, our_columns = attend_with_columns(q, k, v, POSITIONS.unsqueeze(-1), scale, method)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.allclose(our_columns, their_columns, atol=1e-6)
    assert our_columns[0, :, 2].abs().max() == 0
    assert our_columns[1, :, 1].abs().max() == 0


@pytest.mark.parametrize("method", ["lse", "one_hot"])
def test_gradients_equal_those_of_the_softmax(method: str) -> None:
    def gradients(compute) -> list[Tensor]:
        q, k, v = draw()
        output, columns = compute(q, k, v)
        (output.sin().sum() + 5 * columns.square().sum()).backward()
        return [q.grad, k.grad, v.grad]

    theirs = gradients(lambda q, k, v: explicit(q, k, v, POSITIONS, 5**-0.5))
    ours = gradients(lambda q, k, v: attend_with_columns(q, k, v, POSITIONS.unsqueeze(-1), None, method))
    for our_gradient, their_gradient in zip(ours, theirs, strict=True):
        assert (our_gradient - their_gradient).norm() / their_gradient.norm() < 1e-5


def test_lse_leaves_the_output_bit_identical() -> None:
    q, k, v = draw()
    ours, _ = attend_with_columns(q, k, v, POSITIONS.unsqueeze(-1), None, "lse")
    assert torch.equal(ours, functional.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize(("width", "asked"), [(40, 8), (64, 8), (5, 3), (8, 1)])
def test_one_hot_pads_to_multiples_of_eight(width: int, asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = functional.scaled_dot_product_attention

    def recorded(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        seen.append((q.shape[-1], k.shape[-1], v.shape[-1]))
        return plain(q, k, v, scale=scale)

    q, k, v = draw(width=width, tokens=9)
    positions = torch.arange(asked).expand(2, -1)
    theirs = explicit(q, k, v, positions, width**-0.5)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", recorded)
    ours = attend_with_columns(q, k, v, positions.unsqueeze(-1), None, "one_hot")
    expected = -(-(width + asked) // 8) * 8
    assert seen == [(expected,) * 3]
    assert torch.allclose(ours[1], theirs[1], atol=1e-6)


def test_columns_survive_half_precision() -> None:
    q, k, v = (tensor.detach().bfloat16() for tensor in draw())
    _, theirs = explicit(q.float(), k.float(), v.float(), POSITIONS, 5**-0.5)
    ours = attention_columns(q, k, POSITIONS.unsqueeze(-1))
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, theirs, atol=0.02)


def test_average_is_the_mean_over_layers_of_one_size() -> None:
    first, second = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    assert torch.allclose(average_maps({"a": first, "b": second}, 4), (first + second) / 2)


def test_finer_maps_are_averaged_and_coarser_ones_interpolated() -> None:
    fine = torch.arange(16.0).view(1, 1, 4, 4)
    assert average_maps({"a": fine}, 2)[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    coarse = torch.tensor([[[[0.0, 1.0]]]])
    assert average_maps({"a": coarse}, (1, 4))[0, 0, 0].tolist() == pytest.approx([0, 0.25, 0.75, 1])


def test_a_constant_map_stays_constant_at_every_size() -> None:
    for size in (3, 8, (5, 9)):
        assert torch.allclose(average_maps({"a": torch.full((1, 2, 6, 6), 0.25)}, size), torch.tensor(0.25))


def test_nothing_captured_is_an_error() -> None:
    with pytest.raises(BestiaryError, match="no attention map was captured"):
        average_maps({}, 16)


def test_unknown_method_is_named() -> None:
    with pytest.raises(BestiaryError, match="unknown attention method 'dense': choose lse or one_hot"):
        attend_with_columns(*draw(), POSITIONS, None, "dense")
