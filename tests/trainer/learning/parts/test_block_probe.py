"""The probe of attention layers: the layer that grounds part words comes first, its ranking is kept, and a resumed run reads it."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.parts import block_probe
from bestiary.trainer.learning.parts.block_probe import PROBE_FILE, plain_words, probed_layers, rank_layers
from torch import Tensor

LAYERS = ("blocks.0", "blocks.1", "blocks.2")


@dataclass
class Batch:
    """Two pictures of a head above a tail, and background."""

    masks: Tensor
    codes: Tensor
    moments: Tensor


@pytest.fixture
def batch() -> Batch:
    masks = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    masks[:, 0, :3, :3], masks[:, 1, 5:, 2:] = True, True
    masks[:, 2] = ~(masks[:, 0] | masks[:, 1])
    return Batch(masks, torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 2, 4, 16, 16))


@pytest.fixture
def denoiser() -> SimpleNamespace:
    network = SimpleNamespace(
        attention_grids=lambda size: dict.fromkeys(LAYERS, (8, 8)), method_layers=lambda: LAYERS[:1]
    )
    return SimpleNamespace(network=network, attention_factors=lambda: dict.fromkeys(LAYERS, 2))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch, batch: Batch) -> list[int]:
    """Layer 1 looks where the words `tail` and `head` are, layer 2 nearly, layer 0 anywhere; the calls are counted."""
    calls: list[int] = []

    def attention(_denoiser: object, words: list[str], _batch: Batch, layers: tuple[str, ...]) -> dict[str, Tensor]:
        calls.append(1)
        rng = torch.Generator().manual_seed(0)
        right = torch.stack([batch.masks[:, {"head": 0, "tail": 1}.get(word, 2)].float() for word in words], dim=1)
        noise = torch.rand(right.shape, generator=rng)
        return dict(zip(layers, (noise, 0.05 + right, 9 * noise + right), strict=True))

    monkeypatch.setattr(block_probe, "attention_to_words", attention)
    return calls


def test_the_layer_that_grounds_words_comes_first(denoiser, batch: Batch, looks: list[int]) -> None:
    ranked = rank_layers(denoiser, ["tail", "bird", "head"], [0, 1], batch)
    assert [own.layer for own in ranked] == ["blocks.1", "blocks.2", "blocks.0"]
    assert ranked[0].iou == 1 and ranked[0].iou > ranked[1].iou > ranked[2].iou


def test_the_ranking_is_kept_and_read_again(denoiser, batch: Batch, looks: list[int], tmp_path: Path) -> None:
    kept = tmp_path / PROBE_FILE
    assert probed_layers(denoiser, ["tail", "head"], [0, 1], batch, kept) == ("blocks.1",)
    content = json.loads(kept.read_text())
    assert content["chosen"] == ["blocks.1"] and [own["layer"] for own in content["ranked"]][0] == "blocks.1"
    assert probed_layers(denoiser, ["other"], [0, 1], batch, kept) == ("blocks.1",) and len(looks) == 1
    kept.write_text(json.dumps({"chosen": ["blocks.9"]}))
    with pytest.raises(
        BestiaryError, match=r"blocks.json names layers that this model does not have .*blocks.9.*: delete it"
    ):
        probed_layers(denoiser, ["other"], [0, 1], batch, kept)
    kept.write_text("{")
    with pytest.raises(BestiaryError, match=r"blocks.json is not a ranking of attention layers .*: delete it"):
        probed_layers(denoiser, ["other"], [0, 1], batch, kept)


def test_without_words_the_usual_layers_are_read_and_it_is_said(
    denoiser, batch: Batch, caplog: pytest.LogCaptureFixture
) -> None:
    assert plain_words("", ["head", "upper", "part 2", "background", "Wing"]) == ["head", "wing"]
    assert plain_words("beak claw", ["head"]) == ["beak", "claw"]
    with caplog.at_level(logging.WARNING):
        assert probed_layers(denoiser, [], [0, 1], batch, None) == ("blocks.0",)
    assert 'set method.part_words, such as "head wing tail"' in caplog.text
