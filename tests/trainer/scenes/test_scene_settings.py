"""The shipped recipe of scenes, and the settings that a recipe and a folder give."""

import re
import shutil
from pathlib import Path

import pytest
from bestiary.scenes.cutout import CutoutOptions
from bestiary.scenes.cutout_gate import CutoutLimits
from bestiary.trainer.__main__ import main
from bestiary.trainer.learning.run.recipe_file import RECIPE_FOLDER, format_toml, parse_toml, read_recipe
from bestiary.trainer.scenes.scene_settings import CutoutSettings, GateSettings, SceneSettings
from PIL import Image

RECIPE = RECIPE_FOLDER / "scenes.toml"


def test_the_shipped_recipe_says_its_command_and_builds_a_set(recipe, tmp_path, monkeypatch) -> None:
    assert re.match(r"# bestiary scenes build scenes.toml --out ", RECIPE.read_text())
    for name in ("cat", "dog"):
        shutil.move(tmp_path / name, tmp_path / "photos" / name)
    (tmp_path / "photos/places").mkdir()
    Image.effect_noise((200, 150), 60).convert("RGB").save(tmp_path / "photos/places/garden_1.jpg")
    monkeypatch.chdir(tmp_path)
    small = ["--set", "layout.width=128", "--set", "layout.height=96", "--count", "4", "--progress", "off"]
    # by its name, as other shipped recipes
    assert main(["scenes", "build", "scenes", "--out", "pets", *small]) == 0
    texts = {path.read_text() for path in Path("pets/images").glob("*.txt")}
    assert "a photo of sks cat in a garden\n" in texts and any("ohwx brown dog" in text for text in texts)
    assert main(["scenes", "verify", "pets"]) == 0


def test_settings_survive_being_written() -> None:
    settings = read_recipe(
        RECIPE, {"gate.border": "false", "gate.edge": "0.1", "cutout.feather": "2"}, model=SceneSettings
    )
    assert settings.gate.limits() == {"border": None, "edge": 0.1} and settings.cutout.options() == {"feather": 2.0}
    assert SceneSettings.model_validate(parse_toml(format_toml(settings), "written")) == settings


def test_settings_and_records_name_the_same_options() -> None:
    assert set(CutoutOptions.__dataclass_fields__) <= set(CutoutSettings.model_fields)
    assert set(CutoutLimits.__dataclass_fields__) == set(GateSettings.model_fields)
    assert CutoutSettings().options() == {} and GateSettings().limits() == {}


@pytest.mark.parametrize("model", [SceneSettings, *(field.annotation for field in SceneSettings.model_fields.values())])
def test_every_setting_says_what_it_is(model) -> None:
    for name, field in getattr(model, "model_fields", {}).items():
        described = field.description or getattr(field.annotation, "__doc__", "")
        assert described, name


def test_a_folder_with_pictures_beside_subfolders_is_refused(recipe, tmp_path, fails) -> None:
    shutil.copyfile(tmp_path / "cat/0.png", tmp_path / "stray.png")
    fails(["scenes", "build", str(tmp_path)], "holds subfolders and 1 pictures beside them (stray.png)")
