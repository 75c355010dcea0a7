"""Part training end to end on a tiny model: result, exports, resume also after kill -9, baselines, clear faults."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.trainer.learning.parts.settings import TrainPartsSettings, load_recipe
from bestiary.trainer.learning.run.fit import TrainingStopped
from bestiary.trainer.training.tasks import resume_training
from bestiary.trainer.training.train_parts import train_parts
from safetensors.torch import load_file

ROOT = Path(__file__).parents[3]
QUICK = {
    "images.size": 64, "run.device": "cpu", "run.dtype": "fp32", "run.preview_every": 0, "run.estimate_memory": False,
    "run.log_every": 1, "run.save_every": 2, "run.tensorboard": False, "optimizer.steps": 4, "optimizer.accumulation": 1,
    "lora.rank": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory, make_discovery) -> Path:
    return make_discovery(tmp_path_factory.mktemp("train"))


@pytest.fixture
def settings_for(found, tiny_folder, tmp_path):
    def build(out: str = "run", **flags: object) -> TrainPartsSettings:
        known = {
            **QUICK,
            "discovery.folder": found,
            "base.path": str(tiny_folder("bestiary-demo")),
            "run.out": tmp_path / out,
        }
        return load_recipe(None, known | {key.replace("__", "."): value for key, value in flags.items()})

    return build


def curve(run: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records]


def weights(run: Path) -> dict[str, torch.Tensor]:
    state = load_file(sorted((run / "state").iterdir())[-1])
    return {name: tensor for name, tensor in state.items() if not name.startswith("random.")}


def test_a_training_leaves_a_dictionary_and_its_exports(settings_for, tmp_path) -> None:
    steps = []
    flags = {"run__preview_every": 2, "run__preview_steps": 1, "run__preview_count": 2, "optimizer__ema": 0.5}
    trained = train_parts(settings_for(**flags), on_progress=lambda done, total: steps.append((done, total)))
    assert steps == [(step, 4) for step in (1, 2, 3, 4)]
    dictionary = PartDictionary.load(trained.path)
    assert dictionary.rows.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2], [2, 0]]
    assert dictionary.kind_names[0] == {0: "red", 1: "blue"} and dictionary.background == 2
    assert dictionary.thumbnails.tile(1, 2) is not None and dictionary.provenance["steps"] == 4
    assert any(name.endswith("lora_up.weight") and tensor.abs().sum() > 0 for name, tensor in dictionary.lora.items())
    with pytest.raises(BestiaryError, match="unknown kind 7"):
        dictionary.vector(1, 7)
    assert trained.exports and all(path.is_file() for path in trained.exports)
    run = tmp_path / "run"
    names = {path.name for path in (run / "samples").iterdir()}
    assert names == {f"step-000000{step}{kind}.png" for step in (0, 2, 4) for kind in ("", "-attention")}
    record = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert len(record["attention_iou"]) == len(record["part_attention_loss"]) == 3
    labels = json.loads((run / "curve_labels.json").read_text())
    assert labels == {curve: list(dictionary.part_names) for curve in ("part_attention_loss", "attention_iou")}


def test_a_second_run_overwrites_nothing(settings_for) -> None:
    first, second = train_parts(settings_for()), train_parts(settings_for())
    assert (first.run.path.name, second.run.path.name) == ("run", "run-2")
    assert first.path.read_bytes() == second.path.read_bytes()


def test_a_stopped_training_goes_on_bit_for_bit(settings_for, monkeypatch) -> None:
    whole = train_parts(settings_for("whole"))

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    settings = settings_for("halved")
    with pytest.raises(TrainingStopped, match="stopped at step 3"):
        train_parts(settings, on_progress=interrupt)
    resumed = resume_training(settings.run.out)
    assert curve(resumed.run.path) == curve(whole.run.path)
    ours, theirs = weights(resumed.run.path), weights(whole.run.path)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert resumed.path.read_bytes() == whole.path.read_bytes()


@pytest.mark.train
def test_a_killed_training_goes_on_bit_for_bit(settings_for, tmp_path) -> None:
    whole = train_parts(settings_for("whole"))
    settings = settings_for("killed")
    program = f"""
        import importlib.util, os, signal, sys
        spec = importlib.util.spec_from_file_location("conftest", {str(ROOT / "tests" / "conftest.py")!r})
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        from bestiary.trainer.learning.parts.settings import TrainPartsSettings
        from bestiary.trainer.training.train_parts import train_parts
        settings = TrainPartsSettings.model_validate_json({settings.model_dump_json()!r})
        train_parts(settings, on_progress=lambda done, total: done == 3 and os.kill(os.getpid(), signal.SIGKILL))
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, env=environment
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert [path.name for path in (settings.run.out / "state").iterdir()] == ["step-0000002.safetensors"]
    resumed = resume_training(settings.run.out)
    assert curve(resumed.run.path) == curve(whole.run.path)
    ours, theirs = weights(resumed.run.path), weights(whole.run.path)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_baselines_train_by_the_same_program(settings_for, found) -> None:
    flags = {"method__ids": "class", "images__labels": found.parent / "labels.csv"}
    trained = train_parts(settings_for(method__kind="textual_inversion", **flags))
    dictionary = PartDictionary.load(trained.path)
    assert dictionary.part_names == ("whole",) and dictionary.kind_names == ({0: "lark", 1: "wren"},)
    assert len(dictionary.provenance["codes_of_kind"]) == 2
    without = train_parts(settings_for("without", attention_loss__weight=0))
    record = json.loads((without.run.path / "log.jsonl").read_text().splitlines()[0])
    assert record["loss"] == record["noise_loss"] and record["attention_loss"] > 0


def test_faults_in_the_material_show_before_a_folder_is_made(settings_for, tmp_path) -> None:
    with pytest.raises(
        BestiaryError, match=r"nothing contains no discovery; give the folder of a finished `bestiary discover`"
    ):
        train_parts(settings_for(discovery__folder=tmp_path / "nothing"))
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_resumed_with_another_base_is_refused(settings_for, tiny_folder, tmp_path) -> None:
    train_parts(settings_for())
    config = tmp_path / "run" / "config.resolved.toml"
    text = config.read_text().replace("rank = 2", "rank = 3")
    config.write_text(text)
    with pytest.raises(
        BestiaryError, match=r"saved state of step 4 does not match: .*lora_down.weight has shape \(2, 32\)"
    ):
        resume_training(tmp_path / "run")


def test_a_model_folder_that_is_none_is_told(settings_for, tmp_path) -> None:
    with pytest.raises(BestiaryError, match=str(tmp_path)):
        train_parts(settings_for(base__path=str(tmp_path)))


def test_an_output_that_cannot_be_made_is_told(settings_for, tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BestiaryError, match=r"cannot create the run folder .*; choose another run.out"):
        train_parts(settings_for(run__out=tmp_path / "file" / "run"))
