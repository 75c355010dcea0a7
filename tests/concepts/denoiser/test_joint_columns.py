"""Columns of joint attention against the explicit softmax, their gradients, and what they hold in memory."""

from collections.abc import Callable

import pytest
import torch
from bestiary.concepts.denoiser.joint_columns import JointKeys, attend_jointly, output_similarity
from bestiary.concepts.errors import BestiaryError
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TEXT, IMAGE = 7, 12
COLUMNS = torch.tensor([[[1, 4], [6, -1], [-1, -1]], [[0, 5], [-1, -1], [3, -1]]])
PLACES = [JointKeys(TEXT, True), JointKeys(TEXT, False)]


def draw(width: int = 5, heads: int = 3) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, heads, TEXT + IMAGE, width, requires_grad=True) for _ in range(3)]


def explicit(q: Tensor, k: Tensor, v: Tensor, keys: JointKeys, form: str, scale: float) -> tuple[Tensor, Tensor]:
    """All probabilities, then the columns picked one by one."""
    probabilities = (q @ k.transpose(-1, -2) * scale).softmax(-1)  # (B, H, T, T)
    output = probabilities @ v
    first = 0 if keys.text_first else IMAGE
    image = slice(TEXT, None) if keys.text_first else slice(0, IMAGE)
    text = probabilities[:, :, image, first : first + TEXT]  # (B, H, N, L)
    if form == "text":
        text = text / text.sum(-1, keepdim=True)
    mean = text.mean(1)
    if form == "output":
        rows = output.transpose(1, 2).flatten(2)
        mean = rows[:, image] @ rows[:, first : first + TEXT].transpose(-1, -2)  # (B, N, L)
    found = []
    for row, tokens in enumerate(COLUMNS.tolist()):
        picked = [[place for place in places if place >= 0] for places in tokens]
        own = [mean[row][:, places].sum(-1) / (len(places) if form == "output" else 1) for places in picked if places]
        own = list(torch.stack(own).softmax(0) if form == "output" else own)
        found.append(torch.stack([own.pop(0) if places else torch.zeros(IMAGE) for places in picked], dim=-1))
    return output, torch.stack(found)


CASES = [("text", "one_hot"), ("text", "lse"), ("joint", "one_hot"), ("joint", "lse"), ("output", "lse")]


@pytest.mark.parametrize("keys", PLACES, ids=["text first", "text last"])
@pytest.mark.parametrize(("form", "method"), CASES)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_columns_and_output_equal_the_softmax(form: str, method: str, keys: JointKeys, scale: float | None) -> None:
    q, k, v = draw()
    theirs, their_columns = explicit(q, k, v, keys, form, scale or 5**-0.5)
    ours, our_columns = attend_jointly(q, k, v, COLUMNS, keys, form=form, method=method, scale=scale)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert our_columns.shape == (2, IMAGE, 3)
    assert torch.allclose(our_columns, their_columns, atol=1e-6)
    assert not our_columns[0, :, 2].any() and not our_columns[1, :, 1].any()


@pytest.mark.parametrize("keys", PLACES, ids=["text first", "text last"])
@pytest.mark.parametrize(("form", "method"), CASES)
def test_gradients_equal_those_of_the_softmax(form: str, method: str, keys: JointKeys) -> None:
    def gradients(compute: Callable[..., tuple[Tensor, Tensor]]) -> list[Tensor]:
        q, k, v = draw()
        output, columns = compute(q, k, v)
        (output.sin().sum() + 50 * columns.square().sum()).backward()
        return [q.grad, k.grad, v.grad]

    theirs = gradients(lambda q, k, v: explicit(q, k, v, keys, form, 5**-0.5))
    ours = gradients(lambda q, k, v: attend_jointly(q, k, v, COLUMNS, keys, form=form, method=method))
    for our_gradient, their_gradient in zip(ours, theirs, strict=True):
        assert (our_gradient - their_gradient).norm() / their_gradient.norm() < 1e-5


