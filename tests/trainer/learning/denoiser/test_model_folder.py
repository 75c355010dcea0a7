"""What a diffusers folder's configs say: which backbone it is, and every folder that is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.denoiser.model_folder import read_model_folder
from bestiary.trainer.model.backbones import demo_model_path


@pytest.fixture
def copied(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a tiny folder that a test may spoil."""

    def copy(backbone: str) -> Path:
        return Path(shutil.copytree(tiny_folder(backbone), tmp_path / backbone))

    return copy


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_bestiary_json_names_the_backbone(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    (folder / "bestiary.json").write_text('{"backbone": "sd2"}')
    assert read_model_folder(folder).backbone.name == "sd2"
    (folder / "bestiary.json").write_text('{"backbone": "sd9"}')
    with pytest.raises(BestiaryError, match="unknown backbone 'sd9'"):
        read_model_folder(folder)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match="nowhere does not exist: give a diffusers folder, or 'demo'"):
        read_model_folder(tmp_path / "nowhere")


def test_other_folder_says_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(BestiaryError, match=r"no model_index.json \(found: photo.jpg\)"):
        read_model_folder(tmp_path)


def test_single_file_says_how_to_convert(tmp_path: Path) -> None:
    checkpoint = tmp_path / "v1-5-pruned.safetensors"
    checkpoint.write_bytes(b"x")
    with pytest.raises(BestiaryError, match=r"from_single_file\('.*v1-5-pruned.safetensors'\).save_pretrained"):
        read_model_folder(checkpoint)


def test_missing_component(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    shutil.rmtree(folder / "vae")
    with pytest.raises(BestiaryError, match="sd15 is incomplete: vae/config.json is missing"):
        read_model_folder(folder)


def test_missing_weights(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BestiaryError, match=r"unet holds no weights .*found: config.json"):
        read_model_folder(folder)


def test_components_of_two_models(copied: Callable[[str], Path], tiny_folder: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    shutil.rmtree(folder / "unet")
    shutil.copytree(tiny_folder("sdxl") / "unet", folder / "unet")
    with pytest.raises(BestiaryError, match="expects text 96 wide, but the text encoders give 32: .*mixes parts"):
        read_model_folder(folder)


def test_inpainting_models_are_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    edit(folder / "unet" / "config.json", in_channels=9)
    with pytest.raises(BestiaryError, match="takes 9 channels but the autoencoder gives 4: inpainting"):
        read_model_folder(folder)


def test_other_denoisers_are_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    edit(folder / "unet" / "config.json", _class_name="FluxTransformer2DModel")
    with pytest.raises(BestiaryError, match="the denoiser is a FluxTransformer2DModel, which is not supported"):
        read_model_folder(folder)


def test_broken_json(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(BestiaryError, match="config.json is not readable JSON"):
        read_model_folder(folder)
    (folder / "unet" / "config.json").write_text("[]")
    with pytest.raises(BestiaryError, match="holds a list, not settings"):
        read_model_folder(folder)


def test_the_embedded_model_is_the_demo_backbone() -> None:
    folder = read_model_folder(demo_model_path())
    assert folder.backbone.name == "bestiary-demo"
    assert folder.backbone.vector_width == 128 and folder.backbone.image_size == 128


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:57\nsize 3192\n", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "is a web page, not a model"),
    ],
)
@pytest.mark.parametrize("place", ["unet/diffusion_pytorch_model.safetensors", "vae/config.json", "model_index.json"])
def test_what_is_no_model_inside_a_folder(
    copied: Callable[[str], Path], place: str, content: bytes, message: str
) -> None:
    folder = copied("sd15")
    (folder / place).write_bytes(content)
    with pytest.raises(BestiaryError, match=f"{Path(place).name} {message}"):
        read_model_folder(folder)


def test_settings_saved_by_windows_editors_read_alike(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    path = folder / "unet" / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_model_folder(folder).backbone.name == "sd15"
