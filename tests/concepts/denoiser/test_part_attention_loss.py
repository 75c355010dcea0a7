"""The part attention loss: published values, absent parts, both forms."""

import pytest
import torch
from bestiary.concepts.denoiser.part_attention_loss import attention_iou, part_attention_loss, per_part_attention_loss
from bestiary.concepts.errors import BestiaryError
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode


def one_hot_masks(parts: int = 8, batch: int = 2, size: int = 16, seed: int = 0) -> Tensor:
    labels = torch.randint(0, parts, (batch, size, size), generator=torch.Generator().manual_seed(seed))
    return functional.one_hot(labels, parts).permute(0, 3, 1, 2).float()  # (B, P, h, w)


def everyone(batch: int = 2, parts: int = 8) -> Tensor:
    return torch.ones(batch, parts, dtype=torch.bool)


def published(maps: Tensor, masks: Tensor) -> Tensor:
    """The formula of the paper written out, without absent parts."""
    share = (maps / maps.sum(1, keepdim=True).clamp(min=1e-6)).clamp(0, 1)
    return -(masks * share.log().clamp(min=-100) + (1 - masks) * (1 - share).log().clamp(min=-100)).mean()


def test_uniform_attention_of_eight_parts() -> None:
    ours = part_attention_loss(torch.full((2, 8, 16, 16), 0.01), one_hot_masks(), everyone())
    assert ours.item() == pytest.approx(0.376770, abs=1e-6)


@pytest.mark.parametrize("form", ["bce", "softmax"])
def test_perfect_attention_costs_nothing(form: str) -> None:
    masks = one_hot_masks()
    maps = masks * (0.02 if form == "bce" else 3.0)
    assert part_attention_loss(maps, masks, everyone(), form).item() < 1e-6


def test_random_attention_equals_the_published_formula() -> None:
    maps, masks = torch.rand(2, 8, 16, 16), one_hot_masks()
    ours = part_attention_loss(maps, masks, everyone())
    assert ours.item() == pytest.approx(published(maps, masks).item(), rel=1e-6)


def test_only_relative_attention_counts() -> None:
    maps, masks = torch.rand(2, 8, 16, 16), one_hot_masks()
    whole = part_attention_loss(maps, masks, everyone())
    scaled = part_attention_loss(maps * 1e-3, masks, everyone())
    assert scaled.item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("form", ["bce", "softmax"])
def test_a_part_the_caption_lacks_changes_nothing(form: str) -> None:
    torch.manual_seed(1)
    masks = one_hot_masks(parts=4)
    maps = torch.rand(2, 4, 16, 16)
    present = torch.tensor([[True, True, True, False]] * 2)
    ours = part_attention_loss(maps, masks, present, form)
    noisy = maps.clone()
    noisy[:, 3] = 7.0
    moved = part_attention_loss(noisy, masks, present, form)
    assert ours.item() == moved.item()
    three = masks[:, :3]
    inside = three.sum(1, keepdim=True)  # the reference formula over the pixels of the three named parts
    share = maps[:, :3] / maps[:, :3].sum(1, keepdim=True)
    if form == "bce":
        entropy = functional.binary_cross_entropy(share, three, reduction="none") * inside
        theirs = entropy.sum() / (3 * inside.sum())
    else:
        share = (10 * maps[:, :3]).softmax(1)
        theirs = -(three * share.log()).sum() / inside.sum()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_missing_token_adds_no_constant() -> None:
    maps, masks = torch.full((2, 8, 16, 16), 0.01), one_hot_masks()
    maps[:, 0] = 0
    assert published(maps, masks).item() > 2
    present = everyone()
    present[:, 0] = False
    assert part_attention_loss(maps, masks, present).item() < 0.5


@pytest.mark.parametrize("form", ["bce", "softmax"])
def test_nothing_named_is_zero_with_zero_gradient(form: str) -> None:
    maps = torch.rand(2, 8, 16, 16, requires_grad=True)
    loss = part_attention_loss(maps, one_hot_masks(), torch.zeros(2, 8, dtype=torch.bool), form)
    loss.backward()
    assert loss.item() == 0
    assert maps.grad.abs().max() == 0


