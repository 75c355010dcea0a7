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
    from bestiary.nodes.host.graph_progress import GraphProgress
    from bestiary.nodes.host.socket_types import NamedCodebook
    from bestiary.nodes.training.training_set import TrainingSetChoice, build_training_set

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    return build_training_set(
        [drawn_images], NamedCodebook("drawn", small_codebook), sd15_model.vae, TrainingSetChoice(64), GraphProgress(None),
        classes=["wren", "lark"] * 4,
    )  # fmt: skip


def test_the_command_line_reads_the_same_pictures_parts_and_kinds(made) -> None:
    from bestiary.nodes.training.background_training import write_training_set
    from bestiary.trainer.learning.parts.settings import load_recipe
    from bestiary.trainer.learning.pictures.image_files import fit_square, read_image
    from bestiary.trainer.training.train_parts import PartTask

    found = write_training_set(made)
    flags = {"discovery.folder": found, "method.ids": "class", "images.labels": found.parent / "classes.csv"}
    theirs = PartTask(load_recipe(None, flags)).pictures
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
    from bestiary.nodes.training import background_training
    from bestiary.nodes.training.training_job import graph_settings
    from bestiary.nodes.training.training_progress import TrainingProgress

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
    from bestiary.trainer.learning.parts.settings import load_recipe

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
    with pytest.raises(BestiaryError, match="no run 'elsewhere' to resume in output/bestiary; choose 'start anew'"):
        _run(made, monkeypatch, [], 0, resume="elsewhere")
    folder = tmp_path / "output" / "bestiary" / "early"
    folder.mkdir(parents=True)
    (folder / "config.resolved.toml").write_text("")
    called: list[list[str]] = []
    from bestiary.nodes.training import background_training

    monkeypatch.setattr(
        background_training, "launch", lambda arguments, *rest, **options: called.append(arguments) or 2
    )
    from bestiary.nodes.training.training_job import graph_settings
    from bestiary.nodes.training.training_progress import TrainingProgress

    settings = graph_settings({"name": "apart"}, made)
    for resume in ("early", "go on with the newest"):
        with pytest.raises(BestiaryError, match="ended with code 2"):
            background_training.train_in_background(made, "demo", settings, "apart", resume, TrainingProgress(None))
    assert called == [["resume", str(folder), "--progress", "json"]] * 2


def test_the_dictionary_is_kept_under_models(made, monkeypatch, tmp_path) -> None:
    from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary

    rows = torch.tensor([[0, 0]])
    own = PartDictionary(
        backbone="sd15", part_names=("head",), kind_names=({},), background=None, rows=rows,
        embeddings={"clip_l": torch.zeros(1, 768)}, lora={}, thumbnails=None, provenance={},
    )  # fmt: skip
    own.save(tmp_path / "trained.safetensors")
    (dictionary, file), _ = _run(made, monkeypatch, [f"wrote {tmp_path / 'trained.safetensors'}"], 0)
    assert file == "apart.safetensors" and dictionary.part_names == ("head",)
    assert (tmp_path / "models" / "bestiary" / file).is_file()


def _settings(made: object, **choices: object) -> object:
    from bestiary.nodes.training.training_job import graph_settings

    return graph_settings({"name": "apart", "steps": 5, "rank": 2, **choices}, made)


def test_renamed_parts_kinds_and_classes_are_another_training_set(made) -> None:
    from dataclasses import replace

    kinds = made.kinds
    others = [
        replace(made, kinds=replace(kinds, part_names=("Kopf", *kinds.part_names[1:]))),
        replace(made, kinds=replace(kinds, kind_names=({0: "robin"}, *kinds.kind_names[1:]))),
        replace(made, classes=tuple(reversed(made.classes))),
    ]
    assert len({one.fingerprint() for one in (made, *others)}) == 4
    assert replace(made).fingerprint() == made.fingerprint()
    assert {one.earlier_fingerprint() for one in (made, *others)} == {made.earlier_fingerprint()}


