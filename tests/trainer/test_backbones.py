"""Loading of diffusers folders: what is told apart, which widths come out, and every refusal."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.backbones import choose_device, choose_dtype, demo_model_path, load_denoiser, noise_schedule
from bestiary.trainer.model_folder import read_model_folder

EXPECTED = {
    "sd15": ("epsilon", {"clip_l": 32}, "final", 4),
    "sd2": ("v_prediction", {"clip_h": 32}, "final", 4),
    "sdxl": ("epsilon", {"clip_l": 32, "clip_g": 64}, "penultimate", 4),
    "bestiary-demo": ("epsilon", {"clip_l": 32}, "final", 8),
}


@pytest.fixture
def copied(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a tiny folder that a test may spoil."""

    def copy(backbone: str) -> Path:
        return Path(shutil.copytree(tiny_folder(backbone), tmp_path / backbone))

    return copy


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("backbone", EXPECTED)
def test_backbone_and_widths_come_from_the_configs(backbone: str, tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser(backbone)
    prediction, widths, output, channels = EXPECTED[backbone]
    assert denoiser.backbone.name == backbone
    assert {spec.name: spec.width for spec in denoiser.backbone.text_encoders} == widths
    assert {spec.output for spec in denoiser.backbone.text_encoders} == {output}
    assert denoiser.backbone.latent_channels == channels
    assert denoiser.backbone.latent_factor == 8 and denoiser.backbone.image_size == 128
    assert denoiser.schedule.prediction == prediction
    assert denoiser.schedule.alphas_cumprod.shape == (1000,)
    assert denoiser.dtype == torch.float32 and denoiser.device.type == "cpu"


def test_all_weights_are_frozen(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    modules = [denoiser.unet, denoiser.vae, *denoiser.text.models.values()]
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())


def test_a_bestiary_json_names_the_backbone(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    (folder / "bestiary.json").write_text('{"backbone": "sd2"}')
    assert read_model_folder(folder).backbone.name == "sd2"
    (folder / "bestiary.json").write_text('{"backbone": "sd9"}')
    with pytest.raises(BestiaryError, match="unknown backbone 'sd9'"):
        read_model_folder(folder)


def test_half_precision_variants_load(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        (folder / f"{name}.safetensors").rename(folder / f"{name}.fp16.safetensors")
    assert load_denoiser(folder, device="cpu", dtype="fp32").backbone.name == "sd15"


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match="nowhere does not exist: give a diffusers folder, or 'demo'"):
        load_denoiser(tmp_path / "nowhere")


def test_other_folder_says_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(BestiaryError, match=r"no model_index.json \(found: photo.jpg\)"):
        load_denoiser(tmp_path)


def test_single_file_says_how_to_convert(tmp_path: Path) -> None:
    checkpoint = tmp_path / "v1-5-pruned.safetensors"
    checkpoint.write_bytes(b"x")
    with pytest.raises(BestiaryError, match=r"from_single_file\('.*v1-5-pruned.safetensors'\).save_pretrained"):
        load_denoiser(checkpoint)


def test_missing_component(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    shutil.rmtree(folder / "vae")
    with pytest.raises(BestiaryError, match="sd15 is incomplete: vae/config.json is missing"):
        load_denoiser(folder)


def test_missing_weights(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BestiaryError, match=r"unet holds no weights .*found: config.json"):
        load_denoiser(folder)


def test_cut_off_weights(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BestiaryError, match="could not be loaded"):
        load_denoiser(folder)


def test_missing_tokenizer(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    (folder / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(BestiaryError, match="neither vocab.json with merges.txt nor tokenizer.json"):
        load_denoiser(folder)


def test_components_of_two_models(copied: Callable[[str], Path], tiny_folder: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    shutil.rmtree(folder / "unet")
    shutil.copytree(tiny_folder("sdxl") / "unet", folder / "unet")
    with pytest.raises(BestiaryError, match="expects text 96 wide, but the text encoders give 32: .*mixes parts"):
        load_denoiser(folder)


def test_inpainting_models_are_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    edit(folder / "unet" / "config.json", in_channels=9)
    with pytest.raises(BestiaryError, match="takes 9 channels but the autoencoder gives 4: inpainting"):
        load_denoiser(folder)


def test_other_denoisers_are_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    edit(folder / "unet" / "config.json", _class_name="FluxTransformer2DModel")
    with pytest.raises(BestiaryError, match="the denoiser is a FluxTransformer2DModel, which is not supported"):
        load_denoiser(folder)


def test_broken_json(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(BestiaryError, match="config.json is not readable JSON"):
        load_denoiser(folder)
    (folder / "unet" / "config.json").write_text("[]")
    with pytest.raises(BestiaryError, match="holds a list, not settings"):
        load_denoiser(folder)


def test_schedules_other_than_noise_and_velocity_are_refused() -> None:
    with pytest.raises(BestiaryError, match="predicts 'sample'"):
        noise_schedule({"prediction_type": "sample"})


def test_device_and_dtype_names() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(BestiaryError, match="device 'tpu' is not available here: choose auto or one of .*cpu"):
        choose_device("tpu")
    assert choose_dtype("bf16", torch.device("cpu")) == torch.bfloat16
    assert choose_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)
    assert choose_dtype("auto", torch.device("mps")) == torch.float32
    with pytest.raises(BestiaryError, match="unknown dtype 'int8': choose auto, fp32, bf16, fp16"):
        choose_dtype("int8", torch.device("cpu"))
    with pytest.raises(BestiaryError, match="dtype fp16 needs a GPU"):
        choose_dtype("fp16", torch.device("cpu"))


def test_the_embedded_model_is_the_demo_backbone() -> None:
    folder = read_model_folder(demo_model_path())
    assert folder.backbone.name == "bestiary-demo"
    assert folder.backbone.vector_width == 128 and folder.backbone.image_size == 128