@pytest.mark.parametrize("form", ["text", "joint", "output"])
def test_sampling_leaves_the_output_bit_identical(form: str) -> None:
    q, k, v = draw()
    ours, _ = attend_jointly(q, k, v, COLUMNS, PLACES[0], form=form, method="lse")
    assert torch.equal(ours, functional.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("method", ["one_hot", "lse"])
def test_shares_of_all_text_tokens_sum_to_one(method: str) -> None:
    everything = torch.arange(TEXT).view(1, TEXT, 1).expand(2, -1, -1)
    _, shares = attend_jointly(*draw(), everything, PLACES[1], method=method)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, IMAGE))


def test_shares_are_kept_where_hardly_anything_falls_on_text() -> None:
    """Both ways agree; where even the sum over text is 0 in float32, the share of one call is 0 and not 0 / 0."""
    q, k, v = (tensor.detach() for tensor in draw())
    low = k.clone()
    low[:, :, :TEXT] -= 4 * q.mean((0, 1, 2))
    q = q + 4  # image keys score far higher than text keys
    shares = [attend_jointly(q, low, v, COLUMNS, PLACES[0], method=method)[1] for method in ("one_hot", "lse")]
    torch.testing.assert_close(*shares, atol=1e-5, rtol=1e-4)
    nothing = k.clone()
    nothing[:, :, :TEXT] -= 500
    q = q.abs()
    assert not attend_jointly(q, nothing, v, COLUMNS, PLACES[0], method="one_hot")[1].isnan().any()


def test_half_precision_stays_near_the_softmax() -> None:
    q, k, v = (tensor.detach().bfloat16() for tensor in draw())
    _, theirs = explicit(q.float(), k.float(), v.float(), PLACES[0], "text", 5**-0.5)
    for method in ("one_hot", "lse"):
        output, ours = attend_jointly(q, k, v, COLUMNS, PLACES[0], method=method)
        assert ours.dtype == torch.float32 and output.dtype == torch.bfloat16
        assert torch.allclose(ours, theirs, atol=0.02)


def test_output_similarity_of_no_token_is_nothing() -> None:
    maps = output_similarity(draw()[2], torch.full((2, 3, 2), -1), PLACES[0])
    assert maps.shape == (2, IMAGE, 3) and not maps.any()


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made, forwards and backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize(("form", "method"), CASES)
def test_no_form_holds_all_scores(form: str, method: str) -> None:
    """At Flux's shape for 1024 pixels, on fake tensors, with everything that is kept for the backward pass."""
    heads, image, text, width, parts = 24, 4096, 512, 128, 8
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode(), Largest() as largest:
        q, k, v = (
            torch.empty(1, heads, image + text, width, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
        )
        columns = torch.zeros(1, parts, 1, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output, maps = attend_jointly(q, k, v, columns, JointKeys(text, True), form=form, method=method)
        (output.float().sum() + maps.sum()).backward()
    assert maps.shape == (1, image, parts) and q.grad.shape == q.shape
    # all scores would be 24 * 4608 * 4608; no more than a few times what goes in and out
    assert largest.elements <= heads * (image + text) * (width + 16)
    if method == "one_hot" or form == "output":
        explicit_bytes = 4 * heads * (image + text) ** 2
        assert sum(saved.values()) * 8 < explicit_bytes


def test_wrong_requests_are_named() -> None:
    with pytest.raises(BestiaryError, match="unknown form of columns 'dense': choose text, joint or output"):
        attend_jointly(*draw(), COLUMNS, PLACES[0], form="dense")
    with pytest.raises(BestiaryError, match="unknown attention method 'dense': choose lse or one_hot"):
        attend_jointly(*draw(), COLUMNS, PLACES[0], method="dense")
    with pytest.raises(BestiaryError, match="19 text keys of 19 in all leave none for the image"):
        attend_jointly(*draw(), COLUMNS, JointKeys(19, True))
