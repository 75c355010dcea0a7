"""Run folders of the graph: made anew, listed by what they train, gone on with only from the same pictures."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bestiary.concepts.errors import BestiaryError


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """ComfyUI's output folder is one of the test."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path / "bestiary"


@pytest.fixture
def settings() -> dict[str, object]:
    """By kind of training."""
    from bestiary.trainer.learning.parts.settings import load_recipe
    from bestiary.trainer.learning.spectrum.spectrum_settings import load_spectrum_recipe

    return {"parts": load_recipe(None, {}), "spectrum": load_spectrum_recipe(None, {})}


@pytest.fixture
def started(settings, outputs: Path) -> Callable[[str, str, int], None]:
    """`started(name, kind, age)`: a run of other pictures that began `age` seconds ago."""
    from bestiary.nodes.runs.training_runs import ANEW, open_run

    def start(name: str, kind: str, age: int) -> None:
        run = open_run(name, ANEW, settings[kind], "12ab")
        os.utime(run.config, (1e9 - age, 1e9 - age))

    return start


def test_runs_are_listed_by_kind_the_newest_first(started) -> None:
    from bestiary.nodes.runs.training_runs import ANEW, NEWEST, resume_choices, run_names

    for name, kind, age in (("birds", "parts", 30), ("moth", "spectrum", 20), ("moths", "spectrum", 40), ("cats", "parts", 50)):  # fmt: skip
        started(name, kind, age)
    assert run_names() == ["moth", "birds", "moths", "cats"]
    assert run_names("parts") == ["birds", "cats"] and run_names("spectrum") == ["moth", "moths"]
    assert resume_choices() == [ANEW, NEWEST, "birds", "cats"]
    assert resume_choices("spectrum") == [ANEW, NEWEST, "moth", "moths"]


def test_a_broken_folder_does_not_take_the_menu_away(started, outputs: Path) -> None:
    from bestiary.nodes.runs.training_runs import resume_choices

    started("birds", "parts", 10)
    (outputs / "broken").mkdir()
    (outputs / "broken" / "config.resolved.toml").write_bytes(b"\xff\xfe")
    (outputs / "notes").mkdir()  # no run at all
    assert resume_choices()[2:] == ["birds"] and resume_choices("spectrum")[2:] == []


def test_anew_never_takes_a_folder_that_is_there(settings, outputs: Path) -> None:
    from bestiary.nodes.runs.training_runs import ANEW, open_run

    runs = [open_run(" my birds ", ANEW, settings[kind], "12ab") for kind in ("parts", "spectrum")]
    assert [run.path for run in runs] == [outputs / "my birds", outputs / "my birds-2"]
    assert [run.kind for run in runs] == ["parts", "spectrum"]
    assert runs[0].config.read_text().startswith("# training set 12ab\n")


@pytest.mark.parametrize("kind", ["parts", "spectrum"])
def test_the_newest_is_the_newest_of_its_kind(started, settings, kind: str) -> None:
    from bestiary.nodes.runs.training_runs import NEWEST, open_run

    for name, one, age in (("birds", "parts", 30), ("moth", "spectrum", 20), ("cats", "parts", 50), ("fly", "spectrum", 60)):  # fmt: skip
        started(name, one, age)
    run = open_run("unused", NEWEST, settings[kind], "12ab")
    assert run.path.name == {"parts": "birds", "spectrum": "moth"}[kind]


@pytest.mark.parametrize(
    ("resume", "kind", "message"),
    [
        ("moth", "parts", "run moth is of another kind: this node can resume only trainings of parts; choose 'start anew', or "),
        ("birds", "spectrum", "run birds is of another kind: this node can resume only trainings of spectra; choose 'start anew', or 'moth'"),
        ("moht", "spectrum", "no run 'moht' to resume in output/bestiary; choose 'start anew', or 'moth'"),
        ("../birds", "parts", "no run '../birds' to resume in output/bestiary"),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_gone_on_with(started, settings, resume: str, kind: str, message: str) -> None:
    from bestiary.nodes.runs.training_runs import open_run

    started("birds", "parts", 30)
    started("moth", "spectrum", 20)
    with pytest.raises(BestiaryError) as raised:
        open_run("unused", resume, settings[kind], "12ab")
    assert str(raised.value).startswith(message)


def test_without_any_run(settings) -> None:
    from bestiary.nodes.runs.training_runs import NEWEST, open_run

    with pytest.raises(BestiaryError, match="choose 'start anew': there is none yet"):
        open_run("unused", NEWEST, settings["spectrum"], "12ab")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("parts", "run old was trained on other pictures or parts than this training set: connect the same pictures, codebook"),
        ("spectrum", "run old was trained on other pictures or masks than these: connect the same pictures, foreground and VAE"),
    ],
)  # fmt: skip
def test_other_pictures_are_told(started, settings, kind: str, message: str) -> None:
    from bestiary.nodes.runs.training_runs import open_run

    started("old", kind, 10)
    with pytest.raises(BestiaryError, match=message):
        open_run("unused", "old", settings[kind], "34cd")


def test_lines_of_more_settings_win_and_are_flat() -> None:
    from bestiary.nodes.runs.training_runs import more_choices, settings_from

    more = 'captions.noun = "bird"\n[optimizer]\nsteps = 7'
    assert more_choices(more) == {"captions.noun": "bird", "optimizer.steps": 7}
    settings = settings_from({"optimizer.steps": 5, "lora.rank": 2}, more)
    assert (settings.optimizer.steps, settings.lora.rank, settings.captions.noun) == (7, 2, "bird")
    with pytest.raises(BestiaryError, match="more_settings is not valid TOML"):
        more_choices("steps 7")


@pytest.mark.parametrize("name", ["../evil", "", "a/b", "a" * 90, "<corgi>"])
def test_names_that_no_folder_takes(name: str) -> None:
    from bestiary.nodes.runs.training_runs import checked_name

    with pytest.raises(
        BestiaryError, match="cannot be used as the name of a training: use letters, digits, spaces and - _ ."
    ):
        checked_name(name)
    assert checked_name(" my birds.2 ") == "my birds.2"


def test_half_files_of_ended_processes_go_when_a_training_begins(
    settings, outputs: Path, tmp_path, monkeypatch
) -> None:
    import subprocess
    import sys

    import folder_paths
    from bestiary.nodes.runs.training_runs import ANEW, open_run

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    (tmp_path / "models" / "bestiary").mkdir(parents=True)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    half = tmp_path / "models" / "bestiary" / f".birds.safetensors.{ended.pid}-0.part"
    half.touch()
    (half.parent / "birds.safetensors").touch()
    open_run("birds", ANEW, settings["parts"], "12ab")
    assert [path.name for path in half.parent.iterdir()] == ["birds.safetensors"]


def test_a_run_of_an_earlier_version_is_gone_on_with(started, settings) -> None:
    from bestiary.nodes.runs.training_runs import open_run

    started("old", "parts", 10)
    assert open_run("unused", "old", settings["parts"], "new fingerprint", "12ab").path.name == "old"
