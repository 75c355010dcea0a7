"""Choosing and rebuilding feature sources."""

from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features.patch_features import DescriptorFeatures
from bestiary.trainer.discovery import feature_sources
from bestiary.trainer.discovery.feature_sources import build_feature_source, choose_source, default_source


@pytest.mark.parametrize(
    ("on_disk", "weights", "model", "expected"),
    [
        (True, None, None, {"name": "dinov2"}),
        (False, None, None, {"name": "imagenet"}),
        (False, Path("w.safetensors"), None, {"name": "dinov2", "weights": "w.safetensors"}),
        (False, None, "vit_small_patch14_dinov2", {"name": "dinov2", "model": "vit_small_patch14_dinov2"}),
    ],
)
def test_auto_takes_the_best_that_needs_no_download(
    monkeypatch: pytest.MonkeyPatch, on_disk: bool, weights: Path | None, model: str | None, expected: dict[str, str]
) -> None:
    monkeypatch.setattr(feature_sources, "dino_weights_on_disk", lambda: on_disk)
    assert choose_source("auto", weights=weights, model=model) == expected


def test_a_named_source_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_sources, "dino_weights_on_disk", lambda: True)
    assert choose_source("descriptor") == {"name": "descriptor"}
    assert choose_source("diffusion") == {"name": "diffusion"}
    assert choose_source("imagenet", weights=Path("w.pth")) == {"name": "imagenet", "weights": "w.pth"}
    assert default_source() == {"name": "dinov2"}


def test_settings_of_another_source_are_told() -> None:
    with pytest.raises(
        BestiaryError, match="--model vit_b is for --source dinov2, not imagenet: remove one of the two options"
    ):
        choose_source("imagenet", model="vit_b")
    with pytest.raises(BestiaryError, match="--weights w.pth is for --source dinov2 or imagenet, not descriptor"):
        choose_source("descriptor", weights=Path("w.pth"))


def test_imagenet_is_rebuilt_from_its_specification() -> None:
    theirs = build_feature_source({"name": "imagenet", "image_size": 64, "blocks": "block8"})
    ours = build_feature_source(theirs.spec)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert ours.spec == theirs.spec
    assert torch.equal(ours(images).features, theirs(images).features)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "descriptor", "image_size": 128, "grid": 16, "position": 0.0},
        {"name": "dinov2", "image_size": 224, "model": "vit_base_patch14_dinov2.lvd142m"},
        {"name": "dinov2", "image_size": 448, "model": "vit_small_patch14_dinov2.lvd142m", "weights": "/mine/vit.pth"},
    ],
)
def test_specifications_of_earlier_codebooks_build_what_they_built(
    spec: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    class Transformer:
        def __init__(self, weights: object, **settings: object) -> None:
            built.append((str(weights), settings))
            self.spec = {"name": "dinov2", **settings, "weights": weights}

    monkeypatch.setattr(feature_sources, "DinoFeatures", Transformer)
    monkeypatch.setattr(feature_sources, "fetch_weights", lambda model, remedy: Path(f"/cache/{model}"))
    source = build_feature_source(spec)
    if spec["name"] == "descriptor":
        assert source.spec == spec
    else:
        weights = spec.get("weights", f"/cache/{spec['model']}")
        settings = {"image_size": spec["image_size"], "model": spec["model"], "device": "cpu"}
        assert built == [(weights, settings)]


def test_a_transformer_is_fetched_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With registers, and the newer kind with patches of 16 pixels; the path of the cache stays out of the specification."""
    import timm

    for name, size in (("vit_small_patch14_reg4_dinov2", 224), ("vit_small_patch16_dinov3", 256)):
        torch.save(timm.create_model(name, num_classes=0, img_size=size).state_dict(), tmp_path / "vit.pth")
        fetched = []
        monkeypatch.setattr(
            feature_sources, "fetch_weights", lambda model, remedy, to=fetched: to.append(model) or tmp_path / "vit.pth"
        )
        source = build_feature_source({"name": "dinov2", "model": name})
        assert fetched == [name]
        assert source(torch.rand(1, 3, size, size)).features.shape == (1, 16, 16, 384)
        assert source.spec == {"name": "dinov2", "image_size": size, "model": name}


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
        "the feature source diffusion needs a base model: give --base FOLDER, or choose --source descriptor"
    )


def test_settings_that_a_source_does_not_know_are_named() -> None:
    with pytest.raises(BestiaryError) as fault:
        build_feature_source({"name": "descriptor", "image_size": "large", "blur": 2})
    assert str(fault.value) == (
        "the feature source descriptor cannot be built with these settings: image_size = 'large': Input should be a valid "
        "integer, unable to parse string as an integer; blur = 2: Extra inputs are not permitted. Valid settings: image_size, "
        "grid, position; correct the file that contains them, or run discovery again"
    )


def test_another_backbone_than_the_features_were_made_with() -> None:
    class Record:
        name = "sdxl"

    class Model:
        backbone = Record()

    with pytest.raises(BestiaryError) as fault:
        build_feature_source({"name": "diffusion", "backbone": "sd15"}, Model())
    assert str(fault.value) == (
        "these features were computed with a 'sd15' base model, not 'sdxl': give --base a sd15 model"
    )
