"""DINOv2 files of every origin: which transformer they hold, or why they are none."""

from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features.dino_weights import read_dino_weights
from safetensors.torch import save_file

BASE = "vit_base_patch14_dinov2.lvd142m"


def meta(width: int, patch: int = 14, registers: int = 0) -> dict[str, torch.Tensor]:
    """The names of Meta's files, one block of them."""
    weights = {
        "cls_token": torch.ones(1, 1, width), "pos_embed": torch.zeros(1, 5, width), "mask_token": torch.zeros(1, width),
        "patch_embed.proj.weight": torch.zeros(width, 3, patch, patch), "blocks.0.norm1.weight": torch.zeros(width),
    }  # fmt: skip
    return weights | ({"register_tokens": torch.zeros(1, registers, width)} if registers else {})


@pytest.mark.parametrize(
    ("width", "registers", "name"),
    [
        (384, 0, "vit_small_patch14_dinov2.lvd142m"), (768, 0, BASE), (1024, 0, "vit_large_patch14_dinov2.lvd142m"),
        (384, 4, "vit_small_patch14_reg4_dinov2.lvd142m"), (768, 4, "vit_base_patch14_reg4_dinov2.lvd142m"),
    ],
)  # fmt: skip
def test_the_file_says_which_transformer_it_is(tmp_path: Path, width: int, registers: int, name: str) -> None:
    torch.save(meta(width, registers=registers), tmp_path / "a.pth")
    save_file(meta(width, registers=registers), str(tmp_path / "a.safetensors"))
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        found, weights = read_dino_weights(path, BASE)
        assert found == name and weights["cls_token"].shape[-1] == width
    # another kind of transformer is what the user named
    assert read_dino_weights(tmp_path / "a.pth", "vit_tiny_patch16_224")[0] == "vit_tiny_patch16_224"


def test_teachers_of_a_training(tmp_path: Path) -> None:
    teacher = {f"backbone.{name}".replace("blocks.0.", "blocks.0.0."): tensor for name, tensor in meta(384).items()}
    teacher["dino_head.mlp.0.weight"] = torch.zeros(3)
    torch.save({"teacher": teacher, "iteration": 7}, tmp_path / "teacher_checkpoint.pth")
    name, weights = read_dino_weights(tmp_path / "teacher_checkpoint.pth", BASE)
    assert name == "vit_small_patch14_dinov2.lvd142m"
    assert weights.keys() == meta(384).keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv.weight": torch.zeros(2)}, "is not a DINOv2 checkpoint: it contains conv.weight, expected cls_token"),
        ([1], "is not a DINOv2 checkpoint: it contains no tensors"),
        (meta(100), r"is a vision transformer of width 100; DINOv2 has 384 \(small\)"),
        (meta(768, patch=16), "is a vision transformer with patches of 16x16 pixels; DINOv2 has 14x14"),
    ],
)
def test_others_are_refused_in_plain_words(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(BestiaryError, match=f"x.pth {message}"):
        read_dino_weights(tmp_path / "x.pth", BASE)
