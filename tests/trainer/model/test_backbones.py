"""Loading of diffusers folders: frozen weights, widths from the configs, variants, devices and dtypes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.model import backbones
from bestiary.trainer.model.backbones import choose_device, choose_dtype, discrete_process, find_model, load_denoiser

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


@pytest.mark.parametrize("backbone", EXPECTED)
def test_backbone_and_widths_come_from_the_configs(backbone: str, tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser(backbone)
    prediction, widths, output, channels = EXPECTED[backbone]
    assert denoiser.backbone.name == backbone
    assert {spec.name: spec.width for spec in denoiser.backbone.text_encoders} == widths
    assert {spec.output for spec in denoiser.backbone.text_encoders} == {output}
    assert denoiser.backbone.latent_channels == channels
    assert denoiser.backbone.latent_factor == 8 and denoiser.backbone.image_size == 128
    assert denoiser.process.prediction == prediction
    assert denoiser.process.alphas_cumprod.shape == (1000,)
    assert denoiser.dtype == torch.float32 and denoiser.device.type == "cpu"


def test_all_weights_are_frozen(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    modules = [denoiser.unet, denoiser.vae, *denoiser.text.models.values()]
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())


def test_half_precision_variants_load(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        (folder / f"{name}.safetensors").rename(folder / f"{name}.fp16.safetensors")
    assert load_denoiser(folder, device="cpu", dtype="fp32").backbone.name == "sd15"


def test_models_of_the_hugging_face_cache_are_found_without_a_network(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    entry = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_folder("sd15"), entry / "snapshots" / "abc")
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("abc")
    assert find_model("someone/tiny") == entry / "snapshots" / "abc"
    with pytest.raises(BestiaryError, match="'someone/else' is not a folder here, and .* hf download someone/else"):
        find_model("someone/else")


def test_paths_are_taken_as_they_are(tiny_folder: Callable[[str], Path]) -> None:
    folder = tiny_folder("sd15")
    assert find_model(str(folder)) == folder
    assert find_model("demo").name == "base_model"
    assert find_model("models/of mine/x") == Path("models/of mine/x")


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


def test_schedules_other_than_noise_and_velocity_are_refused() -> None:
    with pytest.raises(BestiaryError, match="predicts 'sample'"):
        discrete_process({"prediction_type": "sample"})


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


def test_an_untrained_embedded_transformer_is_refused_with_the_command(monkeypatch, tmp_path):
    absent = tmp_path / "base_model_dit"
    monkeypatch.setattr(backbones, "demo_model_path", lambda name: absent)
    with pytest.raises(
        BestiaryError, match=r"base_model_dit does not exist.*demo train-base --shape dit --out .*base_model_dit; or"
    ):
        find_model("demo-dit")
    absent.mkdir()
    assert find_model("demo-dit") == absent
