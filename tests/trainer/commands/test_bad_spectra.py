"""Bad input for spectra through the program itself: one clear message, exit code 2, nothing run that a file asks for, nothing lost."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.files.concept_file import SPECTRUM_KIND, write_concept_file
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.spectrum_file import load_spectrum, save_spectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.trainer.__main__ import main
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[3]
QUICK = ("--device", "cpu", "--dtype", "fp32", "--progress", "off")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "corgi.png")
    return tmp_path / "corgi.png"


@pytest.fixture
def train(tiny_folder: Callable[[str], Path]) -> Callable[..., list[object]]:
    """`train(source, out, *more)` -> the arguments of a quick training."""

    def arguments(source: Path, out: Path, *more: object) -> list[object]:
        settings = ("images.size=64", "run.preview_every=0", "run.tensorboard=false", "run.estimate_memory=false")
        settings += ("run.log_every=1", "run.save_every=2")
        base = ("--base", tiny_folder("bestiary-demo"), "--steps", 4, "--batch-size", 2, "--stages", 3)
        flags = [part for text in settings for part in ("--set", text)]
        return ["train", "spectrum", source, "--out", out, *base, *QUICK, *flags, *more]

    return arguments


def make_spectrum(path: Path, width: int = 32, backbone: str = "bestiary-demo") -> Path:
    rows = torch.randn(10, 1, width, generator=torch.Generator().manual_seed(0))
    neutral = {"clip_l": torch.zeros(1, width)}
    save_spectrum(PromptSpectrum(backbone, {"clip_l": rows}, StageBounds.equal(10), neutral=neutral), path)
    return path


@pytest.fixture
def corgi(tmp_path: Path) -> Path:
    return make_spectrum(tmp_path / "corgi.safetensors")


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prospect", "xti", "neti", "textual-inversion"])
@pytest.mark.parametrize("modern", [True, False])
def test_pickles_with_a_program_are_refused_and_run_nothing(fault, bomb, tmp_path, kind, modern) -> None:
    mark, path, out = tmp_path / "was-run", tmp_path / "embeddings.pt", tmp_path / "out.safetensors"
    content = {"attention": bomb(mark), "initial_embeddings": torch.zeros(1, 768), "state_dict": bomb(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=modern)
    line = fault("import", kind, path, "--out", out)
    assert "asks for " in line and "open" in line and str(path) in line
    path.write_bytes(pickle.dumps(bomb(mark)))
    fault("import", kind, path, "--out", out)
    assert not mark.exists() and not out.exists()


def test_files_of_another_width(fault, corgi, tmp_path, tiny_folder) -> None:
    base = ("--base", tiny_folder("bestiary-demo"), "--out", tmp_path / "new", "--steps", 1, *QUICK)
    wide = make_spectrum(tmp_path / "wide.safetensors", 48)
    assert "{'clip_l': 48}" in fault("compose", wide, "a <wide>", *base)
    other = make_spectrum(tmp_path / "other.safetensors", 768, "sd15")
    told = "was trained for sd15, but the base model is bestiary-demo"
    assert told in fault("compose", other, "a <other>", *base)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    images = ("--images", tmp_path / "a.png", "--base", tiny_folder("bestiary-demo"), *QUICK)
    assert told in fault("evaluate", "spectrum", other, *images, "--out", tmp_path / "new")
    save_file({"emb_params": torch.ones(1, 5)}, tmp_path / "five.safetensors")
    line = fault("import", "textual-inversion", tmp_path / "five.safetensors", "--out", tmp_path / "new")
    assert "holds vectors of width 5, which no supported text encoder takes alone: " in line and "768 (sd15)" in line
    assert not list(tmp_path.glob("new/*.png")) and not (tmp_path / "new" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([1000, 500, 500, 0], "stage edges (1000, 500, 500, 0) must decrease strictly"),
        ([1000, 400, 600, 0], "stage edges (1000, 400, 600, 0) must decrease strictly"),
        ([1000, 600, 300, 100], "must decrease strictly"),
        ([], "edges is [], expected a list of 2 to 251 entries"),
        ([1000, 500, 0], "is a tensor of float32 [3, 1, 32], expected floats (2, V, W)"),
    ],
    ids=["empty", "overlapping", "ending early", "none", "one missing"],
)
def test_files_whose_stages_overlap_or_are_missing(fault, tmp_path, edges, message) -> None:
    path = tmp_path / "broken.safetensors"
    tensors = {"clip_l": torch.zeros(1, 32), "prospect.clip_l": torch.zeros(3, 1, 32)}
    write_concept_file(path, tensors, {"kind": SPECTRUM_KIND, "backbone": "bestiary-demo", "edges": edges})
    for command in (["compose", path, "a <broken>"], ["export", path, "--out", tmp_path / "out"]):
        line = fault(*command)
        assert message in line and str(path) in line
    assert not (tmp_path / "out").exists()


# --- what is typed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a <corgy>"], "prompt, column 3: unknown spectrum 'corgy': choose 'corgi'"),
        (["a <corgi@0-3>"], "column 3: stage '0-3' does not exist: there are stages 1 to 10"),
        (["a <corgi@mood>"], "column 3: unknown stages 'mood': choose 'layout'"),
        (["a bird", "--stage-text", "1-3: a", "--stage-text", "3: b"], "stages 3 are claimed by line 1 and by line 2"),
        (["a bird", "--stage-text", "12: a"], "line 1: stage '12' does not exist: there are stages 1 to 10"),
        (["a bird", "--stage-text", "a meadow"], "line 1, 'a meadow': write stages, a colon and a text"),
        (["a <mix>", "--mix", "layout=corgi", "--mix", "layout=corgi"], "--mix sets 'layout' twice"),
        (["a <mix>", "--mix", "mood=corgi"], "mood"),
        (["a <mix>", "--mix", "layout=corgy"], "layout: no spectrum is named 'corgy': choose 'corgi'"),
        (["a <mix>"], "unknown spectrum 'mix': choose 'corgi'"),
    ],
)
def test_prompts_and_stages_that_cannot_be(fault, corgi, tmp_path, tiny_folder, arguments, message) -> None:
    base = ("--base", tiny_folder("bestiary-demo"), "--out", tmp_path / "new", "--steps", 1, *QUICK)
    assert message in fault("compose", corgi, *arguments, *base)
    assert not list(tmp_path.glob("new/*"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("layout: 0%-10%\nlayout: 20%-30%", "line 2 of the presets, 'layout: 20%-30%': write one attribute per line"),
        ("layout: 50%-10%", "write a range with start before end"),
        ("layout", "line 1 of the presets, 'layout': write one attribute per line"),
        ("# nothing", "the presets contain no attribute"),
    ],
)
def test_presets_that_cannot_be(fault, corgi, tmp_path, tiny_folder, lines, message) -> None:
    path = tmp_path / "presets.txt"
    path.write_text(lines)
    line = fault("compose", corgi, "a <corgi>", "--presets", path, "--base", tiny_folder("bestiary-demo"), *QUICK)
    assert message in line and str(path) in line


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no picture and no folder"),
        ("empty folder", "no picture to learn from in"),
        ("text", "it is not a picture, or its format is not supported here"),
        ("cut short", "it is truncated"),
        ("only broken", "files left out: 1, first a.png"),
    ],
)
def test_pictures_that_give_nothing_to_learn(fault, train, picture, tmp_path, kind, message) -> None:
    source = tmp_path / "source"
    if kind in ("empty folder", "only broken"):
        source.mkdir()
    broken = {"text": b"no picture", "cut short": picture.read_bytes()[:200]}
    if kind == "only broken":
        (source / "a.png").write_bytes(b"no picture")
    elif kind in broken:
        source = source.with_suffix(".png")
        source.write_bytes(broken[kind])
    for command in (train(source, tmp_path / "run"), train(source, tmp_path / "run", "--check")):
        line = fault(*command)
        assert message in line and str(source) in line
    assert not (tmp_path / "run").exists() and not (tmp_path / "latents").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--set", "method.boundaries=[0.6, 0.3]"),
            "method.boundaries = [0.6, 0.3]: stage edges (1000, 400, 700, 0) must decrease strictly",
        ),
        (("--set", "method.boundaries=[0.5, 0.5]"), "two stages overlap, one is empty"),
        (("--set", "captions.templates=['a photo']"), "each template needs {} exactly once"),
        (("--recipe", "sd15_8gb"), "lora: no such key"),
        (("--recipe", "spectrum_sd3"), "no recipe 'spectrum_sd3': give a TOML file or a shipped recipe"),
        (("--stages", 0), "method.stages = 0"),
        (("--name", "a/b"), "run.name = 'a/b'"),
    ],
)
def test_settings_that_cannot_be(fault, train, picture, tmp_path, more, message) -> None:
    assert message in fault(*train(picture, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


# --- places that take nothing, and runs that are cut off -------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC], ids=["read-only", "full"])
@pytest.mark.parametrize("name", ["train", "export", "import", "evaluate"])
def test_places_that_take_nothing(
    fault, train, corgi, picture, tmp_path, tiny_folder, monkeypatch, snapshot, spoil_writes, name, number
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "earlier.txt").write_text("mine")
    save_file({"emb_params": torch.ones(1, 768)}, tmp_path / "cat.safetensors")
    judged = ("--images", picture, "--base", tiny_folder("bestiary-demo"), "--count", 1, *QUICK)
    command = {
        "train": train(picture, place / "run"),
        "export": ["export", corgi, "--out", place],
        "import": ["import", "textual-inversion", tmp_path / "cat.safetensors", "--out", place / "cat.safetensors"],
        "evaluate": ["evaluate", "spectrum", corgi, *judged, "--out", place],
    }[name]
    with monkeypatch.context() as patch:
        spoil_writes(patch, place, number)
        line = fault(*command)
    assert os.strerror(number) in line and str(place) in line
    after = snapshot(place)
    assert after["earlier.txt"] == b"mine"
    assert [path for path in after if ".part" in Path(path).suffix or path.endswith((".safetensors", ".json"))] == []
    # with room again the same command goes through
    assert main([str(argument) for argument in command]) == 0


def _curve(run: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records]


def _learned(run: Path) -> dict[str, torch.Tensor]:
    return {n: t for n, t in load_file(sorted((run / "state").iterdir())[-1]).items() if not n.startswith("random.")}


@pytest.mark.train
@pytest.mark.parametrize("parameterisation", ["direct", pytest.param("reference", marks=pytest.mark.slow)])
def test_a_killed_training_goes_on_bit_for_bit(train, picture, tmp_path, parameterisation) -> None:
    more = ("--set", f"method.parameterisation={parameterisation}")
    command = [str(argument) for argument in train(picture, tmp_path / "killed", *more)]
    program = f"""
        import importlib.util, os, signal, sys
        spec = importlib.util.spec_from_file_location("conftest", {str(ROOT / "tests" / "conftest.py")!r})
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        import bestiary.trainer.training.train as training
        fit = training.fit
        def killed(*arguments, **options):
            options["on_progress"] = lambda done, total: done == 3 and os.kill(os.getpid(), signal.SIGKILL)
            return fit(*arguments, **options)
        training.fit = killed
        from bestiary.trainer.__main__ import main
        main({command!r})
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, env=environment
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert [path.name for path in (tmp_path / "killed" / "state").iterdir()] == ["step-0000002.safetensors"]
    assert not (tmp_path / "killed" / "spectrum.safetensors").exists()
    assert main(["resume", str(tmp_path / "killed"), "--progress", "off"]) == 0
    assert main([str(argument) for argument in train(picture, tmp_path / "whole", *more)]) == 0
    assert _curve(tmp_path / "killed") == _curve(tmp_path / "whole")
    ours, theirs = _learned(tmp_path / "killed"), _learned(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    first, second = (load_spectrum(tmp_path / run / "spectrum.safetensors") for run in ("killed", "whole"))
    assert torch.equal(first.matrix(), second.matrix())


def test_a_run_whose_newest_state_was_cut_goes_on_from_the_one_before(train, picture, tmp_path) -> None:
    run = tmp_path / "run"
    assert main([str(argument) for argument in train(picture, run)]) == 0
    whole = load_spectrum(run / "spectrum.safetensors").matrix()
    (run / "spectrum.safetensors").unlink()
    newest = sorted((run / "state").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    assert main(["resume", str(run), "--progress", "off"]) == 0
    assert torch.equal(load_spectrum(run / "spectrum.safetensors").matrix(), whole)
