"""Which run a resume goes on with."""

import os
import shutil
from pathlib import Path

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.run.run_folder import RunFolder
from bestiary.trainer.training.resume import check_resumable, find_run


def test_a_run_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.write_config("[run]\n")
    assert find_run(tmp_path / "run").path == run.path


def test_the_newest_run_below_a_folder_is_taken(tmp_path: Path) -> None:
    for age, name in ((200, "b"), (100, "a"), (300, "c")):
        run = RunFolder.create(tmp_path / name)
        run.write_config("[run]\n")
        os.utime(run.config, (1e9 - age, 1e9 - age))
    assert find_run(tmp_path).path.name == "a"


def test_a_folder_without_runs_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        BestiaryError, match=r"holds no run: give the folder that training wrote, with config.resolved.toml"
    ):
        find_run(tmp_path)
    with pytest.raises(BestiaryError, match="nothing holds no run"):
        find_run(tmp_path / "nothing")


def test_a_run_of_a_graph_is_gone_on_with_there(tmp_path: Path) -> None:
    from bestiary.trainer.learning.parts.settings import load_recipe
    from bestiary.trainer.learning.run.recipe_file import format_toml
    from bestiary.trainer.learning.spectrum.spectrum_settings import load_spectrum_recipe
    from bestiary.trainer.training.tasks import resume_training

    for name, load, go_on in (("birds", load_recipe, resume_training), ("moth", load_spectrum_recipe, resume_training)):
        run = RunFolder.create(tmp_path / name)
        run.write_config(format_toml(load(None, {"base.path": "graph"})))
        with pytest.raises(
            BestiaryError, match=f"{name} was trained in ComfyUI.*: choose {name} at resume of the training"
        ):
            go_on(run.path)
        check_resumable(run, load(None, {}).base)


def test_a_run_from_elsewhere_makes_no_folder_that_is_not_its_own(tmp_path: Path) -> None:
    from bestiary.trainer.learning.parts.settings import load_recipe
    from bestiary.trainer.training.tasks import resume_training

    run = RunFolder.create(tmp_path / "runs" / "got")
    outside, base = tmp_path / "elsewhere", load_recipe(None, {}).base
    run.write_config(f'[images]\ncache = "{outside.as_posix()}"\n')
    with pytest.raises(BestiaryError, match=r"keeps its latents in .*elsewhere, which holds none and lies outside of"):
        resume_training(run.path)
    assert not outside.exists()
    # beside the run, or where an earlier start has put some
    check_resumable(run, base, tmp_path / "runs" / "latents")
    (outside / "0123").mkdir(parents=True)
    (outside / "0123" / "spec.json").write_text("{}")
    check_resumable(run, base, outside)


def test_replaced_pictures_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from bestiary.trainer.training.resume import tell_changed_pictures

    run, names = RunFolder.create(tmp_path / "run"), ["a.png", "deep/b.png", "c.png"]
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    for name in names:
        (tmp_path / "pictures" / name).write_bytes(name.encode() * 3000)
    assert tell_changed_pictures(run, tmp_path / "pictures", names) == []
    shutil.copytree(tmp_path / "pictures", tmp_path / "copied")  # other times, the same pictures
    assert tell_changed_pictures(run, tmp_path / "copied", names) == [] and not caplog.text
    (tmp_path / "pictures" / "deep" / "b.png").write_bytes(b"deep/B.png" * 3000)
    with caplog.at_level("WARNING", logger="bestiary"):
        assert tell_changed_pictures(run, tmp_path / "pictures", [*names[:2], "new.png"]) == [
            "c.png",
            "deep/b.png",
            "new.png",
        ]
    assert "3 pictures of" in caplog.text and "first c.png: it goes on with those of now" in caplog.text
    (run.path / "pictures.json").write_text("[")
    assert tell_changed_pictures(run, tmp_path / "pictures", names) == [] and "cannot be read" in caplog.text
