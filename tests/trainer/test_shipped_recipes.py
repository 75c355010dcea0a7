"""Every shipped recipe trains a step on a small model of its family, with nothing but sizes changed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bestiary.concepts.parts.part_dictionary import PartDictionary
from bestiary.trainer.recipe_file import RECIPE_FOLDER
from bestiary.trainer.settings import load_recipe
from bestiary.trainer.train_parts import train_parts

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, make_discovery: Callable[..., Path]) -> Path:
    return make_discovery(tmp_path_factory.mktemp("recipes"))


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPE_FOLDER.glob("*.toml")))
def test_a_recipe_trains(recipe: str, found: Path, tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    family = {"demo": "bestiary-demo"}.get(recipe, recipe.split("_")[0])
    small = {
        "images.size": 128 if family == "sdxl" else 64, "images.cache": tmp_path / "cache", "optimizer.steps": 1,
        "optimizer.warmup": 0, "optimizer.batch_size": 1, "optimizer.accumulation": 1, "run.preview_every": 0,
        "run.estimate_memory": False, "run.tensorboard": False, "run.device": "cpu", "run.dtype": "fp32",
        "discovery.folder": found, "base.path": str(tiny_folder(family)), "run.out": tmp_path / "run",
    }  # fmt: skip
    trained = train_parts(load_recipe(recipe, small))
    dictionary = PartDictionary.load(trained.dictionary_path)
    assert dictionary.backbone == family and dictionary.provenance["steps"] == 1
    record = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert record["loss"] > 0 and "attention_loss" in record
