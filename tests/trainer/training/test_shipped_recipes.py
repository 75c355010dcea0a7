"""Every shipped recipe trains a step on a small model of its family, with nothing but sizes changed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bestiary.concepts.denoiser.lora_names import lora_layers
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.spectrum.spectrum_file import load_spectrum
from bestiary.trainer.learning.dreambooth.dreambooth_settings import load_dreambooth_recipe
from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.learning.run.recipe_file import RECIPE_FOLDER
from bestiary.trainer.learning.spectrum.spectrum_settings import load_spectrum_recipe
from bestiary.trainer.training.train_dreambooth import train_dreambooth
from bestiary.trainer.training.train_parts import train_parts
from bestiary.trainer.training.train_spectrum import train_spectrum
from PIL import Image
from safetensors.torch import load_file

RECIPES = sorted(path.stem for path in RECIPE_FOLDER.glob("*.toml"))
SPECTRA = [name for name in RECIPES if name.startswith("spectrum_")]
SCENES = ["scenes"]
DREAMBOOTH = [name for name in RECIPES if name.startswith("dreambooth_")]

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, make_discovery: Callable[..., Path]) -> Path:
    return make_discovery(tmp_path_factory.mktemp("recipes"))


def _family(name: str) -> str:
    """Backbone that `demo`, or `sd15_8gb`, is for; a small SD3 stands for the miniature transformer."""
    known = {"demo": "bestiary-demo", "demo_dit": "sd3", "sd35m_24gb": "sd3"}
    return known.get(name, name.split("_")[0])


def _small(family: str, tiny_folder: Callable[[str], Path], folder: Path) -> dict[str, object]:
    """What makes a recipe quick and changes nothing else."""
    return {
        "images.size": 128 if family == "sdxl" else 64, "images.cache": folder / "cache", "optimizer.steps": 1,
        "optimizer.warmup": 0, "optimizer.batch_size": 1, "optimizer.accumulation": 1, "run.preview_every": 0,
        "run.estimate_memory": False, "run.tensorboard": False, "run.device": "cpu", "run.dtype": "fp32",
        "base.path": str(tiny_folder(family)), "run.out": folder / "run",
    }  # fmt: skip


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in (*SPECTRA, *SCENES, *DREAMBOOTH)])
def test_a_recipe_trains(recipe: str, found: Path, tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    family = _family(recipe)
    trained = train_parts(load_recipe(recipe, _small(family, tiny_folder, tmp_path) | {"discovery.folder": found}))
    dictionary = PartDictionary.load(trained.path)
    assert dictionary.backbone == family and dictionary.provenance["steps"] == 1
    record = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert record["loss"] > 0 and "attention_loss" in record


@pytest.mark.parametrize("recipe", [name for name in DREAMBOOTH if not name.startswith("dreambooth_if")])
def test_a_recipe_of_dreambooth_trains(recipe: str, tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    family = _family(recipe.removeprefix("dreambooth_"))
    (tmp_path / "thing").mkdir()
    Image.radial_gradient("L").convert("RGB").resize((96, 80)).save(tmp_path / "thing" / "a.png")
    small = _small(family, tiny_folder, tmp_path) | {"images.instance": tmp_path / "thing", "images.class_count": 1}
    trained = train_dreambooth(load_dreambooth_recipe(recipe, small))
    assert lora_layers(load_file(trained.path))
    record = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert record["instance_loss"] > 0 and "prior_loss" in record


@pytest.mark.parametrize(("recipe", "stage"), [("dreambooth_if_i", "first"), ("dreambooth_if_ii", "second")])
def test_a_recipe_of_deepfloyd_if_trains(recipe: str, stage: str, cascade, tmp_path: Path) -> None:
    (tmp_path / "thing").mkdir()
    Image.radial_gradient("L").convert("RGB").resize((96, 80)).save(tmp_path / "thing" / "a.png")
    small = _small("sd15", lambda family: getattr(cascade, stage), tmp_path) | {"images.instance": tmp_path / "thing"}
    small |= {"base.text_encoder": cascade.first / "text_encoder", "base.tokenizer": cascade.first / "tokenizer"}
    small |= {"images.class_count": 1, "images.size": None}
    trained = train_dreambooth(load_dreambooth_recipe(recipe, small))
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(getattr(cascade, stage) / "unet")
    # six projections of every attention layer of the stage
    assert len(lora_layers(load_file(trained.path))) == 6 * len(unet.attn_processors)
    record = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert record["instance_loss"] > 0 and "prior_loss" in record


@pytest.mark.parametrize("recipe", SPECTRA)
def test_a_recipe_of_a_spectrum_trains(recipe: str, tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    family = _family(recipe.removeprefix("spectrum_"))
    Image.radial_gradient("L").convert("RGB").resize((96, 80)).save(tmp_path / "a.png")
    # the recipe's own number of pictures: several stages of one step learn together
    small = _small(family, tiny_folder, tmp_path) | {"optimizer.batch_size": 2, "images.source": tmp_path / "a.png"}
    settings = load_spectrum_recipe(recipe, small)
    spectrum = load_spectrum(train_spectrum(settings).path)
    assert (spectrum.backbone, spectrum.stages) == (family, 10)
    assert spectrum.vectors == settings.method.vectors and spectrum.provenance["steps"] == 1
    record = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert record["loss"] > 0 and sum(loss is not None for loss in record["stage_loss"]) == 2
