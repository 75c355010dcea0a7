from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bestiary.concepts.denoiser.backbone import BACKBONES
from bestiary.concepts.denoiser.denoiser import Conditioning, NetworkOutput
from bestiary.concepts.denoiser.process import DiscreteProcess
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features.patch_features import (
    DescriptorFeatures,
    DiffusionFeatures,
    DinoFeatures,
    PatchGrid,
    default_blocks,
    default_timestep,
    rgb_to_lab,
)
from PIL import Image, ImageCms
from torch import Tensor


class FakeDenoiser:
    """Blocks whose activations are known functions of the noised latents."""

    def __init__(self) -> None:
        self.backbone = BACKBONES["bestiary-demo"]
        self.process = DiscreteProcess(torch.linspace(0.999, 0.01, 1000), "epsilon")
        self.text = self.images = self.network = self
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.calls = 0

    def tokenize(self, pieces: list) -> SimpleNamespace:
        return SimpleNamespace(pieces=pieces)

    def encode(self, prompts: list, vectors: None) -> Conditioning:
        return Conditioning.of(torch.zeros(1, 4, 8))

    def feature_factors(self) -> dict[str, int]:
        return {"down.0": 1, "mid": 4, "up.0": 2, "up.1": 1}

    def to_cache(self, images: Tensor) -> Tensor:
        mean = torch.nn.functional.avg_pool2d(images, 8)
        return torch.stack([mean, torch.zeros_like(mean)], dim=1)

    def from_cache(self, moments: Tensor) -> Tensor:
        return 2 * moments[:, 0]

    def predict(self, latents: Tensor, times: Tensor, text: Conditioning, features: tuple[str, ...]) -> NetworkOutput:
        self.calls += 1
        assert text.context.shape[0] == len(latents)
        found = {
            name: torch.nn.functional.avg_pool2d(latents, factor) * 3
            for name, factor in self.feature_factors().items()
            if name in features
        }
        return NetworkOutput(latents, {}, found)


def pictures(count: int, size: int = 128) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def test_lab_equals_littlecms() -> None:
    colors = torch.rand(64, 3, generator=torch.Generator().manual_seed(0))
    pixels = (colors * 255).round().byte()
    image = Image.fromarray(pixels.view(8, 8, 3).numpy())
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    raw = np.asarray(ImageCms.applyTransform(image, to_lab)).astype(np.int16)
    theirs = torch.from_numpy(
        np.stack([raw[..., 0] / 2.55, *(((raw[..., c] + 128) % 256) - 128 for c in (1, 2))], axis=0)
    )
    ours = rgb_to_lab(pixels.view(1, 8, 8, 3).permute(0, 3, 1, 2) / 255)[0]
    assert float((ours[0] - theirs[0]).abs().max()) < 2
    # the profile's white is D50, so a and b agree only roughly
    assert float((ours[1:] - theirs[1:]).abs().max()) < 14


def test_white_and_black_in_lab() -> None:
    ours = rgb_to_lab(torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))
    assert torch.allclose(ours.flatten(1), torch.tensor([[100.0, 0, 0], [0, 0, 0]]), atol=0.05)


@pytest.mark.parametrize(("size", "grid"), [(128, 16), (256, 16), (96, 8)])
def test_descriptor_shapes(size: int, grid: int) -> None:
    source = DescriptorFeatures(size, grid)
    ours = source(pictures(2, size))
    assert ours.features.shape == (2, grid, grid, source.width)
    assert ours.saliency is None
    assert bool(ours.features.isfinite().all())


def test_descriptor_of_a_picture_does_not_depend_on_its_batch() -> None:
    source, images = DescriptorFeatures(), pictures(3)
    assert torch.allclose(source(images).at(1).features, source(images[1:2]).features, atol=1e-5)


def test_descriptor_tells_stripes_from_their_average() -> None:
    source = DescriptorFeatures()
    plain, stripes = torch.full((1, 3, 128, 128), 0.5), torch.full((1, 3, 128, 128), 0.2)
    stripes[..., ::4], stripes[..., 1::4] = 0.8, 0.8
    difference = (source(plain).features - source(stripes).features).norm(dim=-1)
    assert float(difference.min()) > 0.5
    assert float(source(plain).features.std(dim=(1, 2)).max()) < 1e-3


def test_descriptor_orientation_follows_the_stripes() -> None:
    source = DescriptorFeatures()
    stripes = torch.zeros(1, 3, 128, 128)
    stripes[..., ::8], stripes[..., 1::8], stripes[..., 2::8], stripes[..., 3::8] = 1, 1, 1, 1
    energies = [source(images).features[0, 8, 8, -16:-8] for images in (stripes, stripes.transpose(2, 3))]
    assert [int(energy.argmax()) for energy in energies] == [0, 4]


def test_descriptor_position_is_optional_and_mirrored() -> None:
    source = DescriptorFeatures(position=0.5)
    place = source(pictures(1)).features[0, ..., -2:]
    assert torch.allclose(place, torch.stack([place[..., 0], place.flip(1)[..., 1]], dim=-1))
    assert source.width == DescriptorFeatures().width + 2


def test_sources_are_rebuilt_from_their_spec() -> None:
    spec = dict(DescriptorFeatures(64, 8).spec)
    assert spec.pop("name") == "descriptor"
    images = pictures(1, 64)
    assert torch.equal(DescriptorFeatures(**spec)(images).features, DescriptorFeatures(64, 8)(images).features)


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(
        BestiaryError, match=r"pictures of shape \(1, 3, 64, 64\): this source needs \(B, 3, 128, 128\)"
    ):
        DescriptorFeatures()(pictures(1, 64))


