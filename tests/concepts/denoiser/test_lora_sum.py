"""Adding LoRA sets exactly."""

import pytest
import torch
from bestiary.concepts.denoiser.lora_sum import sum_loras
from bestiary.concepts.errors import BestiaryError
from torch import Tensor


def adapter(module: str, rank: int, alpha: float | None, seed: int, tail: tuple[int, ...] = ()) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{module}.lora_down.weight": torch.randn(rank, 6, *tail, generator=generator),
        f"{module}.lora_up.weight": torch.randn(5, rank, *[1] * len(tail), generator=generator),
    }
    return tensors if alpha is None else {**tensors, f"{module}.alpha": torch.tensor(alpha)}


def update(tensors: dict[str, Tensor], module: str) -> Tensor:
    down, up = tensors[f"{module}.lora_down.weight"], tensors[f"{module}.lora_up.weight"]
    scale = tensors.get(f"{module}.alpha", torch.tensor(float(down.shape[0]))) / down.shape[0]
    return scale * (up.flatten(1) @ down.flatten(1))


def test_the_sum_is_exact_for_different_ranks_and_alphas() -> None:
    first, second = adapter("m", 4, 2.0, 0), adapter("m", 3, None, 1)
    ours = sum_loras(first, second, (0.7, 1.3))
    assert ours["m.lora_down.weight"].shape == (7, 6)
    assert torch.allclose(update(ours, "m"), 0.7 * update(first, "m") + 1.3 * update(second, "m"), atol=1e-5)


def test_convolutions_add_too() -> None:
    first, second = adapter("c", 2, 1.0, 0, (3, 3)), adapter("c", 5, 5.0, 1, (3, 3))
    ours = sum_loras(first, second, (1, 1))
    assert torch.allclose(update(ours, "c"), update(first, "c") + update(second, "c"), atol=1e-5)


def test_layers_of_one_only_keep_their_update_and_strength_zero_leaves_a_set_out() -> None:
    first, second = adapter("a", 4, 2.0, 0), adapter("b", 4, 4.0, 1)
    both = sum_loras(first, second, (0.5, 1))
    assert torch.allclose(update(both, "a"), 0.5 * update(first, "a"), atol=1e-6)
    assert torch.allclose(update(both, "b"), update(second, "b"), atol=1e-6)
    assert not any(name.startswith("b") for name in sum_loras(first, second, (1, 0)))
    assert sum_loras({}, {}, (1, 1)) == {}


def test_misfits_are_named() -> None:
    first = adapter("m", 4, 2.0, 0)
    wide = {name: torch.zeros(4, 9) if "down" in name else tensor for name, tensor in first.items()}
    with pytest.raises(BestiaryError, match=r"m is \(4, 6\) in one LoRA and \(4, 9\) in the other"):
        sum_loras(first, wide, (1, 1))
    with pytest.raises(BestiaryError, match="has m.lora_down.weight but no m.lora_up.weight"):
        sum_loras({"m.lora_down.weight": torch.zeros(4, 6)}, {}, (1, 1))
