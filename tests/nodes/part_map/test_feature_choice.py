"""Feature sources in the graph: built from a codebook's specification; nothing is downloaded unasked."""

import sys
import types
from pathlib import Path

import folder_paths
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features import patch_features
from bestiary.concepts.features.patch_features import DescriptorFeatures
from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser
from bestiary.nodes.part_map import feature_choice
from bestiary.nodes.part_map.feature_choice import find_dino_weights, open_source


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights in models/ and none in timm's cache, and nothing kept from earlier."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *where: None)
    monkeypatch.setattr(feature_choice, "_kept", {})


def test_a_descriptor_is_built_as_the_codebook_says():
    theirs = DescriptorFeatures(image_size=64, grid=8)
    ours = open_source(theirs.spec)
    images = torch.rand(1, 3, 64, 64)
    assert ours.spec == theirs.spec and torch.equal(ours(images).features, theirs(images).features)
    assert open_source({"name": "descriptor"}).image_size == 128


def test_an_unknown_source_is_told():
    with pytest.raises(BestiaryError) as fault:
        open_source({"name": "sam"})
    assert str(fault.value) == "unknown feature source 'sam': choose descriptor, dinov2, diffusion, imagenet"


def test_without_timm_the_command_is_told(monkeypatch):
    found = feature_choice.importlib.util.find_spec
    monkeypatch.setattr(
        feature_choice.importlib.util, "find_spec", lambda name: None if name == "timm" else found(name)
    )
    with pytest.raises(BestiaryError) as fault:
        open_source({"name": "dinov2"}, allow_download=True)
    assert str(fault.value) == "the feature source dinov2 needs timm: pip install timm, or choose descriptor"


def test_without_weights_their_place_is_told_and_nothing_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(patch_features, "DinoFeatures", pytest.fail)
    with pytest.raises(BestiaryError) as fault:
        open_source({"name": "dinov2"})
    place = tmp_path / "models" / "dinov2" / "vit_base_patch14_dinov2.lvd142m.safetensors"
    assert str(fault.value) == (
        f"no weights of vit_base_patch14_dinov2.lvd142m on this machine: put them at {place}, "
        "or switch allow_download on, or choose imagenet"
    )


class FakeDino:
    """Counts how often a vision transformer is read."""

    built: list = []
    name, image_size, width = "dinov2", 224, 1

    def __init__(self, weights, *, image_size, model, device):
        self.built.append((weights, image_size, model))
        self.spec = {"name": "dinov2", "image_size": image_size, "model": model, "weights": str(weights)}
        self.network, self.asked = torch.nn.Linear(1, 1), device

    def __call__(self, images):
        return self.network(images)


@pytest.fixture
def fake_dino(monkeypatch) -> type[FakeDino]:
    monkeypatch.setattr(patch_features, "DinoFeatures", FakeDino)
    monkeypatch.setattr(FakeDino, "built", [])
    return FakeDino


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """Models that were fetched."""
    models: list[str] = []
    monkeypatch.setattr(
        feature_choice, "fetch_weights", lambda model, remedy: models.append(model) or Path("/cache/model.safetensors")
    )
    return models


def test_a_download_happens_only_when_asked_for(fake_dino, fetched):
    open_source({"name": "dinov2"}, allow_download=True)
    assert fetched == ["vit_base_patch14_dinov2.lvd142m"]
    assert fake_dino.built == [(Path("/cache/model.safetensors"), 224, "vit_base_patch14_dinov2.lvd142m")]


def test_imagenet_needs_nothing_and_is_read_once(monkeypatch):
    from bestiary.concepts.features import imagenet_features

    read = imagenet_features.read_network
    reads = []
    monkeypatch.setattr(
        imagenet_features, "read_network", lambda *given, **more: reads.append(given) or read(*given, **more)
    )
    source = open_source({"name": "imagenet"})
    images = torch.rand(2, 3, source.image_size, source.image_size)
    again = open_source(source.spec | {"weights": "/of/another/machine.pth"})
    assert torch.equal(source(images).features, again(images).features)
    assert again.spec == source.spec and "weights" not in source.spec
    assert open_source({"name": "imagenet"}) is not None and len(reads) <= 3