def test_renamed_parts_train_under_their_new_names(made) -> None:
    from dataclasses import replace

    from bestiary.nodes.training.background_training import write_training_set
    from bestiary.trainer.learning.discovery.discovery_folder import Discovery

    write_training_set(made)
    names = ("Kopf", *made.codebook.part_names[1:])
    codebook = made.codebook.with_names(names, made.codebook.kind_names)
    renamed = replace(made, codebook=codebook, kinds=replace(made.kinds, part_names=names))
    assert Discovery.load(write_training_set(renamed)).codebook.part_names == names


def test_a_resumed_child_gets_the_inputs_of_the_node(made, monkeypatch, tmp_path) -> None:
    from dataclasses import replace

    from bestiary.nodes.training.background_training import _arguments
    from bestiary.trainer.learning.parts.settings import load_recipe
    from bestiary.trainer.learning.run.run_folder import RunFolder

    (_, recipe), reserved = (_arguments(made, "demo", _settings(made), "apart", "start anew")[0][1:], None)
    run = RunFolder.create(tmp_path / "output" / "bestiary" / "apart")
    run.write_config(Path(recipe).read_text())
    assert reserved is None and run.path.name == "apart"
    # more steps are what one goes on for
    arguments, folder = _arguments(made, "demo", _settings(made, steps=9, preview_every=3), "apart", "apart")
    assert arguments == ["resume", str(run.path)] and folder == run.path
    config = load_recipe(run.config, of_run=True)
    assert (config.optimizer.steps, config.run.preview_every, config.lora.rank) == (9, 3, 2)
    # what was begun with another set, model or method cannot be gone on with
    before = run.config.read_bytes()
    renamed = replace(made, kinds=replace(made.kinds, part_names=("Kopf", *made.kinds.part_names[1:])))
    with pytest.raises(BestiaryError, match="run apart was trained on other pictures or parts than this training set"):
        _arguments(renamed, "demo", _settings(made), "apart", "apart")
    with pytest.raises(
        BestiaryError, match=r"run apart was started with lora.rank 2, not 3: set what it had, or choose 'start"
    ):
        _arguments(made, "demo", _settings(made, rank=3), "apart", "apart")
    with pytest.raises(BestiaryError, match=r"started with base.path 'demo', not '.*/sd15'"):
        _arguments(made, "sd15", _settings(made), "apart", "apart")
    with run.locked(), pytest.raises(BestiaryError, match="another training is writing into"):
        _arguments(made, "demo", _settings(made), "apart", "apart")
    assert run.config.read_bytes() == before


def test_the_folder_of_an_earlier_run_is_not_taken_for_the_childs(made, monkeypatch, tmp_path) -> None:
    from bestiary.nodes.training import background_training
    from bestiary.nodes.training.training_progress import TrainingProgress

    earlier = tmp_path / "output" / "bestiary" / "apart"
    (earlier / "samples").mkdir(parents=True)
    (earlier / "config.resolved.toml").write_text("")
    progress, seen = TrainingProgress(None), []

    def child(arguments: list[str], on_line: object, *, should_stop: object) -> int:
        on_line('{"stage": "train", "done": 1, "total": 5}')
        seen.append(progress.run)
        return 2

    monkeypatch.setattr(background_training, "launch", child)
    with pytest.raises(BestiaryError, match="ended with code 2"):
        background_training.train_in_background(made, "demo", _settings(made), "apart", "start anew", progress)
    assert seen == ["apart-2"] and not (earlier.parent / "apart-2").exists()


def test_only_the_last_training_sets_are_kept(made, monkeypatch) -> None:
    import os
    from dataclasses import replace

    from bestiary.nodes.training import background_training as background

    monkeypatch.setattr(background, "KEPT_SETS", 3)
    found = []
    for number in range(5):
        other = replace(made, classes=tuple(f"{name} {number}" for name in made.classes))
        found.append(background.write_training_set(other).parent)
        os.utime(found[-1], (1e9 + number, 1e9 + number))
        if number == 3:
            os.utime(found[1], (2e9, 2e9))  # used again meanwhile
    assert [folder.exists() for folder in found] == [False, True, False, True, True]
