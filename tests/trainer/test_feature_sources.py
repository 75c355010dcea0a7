"""Choosing and rebuilding feature sources."""

from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.patch_features import DescriptorFeatures
from bestiary.trainer import feature_sources
from bestiary.trainer.feature_sources import build_feature_source, choose_source, default_source


@pytest.mark.parametrize(
    ("on_disk", "has_base", "weights", "expected"),
    [
        (True, True, None, {"name": "dinov2"}),
        (False, True, None, {"name": "diffusion"}),
        (False, False, None, {"name": "descriptor"}),
        (False, True, Path("w.safetensors"), {"name": "dinov2", "weights": "w.safetensors"}),
    ],
)
def test_auto_takes_the_best_that_needs_no_download(
    monkeypatch: pytest.MonkeyPatch, on_disk: bool, has_base: bool, weights: Path | None, expected: dict[str, str]
) -> None:
    monkeypatch.setattr(feature_sources, "dino_weights_on_disk", lambda: on_disk)
    assert choose_source("auto", has_base=has_base, weights=weights) == expected


def test_a_named_source_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_sources, "dino_weights_on_disk", lambda: True)
    assert choose_source("descriptor", has_base=True) == {"name": "descriptor"}
    assert choose_source("diffusion", has_base=False) == {"name": "diffusion"}
    assert default_source(None) == {"name": "dinov2"}


def test_weights_are_looked_for_without_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: None)
    assert not feature_sources.dino_weights_on_disk()
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: str(tmp_path))
    assert feature_sources.dino_weights_on_disk()


def test_a_source_is_rebuilt_from_its_specification() -> None:
    theirs = DescriptorFeatures(64, 8, 0.1)
    ours = build_feature_source(theirs.spec)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert ours.spec == theirs.spec
    assert torch.equal(ours(images).features, theirs(images).features)
    assert theirs.spec["name"] == "descriptor"


def test_unknown_and_missing_things_are_named() -> None:
    with pytest.raises(BestiaryError) as fault:
        build_feature_source({"name": "sift"})
    assert str(fault.value) == "unknown feature source 'sift': choose one of dinov2, imagenet, diffusion, descriptor"
    with pytest.raises(BestiaryError) as fault:
        build_feature_source({"name": "diffusion"})
    assert str(fault.value) == (
        "the feature source diffusion reads a base model and none was given: "
        "give --base FOLDER, or choose --source descriptor"
    )


def test_another_backbone_than_the_features_were_made_with() -> None:
    class Record:
        name = "sdxl"

    class Model:
        backbone = Record()

    with pytest.raises(BestiaryError) as fault:
        build_feature_source({"name": "diffusion", "backbone": "sd15"}, Model())
    assert str(fault.value) == (
        "these features were made with a base model of the kind 'sd15', not 'sdxl': give --base a sd15 model"
    )