@pytest.mark.parametrize(("size", "grid"), [(100, 16), (32, 16)])
def test_descriptor_sizes_that_do_not_fit_are_refused(size: int, grid: int) -> None:
    with pytest.raises(BestiaryError, match=f"image size {size} px with a grid of {grid} patches"):
        DescriptorFeatures(size, grid)


def test_diffusion_features_lie_on_the_grid_and_know_their_width() -> None:
    source = DiffusionFeatures(FakeDenoiser(), blocks=["down.0", "up.0"], draws=1)
    ours = source(pictures(2)).features
    assert ours.shape == (2, 16, 16, 6) == (2, source.grid, source.grid, source.width)
    assert torch.allclose(ours[..., :3].norm(dim=-1), torch.ones(2, 16, 16), atol=1e-4)


def test_diffusion_features_do_not_depend_on_the_batch_and_repeat() -> None:
    source = DiffusionFeatures(FakeDenoiser(), blocks=["up.0", "mid"], draws=3, seed=7)
    images = pictures(3)
    ours = source(images)
    assert torch.allclose(ours.at(2).features, source(images[2:]).features, atol=1e-5)
    assert torch.equal(ours.features, source(images).features)


def test_every_noise_draw_is_one_evaluation() -> None:
    denoiser = FakeDenoiser()
    source = DiffusionFeatures(denoiser, blocks=["up.0"], draws=3)
    denoiser.calls = 0
    source(pictures(2))
    assert denoiser.calls == 3


def test_unknown_blocks_and_timesteps_are_refused() -> None:
    with pytest.raises(
        BestiaryError, match="unknown block 'up.9' of the denoiser: choose from down.0, mid, up.0, up.1"
    ):
        DiffusionFeatures(FakeDenoiser(), blocks=["up.9"])
    with pytest.raises(BestiaryError, match="timestep 1000 is outside the noise schedule: choose 0 to 999"):
        DiffusionFeatures(FakeDenoiser(), timestep=1000)


def test_a_margin_hides_how_far_the_border_is() -> None:
    denoiser = FakeDenoiser()
    source = DiffusionFeatures(denoiser, blocks=["down.0"], margin=4, timestep=0)
    plain = DiffusionFeatures(denoiser, blocks=["down.0"], margin=0, timestep=0)
    images = pictures(1)
    assert source(images).features.shape == plain(images).features.shape
    assert source.spec["margin"] == 4
    with pytest.raises(BestiaryError, match="margin 16 is out of range: choose 0 to 15 for a grid of 16 patches"):
        DiffusionFeatures(denoiser, blocks=["down.0"], margin=16)


def test_default_blocks_and_timestep() -> None:
    denoiser = FakeDenoiser()
    denoiser.feature_factors = lambda: {"down_blocks.0.resnets.0": 1, "down_blocks.0.attentions.0": 1, "up_blocks.0": 2}
    assert default_blocks(denoiser) == ("down_blocks.0.attentions.0",)
    assert default_timestep(denoiser) == 20
    deep = FakeDenoiser()
    deep.backbone = BACKBONES["sd15"]
    deep.feature_factors = lambda: {"up_blocks.0": 4, "up_blocks.0.resnets.0": 8, "up_blocks.1": 2, "up_blocks.2": 1}
    assert default_blocks(deep) == ("up_blocks.0", "up_blocks.1")
    assert default_timestep(deep) == 261


def test_dino_features_are_the_last_blocks_before_the_norm(tmp_path: Path) -> None:
    import timm

    name = "vit_tiny_patch16_224"
    reference = timm.create_model(name, pretrained=False, num_classes=0, img_size=64).eval()
    torch.save(reference.state_dict(), tmp_path / "vit.pth")
    source = DinoFeatures(tmp_path / "vit.pth", image_size=64, model=name)
    images = pictures(2, 64)
    seen = {}
    reference.blocks[-1].register_forward_hook(lambda module, inputs, output: seen.update(tokens=output))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        reference((images - mean) / std)
    theirs = seen["tokens"][:, 1:].unflatten(1, (4, 4))
    assert torch.allclose(source(images).features, theirs, atol=1e-4)
    details = source(images).detail
    assert details.shape == (2, 4, 4, 192 + 6)
    assert torch.allclose(details[..., :192].norm(dim=-1), torch.ones(2, 4, 4), atol=1e-4)
    assert source.spec["weights"] == str(tmp_path / "vit.pth")


def test_dino_weights_of_another_image_size_are_fitted(tmp_path: Path) -> None:
    """Published DINOv2 files hold positions for 518 px."""
    import timm

    name = "vit_tiny_patch16_224"
    published = timm.create_model(name, pretrained=False, num_classes=0, img_size=96)
    torch.save(published.state_dict(), tmp_path / "vit.pth")
    source = DinoFeatures(tmp_path / "vit.pth", image_size=64, model=name)
    assert source(pictures(1, 64)).features.shape == (1, 4, 4, 192)
    assert torch.equal(source.network.blocks[3].attn.qkv.weight, published.blocks[3].attn.qkv.weight)


def test_missing_dino_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match="could not read .*nothing.pth: No such file"):
        DinoFeatures(tmp_path / "nothing.pth", image_size=64, model="vit_tiny_patch16_224")


def test_one_picture_of_a_grid() -> None:
    grid = PatchGrid(torch.rand(3, 2, 2, 4), torch.rand(3, 2, 2))
    assert torch.equal(grid.at(1).features, grid.features[1:2])
    assert torch.equal(grid.at(1).saliency, grid.saliency[1:2])
