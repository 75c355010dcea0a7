"""Spectra through the program itself: train, resume, inspect, export, import, compose, and every fault as one line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.spectrum.spectrum_file import load_spectrum
from bestiary.trainer.__main__ import main
from PIL import Image
from safetensors.torch import save_file


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "corgi.png")
    return tmp_path / "corgi.png"


def _train(tiny_folder: Callable, picture: Path, out: Path, *more: str) -> list[str]:
    fixed = ("images.size=64", "run.preview_every=0", "run.tensorboard=false", "run.estimate_memory=false")
    flags = [part for text in fixed for part in ("--set", text)]
    base = ["--base", str(tiny_folder("sd15")), "--device", "cpu", "--dtype", "fp32"]
    return ["train", "spectrum", str(picture), "--out", str(out), *base, "--steps", "2", *flags, *more]


def test_from_a_picture_to_pictures(
    tiny_folder: Callable, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert (
        main(_train(tiny_folder, picture, tmp_path / "run", "--name", "corgi", "--words", "bird", "--stages", "5")) == 0
    )
    file = tmp_path / "run" / "corgi.safetensors"
    assert f"wrote {file}" in capsys.readouterr().out
    assert main(["inspect", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["what"] == "Bestiary prompt spectrum" and told["stages"] == 5 and told["initial_words"] == "bird"
    assert told["presets"]["material"] == "3-5" and told["strength"] == "0 to 1"
    assert main(["export", str(file), "--out", str(tmp_path / "plain")]) == 0
    assert (tmp_path / "plain" / "embeddings" / "corgi-stage-05.safetensors").is_file()
    options = [
        "--base",
        str(tiny_folder("sd15")),
        "--device",
        "cpu",
        "--size",
        "64",
        "--steps",
        "2",
        "--out",
        str(tmp_path / "made"),
    ]
    assert main(["compose", str(file), "a <corgi@layout|bird>", "a <mix>", "--mix", "style=corgi", *options]) == 0
    assert len(list((tmp_path / "made").glob("*.png"))) == 2


def test_a_spectrum_of_a_transformer_is_judged_stage_by_stage(
    tiny_folder: Callable, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base, run = ("--base", str(tiny_folder("sd3"))), tmp_path / "run"
    more = (
        *base,
        "--words",
        "bird",
        "--stages",
        "3",
        "--set",
        "optimizer.batch_size=1",
        "--set",
        "optimizer.vector_lr=0.1",
    )
    assert main(_train(tiny_folder, picture, run, "--name", "corgi", *more)) == 0
    told = [
        "evaluate",
        "spectrum",
        str(run / "corgi.safetensors"),
        "--images",
        str(picture),
        "--out",
        str(tmp_path / "judged"),
    ]
    told += [*base, "--size", "64", "--count", "2", "--device", "cpu", "--dtype", "fp32"]
    assert main(told) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "judged" / "evaluation.json").read_text())
    losses = record["noise_loss"]
    assert set(losses) == {"spectrum", "mean", "words", "shuffled"}
    assert all(len(own) == 3 and np.isfinite(own).all() and min(own) > 0 for own in losses.values())
    # stages that were moved differ from one another and from the words they started at
    assert losses["spectrum"] not in (losses["words"], losses["shuffled"], losses["mean"])


def test_a_finished_run_is_resumed_to_the_same_file(tiny_folder: Callable, picture: Path, tmp_path: Path) -> None:
    assert main(_train(tiny_folder, picture, tmp_path / "run")) == 0
    first = load_spectrum(tmp_path / "run" / "spectrum.safetensors")
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert torch.equal(load_spectrum(tmp_path / "run" / "spectrum.safetensors").matrix(), first.matrix())


def test_check_writes_no_run(
    tiny_folder: Callable, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(_train(tiny_folder, picture, tmp_path / "run", "--check")) == 0
    assert "first forward pass: loss" in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_imports_through_the_program(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_file({"emb_params": torch.ones(2, 768)}, tmp_path / "cat.safetensors")
    target = tmp_path / "out.safetensors"
    assert main(["import", "textual-inversion", str(tmp_path / "cat.safetensors"), "--out", str(target)]) == 0
    assert "sd15: 1 stages, 2 vectors each" in capsys.readouterr().out
    assert load_spectrum(target).provenance["source"] == "cat.safetensors"
    layers = {f"<cat-{layer}-0>": torch.ones(768) for layer in range(16)}
    save_file(layers, tmp_path / "xti.safetensors")
    assert main(["import", "xti", str(tmp_path / "xti.safetensors"), "--out", str(target)]) == 0
    # what was there stays, the new file has a number
    assert not load_spectrum(target).layers
    target = tmp_path / "out_2.safetensors"
    assert "sd15: 1 stages, 16 layers, 1 vectors each" in capsys.readouterr().out
    # vectors per layer are never applied wrongly in silence
    assert main(["compose", str(target), "a <out_2>", "--base", "demo", "--out", str(tmp_path / "made")]) == 2
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "spectrum", "{tmp}/none.png"], "no picture and no folder"),
        (["train", "spectrum", "{tmp}", "--out", "{tmp}/run"], "no picture to learn from in"),
        (["train", "spectrum", "{tmp}", "--stages", "0"], "method.stages = 0"),
        (["train", "spectrum", "{tmp}", "--set", "method.stage=3"], "did you mean 'stages'?"),
        (["import", "prospect", "{tmp}/none.pt"], "no file"),
        (["import", "prospect", "{tmp}/text.pt"], "is neither a torch file nor a pickle"),
        (["compose", "{tmp}/none.safetensors", "x"], "no file"),
    ],
)
def test_faults_are_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    (tmp_path / "text.pt").write_text("hello")
    assert main([text.replace("{tmp}", str(tmp_path)) for text in arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert message in told[-1] and told[-1].startswith("bestiary: ")
    assert [path.name for path in tmp_path.iterdir()] == ["text.pt"]
