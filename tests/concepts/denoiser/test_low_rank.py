"""Low-rank adapters: the fused step equals the plain sum, forward and backward, and a fresh adapter changes nothing."""

import pytest
import torch
import torch.nn.functional as F
from bestiary.concepts.denoiser.low_rank import LoraSpec, LowRankUpdate, fresh_update, low_rank_linear


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_fused_step_equals_the_plain_sum(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, down, up = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 5, 6), (7, 6), (7,), (3, 6), (7, 3))
    )
    results = []
    for fused in (True, False):
        update = LowRankUpdate(down.clone(), up.clone(), scale, trainable=True)
        inputs = x.clone().requires_grad_()
        if fused:
            out = low_rank_linear(inputs, weight, bias, update)
        else:
            out = F.linear(inputs, weight, bias) + scale * F.linear(F.linear(inputs, update.down), update.up)
        out.square().sum().backward()
        results.append((out.detach(), inputs.grad, update.down.grad, update.up.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_fresh_adapter_changes_nothing_and_is_drawn_from_torchs_generator() -> None:
    layer = torch.nn.Linear(6, 7)
    torch.manual_seed(3)
    first = fresh_update(layer, LoraSpec(rank=2, alpha=4.0), torch.device("cpu"))
    torch.manual_seed(3)
    second = fresh_update(layer, LoraSpec(rank=2, alpha=4.0), torch.device("cpu"))
    assert torch.equal(first.down, second.down) and first.down.shape == (2, 6) and first.up.shape == (7, 2)
    assert first.scale == 2.0 and first.down.requires_grad
    x = torch.randn(4, 6)
    assert torch.equal(low_rank_linear(x, layer.weight, layer.bias, first), layer(x))


def test_half_precision_inputs_leave_float32_gradients() -> None:
    update = LowRankUpdate(torch.randn(2, 6), torch.randn(7, 2), 1.0, trainable=True)
    x = torch.randn(4, 6, dtype=torch.bfloat16)
    out = low_rank_linear(x, torch.randn(7, 6, dtype=torch.bfloat16), None, update)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and update.down.grad.dtype == torch.float32