def test_a_codebook_of_other_weights_is_refused():
    with pytest.raises(
        BestiaryError, match="but these features were computed with 0123456789abcdef: give the file with that hash"
    ):
        open_source({"name": "imagenet", "weights_sha256": "0123456789abcdef"})


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_in_the_models_folder_are_taken(fake_dino, suffix):
    place = feature_choice.dino_folder() / f"vit_base_patch14_dinov2.lvd142m{suffix}"
    place.parent.mkdir(parents=True)
    place.touch()
    assert find_dino_weights() == place
    source = open_source({"name": "dinov2"})
    assert fake_dino.built == [(place, 224, "vit_base_patch14_dinov2.lvd142m")]
    assert source.spec == {"name": "dinov2", "image_size": 224, "model": "vit_base_patch14_dinov2.lvd142m"}


def test_the_cache_of_timm_is_looked_into(monkeypatch):
    asked = []
    cache = lambda *where: asked.append(where) or "/cache/model.safetensors"  # noqa: E731
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cache)
    assert find_dino_weights() == Path("/cache/model.safetensors")
    assert asked == [("timm/vit_base_patch14_dinov2.lvd142m", "model.safetensors")]


def test_a_transformer_is_read_once(fake_dino, fetched):
    first = open_source({"name": "dinov2"}, allow_download=True)
    assert open_source({"name": "dinov2", "weights": "/elsewhere.pth"}, allow_download=True) is first
    open_source({"name": "dinov2", "image_size": 448}, allow_download=True)
    assert [size for _, size, _ in fake_dino.built] == [224, 448]


def test_comfyuis_manager_holds_the_transformer_and_lets_it_go(fake_dino, fetched):
    import comfy.model_management as management

    source = open_source({"name": "dinov2"}, allow_download=True)
    network = source._source.network
    assert source._source.asked == "cpu" and not any(
        one.model.model is network for one in management.current_loaded_models
    )
    expected = network(torch.ones(2, 1))
    for _ in range(2):
        assert torch.equal(source(torch.ones(2, 1)), expected)
        (held,) = [one for one in management.current_loaded_models if one.model.model is network]
        assert held.model.load_device == management.get_torch_device()
        assert held.model.offload_device == torch.device("cpu")
        management.unload_all_models()
        assert not any(one.model is held.model for one in management.current_loaded_models)


def test_features_of_a_model_must_be_connected():
    with pytest.raises(BestiaryError) as fault:
        open_source({"name": "diffusion", "backbone": "sd15"})
    assert str(fault.value) == (
        "features of the model sd15 are required: connect Diffusion Features with its model, clip and vae to the input features"
    )
    with pytest.raises(BestiaryError, match="features of a diffusion model are required"):
        open_source({"name": "diffusion"})


def test_the_connected_model_must_be_of_the_codebooks_kind(demo_model):
    with pytest.raises(BestiaryError) as fault:
        open_source({"name": "diffusion", "backbone": "sd15"}, ComfyDenoiser(*demo_model))
    assert str(fault.value) == (
        "this codebook uses features of a sd15 model, but the connected one is bestiary-demo: "
        "connect Diffusion Features of such a model"
    )


def test_a_connected_model_is_read_as_the_codebook_says(demo_model, drawn_images):
    from bestiary.trainer.discovery.feature_sources import build_feature_source
    from bestiary.trainer.model.backbones import load_denoiser

    spec = {"name": "diffusion", "backbone": "bestiary-demo", "timestep": 40, "margin": 2, "blocks": "mid_block"}
    squares = drawn_images[:2].permute(0, 3, 1, 2)
    ours = open_source(spec, ComfyDenoiser(*demo_model))
    theirs = build_feature_source(spec, load_denoiser("demo", device="cpu", dtype="fp32"))
    assert ours.spec == theirs.spec and ours.spec["timestep"] == 40
    a, b = ours(squares).features, theirs(squares).features
    assert a.shape == b.shape and torch.allclose(a, b, atol=1e-4)


def test_timm_is_not_imported_for_other_sources(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", types.ModuleType("timm"))
    open_source({"name": "descriptor"})
    assert not hasattr(sys.modules["timm"], "create_model")