@pytest.mark.parametrize("form", ["bce", "softmax"])
def test_no_gradient_flows_to_absent_parts_and_descent_helps(form: str) -> None:
    maps = torch.rand(2, 8, 16, 16, requires_grad=True)
    masks, present = one_hot_masks(), everyone()
    present[0, 5] = False
    loss = part_attention_loss(maps, masks, present, form)
    loss.backward()
    assert torch.isfinite(maps.grad).all()
    assert maps.grad[0, 5].abs().max() == 0
    stepped = (maps - 20 * maps.grad).detach().clamp(min=1e-3)
    assert part_attention_loss(stepped, masks, present, form) < loss


@pytest.mark.parametrize("form", ["bce", "softmax"])
def test_losses_of_the_parts_add_up_to_the_whole(form: str) -> None:
    maps, masks, present = torch.rand(2, 8, 16, 16), one_hot_masks(), everyone()
    present[1, :3] = False
    losses, weights = per_part_attention_loss(maps, masks, present, form)
    assert losses.shape == weights.shape == (2, 8)
    assert losses[1, :3].abs().max() == 0
    whole = part_attention_loss(maps, masks, present, form)
    assert (losses * weights).sum() / weights.sum() == pytest.approx(whole.item(), rel=1e-6)


def test_softmax_form_of_uniform_attention_is_log_of_the_count() -> None:
    ours = part_attention_loss(torch.full((2, 8, 16, 16), 0.3), one_hot_masks(), everyone(), "softmax")
    assert ours.item() == pytest.approx(torch.log(torch.tensor(8.0)).item(), rel=1e-6)


def test_it_computes_in_float32_under_autocast() -> None:
    maps, masks = torch.rand(2, 8, 16, 16), one_hot_masks()
    plain = part_attention_loss(maps.bfloat16(), masks, everyone())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = part_attention_loss(maps.bfloat16(), masks, everyone())
    assert ours.dtype == torch.float32
    assert ours.item() == plain.item()


class _ForbidHostReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in {"_local_scalar_dense", "nonzero", "index"}, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", ["bce", "softmax"])
def test_it_never_waits_for_the_device(form: str) -> None:
    maps = torch.rand(2, 8, 16, 16, requires_grad=True)
    masks = one_hot_masks()
    with _ForbidHostReads():
        part_attention_loss(maps, masks, everyone(), form).backward()
        attention_iou(maps, masks, everyone())


def test_iou_of_perfect_half_and_absent_parts() -> None:
    masks = torch.zeros(1, 3, 2, 2)
    masks[0, 0, 0], masks[0, 1, 1] = 1, 1
    maps = masks.clone()
    present = torch.tensor([[True, True, False]])
    assert attention_iou(maps, masks, present)[0, :2].tolist() == [1, 1]
    assert attention_iou(maps, masks, present)[0, 2].isnan()
    maps[0, 1, 0, 0] = 2.0  # part 1 steals one of part 0's two pixels
    assert attention_iou(maps, masks, present)[0, :2].tolist() == pytest.approx([1 / 2, 2 / 3])


def test_iou_ignores_pixels_of_parts_that_are_not_named() -> None:
    masks = torch.zeros(1, 2, 1, 2)
    masks[0, 0, 0, 0], masks[0, 1, 0, 1] = 1, 1
    ours = attention_iou(torch.ones(1, 2, 1, 2), masks, torch.tensor([[True, False]]))
    assert ours[0, 0] == 1


def test_errors_show_shapes_and_form() -> None:
    maps = torch.rand(1, 2, 4, 4)
    with pytest.raises(BestiaryError, match=r"maps \(1, 2, 4, 4\), masks \(1, 2, 8, 8\) and present \(1, 2\)"):
        part_attention_loss(maps, torch.rand(1, 2, 8, 8), everyone(1, 2))
    with pytest.raises(BestiaryError, match="unknown attention loss form 'mse': choose bce or softmax"):
        part_attention_loss(maps, maps, everyone(1, 2), "mse")
