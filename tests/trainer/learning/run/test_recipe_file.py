"""Recipes: every shipped one loads, misspelt keys and bad values are told together, flags override, TOML round trips."""

import re
import sys
from pathlib import Path

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.dreambooth.dreambooth_settings import load_dreambooth_recipe
from bestiary.trainer.learning.parts.settings import TrainPartsSettings, load_recipe
from bestiary.trainer.learning.run.recipe_file import RECIPE_FOLDER, find_recipe, format_toml, parse_value
from bestiary.trainer.learning.spectrum.spectrum_settings import load_spectrum_recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SPECTRA = sorted(RECIPE_FOLDER.glob("spectrum_*.toml"))
SCENES = RECIPE_FOLDER / "scenes.toml"
DREAMBOOTH = sorted(RECIPE_FOLDER.glob("dreambooth_*.toml"))
RECIPES = [path for path in sorted(RECIPE_FOLDER.glob("*.toml")) if path not in (*SPECTRA, *DREAMBOOTH, SCENES)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_by_name_and_says_its_command(path: Path) -> None:
    assert load_recipe(path.stem) == load_recipe(path)
    first = path.read_text().splitlines()[0]
    assert first.startswith(f"# bestiary train parts {path.stem} ")
    steps = load_recipe(path.stem).optimizer
    assert steps.batch_size * steps.accumulation >= 8


@pytest.mark.parametrize("path", SPECTRA, ids=lambda path: path.stem)
def test_every_recipe_of_spectra_loads_by_name_and_says_its_command(path: Path) -> None:
    settings = load_spectrum_recipe(path.stem)
    assert settings == load_spectrum_recipe(path) != load_spectrum_recipe(None)
    assert re.match(rf"# bestiary train spectrum PICTURE\S* --recipe {path.stem} ", path.read_text())
    # flips would teach a mirrored layout
    assert settings.method.stages == 10 and not settings.images.flip


@pytest.mark.parametrize("path", DREAMBOOTH, ids=lambda path: path.stem)
def test_every_recipe_of_dreambooth_loads_by_name_and_says_its_command(path: Path) -> None:
    settings = load_dreambooth_recipe(path.stem)
    assert settings == load_dreambooth_recipe(path) != load_dreambooth_recipe(None)
    assert re.match(rf"# bestiary train dreambooth PICTURES --recipe {path.stem} ", path.read_text())
    # few things are symmetric
    assert not settings.images.flip


def test_there_are_recipes_for_every_backbone() -> None:
    families = {path.stem.split("_")[0] for path in RECIPES}
    assert families == {"demo", "sd15", "sd2", "sdxl", "sd35m", "flux"}
    assert [path.stem for path in DREAMBOOTH] == [
        "dreambooth_demo",
        "dreambooth_if_i",
        "dreambooth_if_ii",
        "dreambooth_sd15",
        "dreambooth_sdxl",
    ]
    assert [path.stem for path in SPECTRA] == ["spectrum_demo", "spectrum_sd15", "spectrum_sdxl"]


def test_a_recipe_for_another_training_is_told(tmp_path: Path) -> None:
    with pytest.raises(BestiaryError) as fault:
        load_recipe("spectrum_demo")
    told = (
        "recipe spectrum_demo is for `bestiary train spectrum`, not for `bestiary train parts`: choose another recipe"
    )
    assert str(fault.value) == told
    path = tmp_path / "mine.toml"
    path.write_text('kind = "parts"\n')
    with pytest.raises(BestiaryError, match="is for `bestiary train parts`, not for `bestiary train spectrum`"):
        load_spectrum_recipe(path)


def test_a_misspelt_key_in_a_recipe_names_the_closest(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[optimizer]\nstepps = 5\n[runn]\nseed = 1\n[method]\nzzzz = 1\n")
    with pytest.raises(BestiaryError) as fault:
        load_recipe(path)
    text = str(fault.value)
    assert f"recipe {path}: 3 error(s)" in text
    assert "optimizer.stepps: no such key; did you mean 'steps'?" in text
    assert "runn: no such key; did you mean 'run'?" in text
    assert "method.zzzz: no such key; valid keys: kind, ids, background" in text


def test_bad_values_are_told_with_the_value_and_the_range() -> None:
    flags = {"optimizer.batch_size": "0", "method.kind": "magic", "run.seed": "-1", "optimizer.betas": "[0.9, 1.0]"}
    with pytest.raises(BestiaryError) as fault:
        load_recipe(None, flags)
    text = str(fault.value)
    assert "settings: 4 error(s)" in text
    assert "optimizer.batch_size = 0: Input should be greater than or equal to 1" in text
    assert "method.kind = 'magic': Input should be 'parts' or 'textual_inversion'" in text
    assert "each beta must be from 0 to below 1, got 0.9 and 1.0" in text


def test_combinations_are_checked_together() -> None:
    flags = {"method.ids": "class", "optimizer.warmup": 9, "optimizer.steps": 9}
    with pytest.raises(BestiaryError, match=r'method.ids = "class" needs images.labels.*warmup 9 must be below'):
        load_recipe(None, flags)
    with pytest.raises(BestiaryError, match="give either layers or downsampling, not both"):
        load_recipe(None, {"attention_loss.layers": ["a"], "attention_loss.downsampling": [2]})
    with pytest.raises(BestiaryError, match="both 0: nothing would be learned"):
        load_recipe(None, {"optimizer.token_lr": 0, "optimizer.lora_lr": 0})


def test_flags_override_the_recipe() -> None:
    plain = load_recipe("demo")
    ours = load_recipe(
        "demo", {"optimizer.steps": "7", "lora.rank": 2, "images.folder": Path("x"), "optimizer.warmup": "0"}
    )
    assert (ours.optimizer.steps, ours.lora.rank, ours.images.folder) == (7, 2, Path("x"))
    assert ours.optimizer.batch_size == plain.optimizer.batch_size
    with pytest.raises(BestiaryError, match="option 'lora.rank.x': 'rank' is a value, not a table"):
        load_recipe("demo", {"lora.rank.x": "1"})


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), ("1e-3", 1e-3), ("true", True), ("none", None), ("[1, 2]", [1, 2]), ("/a b/c", "/a b/c"), ('"5"', "5")],
)
def test_flags_are_read_as_toml_values_where_they_are(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_settings_survive_toml() -> None:
    flags = {"images.folder": 'a "quoted" \\ name', "attention_loss.layers": ["x.attn2"], "method.min_snr": 0}
    ours = load_recipe("demo", flags)
    assert TrainPartsSettings.model_validate(tomllib.loads(format_toml(ours))) == ours


def test_a_missing_recipe_lists_those_there_are() -> None:
    with pytest.raises(BestiaryError, match=re.escape("no recipe 'nothing'")) as fault:
        find_recipe("nothing")
    assert all(path.stem in str(fault.value) for path in RECIPES)


def test_what_is_no_toml_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("steps = = 3")
    with pytest.raises(BestiaryError, match=r"a\.toml is not valid TOML: .*line 1"):
        load_recipe(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BestiaryError, match=r"b\.toml is not UTF-8 text: .* at byte 0"):
        load_recipe(tmp_path / "b.toml")


def test_texts_that_look_like_numbers_stay_texts(tmp_path: Path) -> None:
    flags = {
        "run.name": "42",
        "method.initial_words": "2024",
        "base.path": "1.5",
        "run.out": "1e3",
        "images.cache": "7",
    }
    settings = load_spectrum_recipe(None, flags)
    assert (settings.run.name, settings.method.initial_words, str(settings.run.out)) == ("42", "2024", "1e3")
    assert str(settings.base.path) == "1.5" and settings.images.cache == Path("7")
    assert load_recipe(None, {"run.name": "2024", "captions.noun": "true"}).captions.noun == "true"
    # numbers stay numbers, quoted texts lose their quotes, and `none` still clears what can be left out
    assert load_spectrum_recipe(None, {"optimizer.steps": "42", "run.name": '"a b"'}).optimizer.steps == 42
    assert load_spectrum_recipe(None, {"run.name": '"a b"'}).run.name == "a b"
    assert load_spectrum_recipe(None, {"images.cache": "none"}).images.cache is None
    assert load_spectrum_recipe(None, {"method.initial_words": "none"}).method.initial_words == "none"


def test_files_saved_by_windows_editors_read_alike(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(b"\xef\xbb\xbf[optimizer]\r\nsteps = 7\r\n")
    assert load_recipe(tmp_path / "r.toml").optimizer.steps == 7


def test_a_recipe_may_not_choose_a_folder_elsewhere_to_generate_pictures_into(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('kind = "dreambooth"\n[images]\nclass_images = "../../elsewhere"\n')
    with pytest.raises(BestiaryError, match=r"images\.class_images = .* is outside the working folder"):
        load_dreambooth_recipe(recipe)
    # a person may
    assert load_dreambooth_recipe(None, {"images.class_images": "/elsewhere"}).images.class_images == Path("/elsewhere")
