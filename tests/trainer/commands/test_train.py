"""`bestiary train parts`, `resume` and `doctor` as typed: flags over recipes, faults before anything is written."""

import json

import pytest
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.trainer.__main__ import main
from bestiary.trainer.demo.drawn_masks import draw_pictures

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def discovery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    draw_pictures(folder, 8, seed=5)
    arguments = [folder / "pictures", "--out", folder / "found", "--source", "descriptor", "--parts", 3, "--kinds", 2]
    assert main(["discover", *map(str, arguments), "--device", "cpu", "--progress", "off"]) == 0
    return folder / "found"


@pytest.fixture
def flags(discovery, tiny_folder, tmp_path):
    flags = [
        "--discovery",
        discovery,
        "--base",
        tiny_folder("bestiary-demo"),
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
    ]
    flags += ["--dtype", "fp32", "--batch-size", 2, "--set", "optimizer.warmup=0", "--set", "images.size=64"]
    return [*map(str, flags), "--set", f"images.cache={tmp_path / 'cache'}"]


def _fault(capsys, arguments) -> str:
    assert main([*map(str, arguments)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback" not in "\n".join(lines) and lines[-1].startswith("bestiary: ")
    return lines[-1]


def test_training_from_flags_writes_a_dictionary(flags, tmp_path, capsys):
    assert main(["train", "parts", "demo", *flags, "--steps", "2", "--progress", "json"]) == 0
    captured = capsys.readouterr()
    path = captured.out.strip().removeprefix("wrote ")
    assert PartDictionary.load(path).provenance["steps"] == 2
    progress = [json.loads(line) for line in captured.err.splitlines() if line.startswith("{")]
    assert (progress[-1]["stage"], progress[-1]["done"], progress[-1]["total"]) == ("train", 2, 2)
    assert main(["resume", str(tmp_path / "run"), "--progress", "off"]) == 0
    assert main(["train", "parts", "demo", *flags, "--steps", "1", "--progress", "off"]) == 0
    second = capsys.readouterr().out.splitlines()[-1].removeprefix("wrote ")
    assert second != path and PartDictionary.load(path).provenance["steps"] == 2


def test_doctor_looks_without_training(flags, tmp_path, capsys):
    assert main(["doctor", "demo", *[flag for flag in flags if flag not in ("--batch-size", "2")]]) == 0
    assert "pictures: 8 in" in capsys.readouterr().out
    assert not list(tmp_path.glob("run*/state/*"))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--steps", "0"], "optimizer.steps = 0"),
        (["--set", "optimizer.setps=4"], "did you mean 'steps'"),
        (["--set", "nonsense"], "--set 'nonsense': write name=value"),
        (["--base", "no/such/model"], "no/such/model"),
        (["--discovery", "no/such/discovery"], "no/such/discovery"),
    ],
)
def test_faults_show_before_a_run_folder_is_made(flags, tmp_path, capsys, extra, message):
    assert message in _fault(capsys, ["train", "parts", *flags, *extra])
    assert not (tmp_path / "run").exists() or extra[0] == "--base"


def test_unknown_recipe_lists_those_there_are(capsys):
    assert "sd15_12gb" in _fault(capsys, ["train", "parts", "sd15_13gb"])


def test_resume_needs_a_run_folder(tmp_path, capsys):
    assert "no folder" in _fault(capsys, ["resume", tmp_path / "none"])
    assert str(tmp_path) in _fault(capsys, ["resume", tmp_path])
