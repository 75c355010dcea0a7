"""A training set as a discovery for the command line, and what the child's end means."""

from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError


@pytest.fixture
def made(sd15_model, drawn_images, small_codebook, tmp_path, monkeypatch) -> object:
    """A small training set with classes; runs go to a folder of the test."""
    import folder_paths
    from bestiary.nodes.graph_progress import GraphProgress
    from bestiary.nodes.socket_types import NamedCodebook
    from bestiary.nodes.training_set import TrainingSetChoice, build_training_set

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    return build_training_set(
        [drawn_images], NamedCodebook("drawn", small_codebook), sd15_model.vae, TrainingSetChoice(64), GraphProgress(None),
        classes=["wren", "lark"] * 4,
    )  # fmt: skip


def test_the_command_line_reads_the_same_pictures_parts_and_kinds(made) -> None:
    from bestiary.nodes.background_training import write_training_set
    from bestiary.trainer.image_files import fit_square, read_image
    from bestiary.trainer.settings import load_recipe
    from bestiary.trainer.training_setup import load_pictures

    found = write_training_set(made)
    flags = {"discovery.folder": found, "method.ids": "class", "images.labels": found.parent / "classes.csv"}
    theirs = load_pictures(load_recipe(None, flags))
    assert len(theirs.names) == len(made.names)
    assert np.array_equal(theirs.kinds.codes, made.kinds.codes) and np.array_equal(
        theirs.kinds.labels, made.kinds.labels
    )
    assert theirs.kinds.kind_names == made.kinds.kind_names and theirs.kinds.part_names == made.kinds.part_names
    for path, square in zip(theirs.paths, made.squares, strict=True):
        assert np.array_equal(np.asarray(fit_square(read_image(path, 64), 64)), square)
    before = (found / "report.json").stat().st_mtime_ns
    assert write_training_set(made) == found and (found / "report.json").stat().st_mtime_ns == before


def _run(
    made: object, monkeypatch: pytest.MonkeyPatch, lines: list[str], code: int, resume: str = "start anew"
) -> tuple:
    """`train_in_background` with a child that says these lines; returns its result and the child's arguments."""
    from bestiary.nodes import background_training
    from bestiary.nodes.training_job import graph_settings
    from bestiary.nodes.training_progress import TrainingProgress

    called: list[list[str]] = []

    def child(arguments: list[str], on_line: object, *, should_stop: object) -> int:
        called.append(arguments)
        deque(map(on_line, lines), maxlen=0)
        return code

    monkeypatch.setattr(background_training, "launch", child)
    settings = graph_settings({"name": "apart", "steps": 5, "rank": 2}, made)
    result = background_training.train_in_background(made, "demo", settings, "apart", resume, TrainingProgress(None))
    return result, called


def test_the_child_gets_a_recipe_with_the_inputs(made, monkeypatch, tmp_path) -> None:
    from bestiary.trainer.settings import load_recipe

    with pytest.raises(BestiaryError, match="the training program ended with code 0: it said nothing"):
        _run(made, monkeypatch, [], 0)
    recipe = next(Path(tmp_path / "output" / "bestiary" / ".training_sets").glob("*/apart.toml"))
    settings = load_recipe(recipe)
    assert (settings.base.path, settings.optimizer.steps, settings.lora.rank) == ("demo", 5, 2)
    assert settings.images.size == 64 and settings.method.ids == "class"
    assert settings.run.out == tmp_path / "output" / "bestiary" / "apart"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["reading", "no model in /x"], "ended with code 2: no model in /x"),
        (
            ["ModuleNotFoundError: No module named 'diffusers'"],
            r"lacks a library .*: install the trainer with pip install",
        ),
    ],
)
def test_a_failed_child_is_told_in_its_own_words(made, monkeypatch, lines: list[str], message: str) -> None:
    with pytest.raises(BestiaryError, match=message):
        _run(made, monkeypatch, lines, 2)


def test_a_stopped_child_ends_the_graph(made, monkeypatch) -> None:
    import comfy.model_management

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        _run(made, monkeypatch, ['{"stage": "train", "done": 1, "total": 5}'], 130)


def test_only_runs_that_exist_are_gone_on_with(made, monkeypatch, tmp_path) -> None:
    with pytest.raises(BestiaryError, match="no run 'elsewhere' in output/bestiary to go on with; choose 'start anew'"):
        _run(made, monkeypatch, [], 0, resume="elsewhere")
    folder = tmp_path / "output" / "bestiary" / "early"
    folder.mkdir(parents=True)
    (folder / "config.resolved.toml").write_text("")
    called: list[list[str]] = []
    from bestiary.nodes import background_training

    monkeypatch.setattr(
        background_training, "launch", lambda arguments, *rest, **options: called.append(arguments) or 2
    )
    from bestiary.nodes.training_job import graph_settings
    from bestiary.nodes.training_progress import TrainingProgress

    settings = graph_settings({"name": "apart"}, made)
    for resume in ("early", "go on with the newest"):
        with pytest.raises(BestiaryError, match="ended with code 2"):
            background_training.train_in_background(made, "demo", settings, "apart", resume, TrainingProgress(None))
    assert called == [["resume", str(folder), "--progress", "json"]] * 2


def test_the_dictionary_is_kept_under_models(made, monkeypatch, tmp_path) -> None:
    from bestiary.concepts.parts.part_dictionary import PartDictionary

    rows = torch.tensor([[0, 0]])
    own = PartDictionary(
        backbone="sd15", part_names=("head",), kind_names=({},), background=None, rows=rows,
        embeddings={"clip_l": torch.zeros(1, 768)}, lora={}, thumbnails=None, provenance={},
    )  # fmt: skip
    own.save(tmp_path / "trained.safetensors")
    (dictionary, file), _ = _run(made, monkeypatch, [f"wrote {tmp_path / 'trained.safetensors'}"], 0)
    assert file == "apart.safetensors" and dictionary.part_names == ("head",)
    assert (tmp_path / "models" / "bestiary" / file).is_file()
