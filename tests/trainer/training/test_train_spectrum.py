"""Spectrum training on narrow models: what learns, what is encoded, what is written, how it stops and goes on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.spectrum_file import load_spectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.trainer.learning.run.fit import TrainingStopped
from bestiary.trainer.learning.run.recipe_file import format_toml
from bestiary.trainer.learning.run.run_folder import RunFolder
from bestiary.trainer.learning.spectrum.spectrum_objective_setup import build_spectrum, word_start
from bestiary.trainer.learning.spectrum.spectrum_settings import TrainSpectrumSettings, load_spectrum_recipe
from bestiary.trainer.training.tasks import resume_training
from bestiary.trainer.training.train_spectrum import SpectrumTask, train_spectrum
from bestiary.trainer.training.training_setup import prepare
from PIL import Image


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures of 80 x 64."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def _settings(base: Path, source: Path, out: Path, **changes: object) -> TrainSpectrumSettings:
    values: dict[str, object] = {
        "images.source": source, "images.size": 64, "base.path": str(base), "run.out": out, "run.device": "cpu",
        "run.dtype": "fp32", "run.preview_every": 0, "run.estimate_memory": False, "run.tensorboard": False,
        "optimizer.steps": 4, "optimizer.batch_size": 5, "method.initial_words": "red bird", "run.log_every": 1,
    }  # fmt: skip
    return load_spectrum_recipe(None, values | changes)


@pytest.mark.parametrize("backbone", ["sd15", "sd2", "sdxl", "bestiary-demo"])
def test_every_backbone_trains_and_gives_a_small_file(
    tiny_folder: Callable, pictures: Path, tmp_path: Path, backbone: str
) -> None:
    trained = train_spectrum(_settings(tiny_folder(backbone), pictures, tmp_path / "run"))
    spectrum = load_spectrum(trained.path)
    assert (spectrum.backbone, spectrum.stages, spectrum.initial_words) == (backbone, 10, "red bird")
    assert trained.path.stat().st_size <= 100_000
    assert spectrum.provenance["steps"] == 4 and spectrum.provenance["pictures"] == ["0.png", "1.png", "2.png"]
    # every stage has moved away from the start, none of them out of its norm
    start = spectrum.neutral_matrix()
    assert all(not torch.allclose(spectrum.matrix()[s], start) for s in range(10))
    for name, tensor in spectrum.embeddings.items():
        assert tensor.shape == (10, 1, spectrum.neutral[name].shape[-1])
    assert torch.allclose(spectrum.matrix().norm(dim=-1), start.norm(), rtol=1e-4)
    assert {path.name for path in trained.exports} >= {"spectrum.safetensors", "spectrum-stage-01.safetensors"}
    lines = [json.loads(line) for line in (trained.run.path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and len(lines[0]["stage_loss"]) == 10
    labels = json.loads((trained.run.path / "curve_labels.json").read_text())
    assert labels["stage_loss"][0] == "stage 1" and len(labels["stage_loss"]) == 10


def _setup(base: Path, pictures: Path, tmp_path: Path, **changes: object) -> object:
    return prepare(SpectrumTask(_settings(base, pictures, tmp_path / "run", **changes)))


def test_stages_are_served_equally_often(tiny_folder: Callable, pictures: Path, tmp_path: Path) -> None:
    setup = _setup(tiny_folder("sd15"), pictures, tmp_path, **{"optimizer.batch_size": 3, "optimizer.accumulation": 2})
    drawn = [setup.batches.draw(step, micro) for step in range(10) for micro in range(2)]
    stages = [stage for batch in drawn for stage in batch.stages]
    assert np.bincount(stages).tolist() == [6] * 10
    bounds = StageBounds.equal(10)
    for batch in drawn:
        assert bounds.stage_at(batch.times).tolist() == list(batch.stages)


def test_batches_depend_on_nothing_but_their_step(tiny_folder: Callable, pictures: Path, tmp_path: Path) -> None:
    setup = _setup(tiny_folder("sd15"), pictures, tmp_path)
    first, again = setup.batches.draw(7, 0), setup.batches.draw(7, 0)
    assert torch.equal(first.noise, again.noise) and first.stages == again.stages and first.names == again.names
    assert not torch.equal(first.noise, setup.batches.draw(8, 0).noise)


def test_the_loss_of_a_stage_reaches_only_its_vectors(tiny_folder: Callable, pictures: Path, tmp_path: Path) -> None:
    setup = _setup(tiny_folder("sd15"), pictures, tmp_path, **{"optimizer.batch_size": 2})
    batch = setup.batches.draw(0, 0)
    setup.objective(batch).total.backward()
    rows = setup.objective.table.rows
    assert {stage for stage, row in enumerate(rows) if row.grad is not None} == set(batch.stages)
    assert all(rows[stage].grad.abs().max() > 0 for stage in batch.stages)
    assert not any(p.grad is not None for p in setup.denoiser.unet.parameters())


def test_encodes_of_a_step_are_its_distinct_stages(
    tiny_folder: Callable, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = _setup(tiny_folder("sd15"), pictures, tmp_path, **{"method.stages": 3, "optimizer.batch_size": 4})
    encode, counts = setup.denoiser.text.encode, []
    monkeypatch.setattr(setup.denoiser.text, "encode", lambda p, v: counts.append(len(p)) or encode(p, v))
    batch = setup.batches.draw(0, 0)
    setup.objective(batch)
    assert counts == [len(set(batch.stages))] == [3]


@torch.no_grad()
def test_the_gradient_of_a_stage_is_the_slope_of_its_loss_alone(
    tiny_folder: Callable, pictures: Path, tmp_path: Path
) -> None:
    setup = _setup(tiny_folder("sd15"), pictures / "0.png", tmp_path, **{"method.stages": 2, "method.norm": "free"})
    # random weights make a rough landscape: steps must be small, and rounding smaller still
    setup.denoiser.unet.double()
    for model in setup.denoiser.text.models.values():
        model.double()
    batch, rows = setup.batches.draw(0, 0), setup.objective.table.rows
    with torch.enable_grad():
        setup.objective(batch).total.backward()

    def losses_after(stage: int, step: float) -> torch.Tensor:
        row, before = rows[stage], rows[stage].clone()
        row += step * row.grad / row.grad.norm()
        losses = setup.objective(batch).curves["stage_loss"].nanmean(0).double()  # (2,)
        row.copy_(before)
        return losses

    for stage, row in enumerate(rows):
        lower, higher = losses_after(stage, -1e-4), losses_after(stage, 1e-4)
        # the batch's mean holds each stage by its share of pictures
        slope = row.grad.norm() * len(batch.stages) / batch.stages.count(stage)
        assert float(higher[stage] - lower[stage]) == pytest.approx(2e-4 * float(slope), rel=0.25)
        assert lower[stage] < higher[stage] and lower[1 - stage] == higher[1 - stage]


def test_halves_of_a_batch_average_to_the_whole(tiny_folder: Callable, pictures: Path, tmp_path: Path) -> None:
    setup = _setup(tiny_folder("sd15"), pictures, tmp_path, **{"optimizer.batch_size": 4})
    whole = setup.batches.draw(0, 0)
    parts = []
    for rows in (slice(0, 2), slice(2, 4)):
        cut = {
            n: getattr(whole, n)[rows]
            for n in ("names", "moments", "noise", "times", "stages", "templates", "prompts", "sizes")
        }
        parts.append(setup.objective(replace(whole, **cut)).total)
    assert torch.allclose(sum(parts) / 2, setup.objective(whole).total, atol=1e-6)


def test_masks_leave_the_surroundings_out(tiny_folder: Callable, pictures: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for number in range(3):
        Image.new("L", (80, 64), 255).save(masks / f"{number}.png")
    plain = _setup(tiny_folder("sd15"), pictures, tmp_path)
    white = _setup(tiny_folder("sd15"), pictures, tmp_path, **{"images.masks": masks})
    # a mask that is white all over is no mask
    losses = [setup.objective(setup.batches.draw(0, 0)).total for setup in (plain, white)]
    assert torch.allclose(*losses, atol=1e-6)
    Image.new("L", (80, 64), 0).save(masks / "1.png")
    with pytest.raises(BestiaryError, match=r"the mask .*1.png is black all over"):
        _setup(tiny_folder("sd15"), pictures, tmp_path, **{"images.masks": masks})
    (masks / "1.png").unlink()
    with pytest.raises(BestiaryError, match="no mask for 1.png in"):
        _setup(tiny_folder("sd15"), pictures, tmp_path, **{"images.masks": masks})


def test_the_reference_parameterisation_trains_too(tiny_folder: Callable, pictures: Path, tmp_path: Path) -> None:
    changes = {"method.parameterisation": "reference", "method.initial_words": "bird", "optimizer.network_lr": 1e-3}
    trained = train_spectrum(_settings(tiny_folder("sd15"), pictures, tmp_path / "run", **changes))
    spectrum = load_spectrum(trained.path)
    assert spectrum.matrix().shape == (10, 1, 32) and spectrum.provenance["parameterisation"] == "reference"


def test_it_starts_at_whole_words(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    start = word_start(denoiser, "head", 2)["clip_l"]
    assert start.shape == (2, 32)
    # "head" is one token here; the reference takes the first letter of a word for it
    assert torch.equal(start[0], denoiser.text.word_vectors("head")["clip_l"][0].cpu())
    assert not torch.allclose(start[0], denoiser.text.word_vectors("h")["clip_l"][0].cpu())
    rows = denoiser.text.word_vectors("red bird")["clip_l"].cpu()
    assert torch.allclose(word_start(denoiser, "red bird", 1)["clip_l"].norm(), rows.norm(dim=-1).mean())
    with pytest.raises(BestiaryError, match="holds no word"):
        word_start(denoiser, " ", 1)


def test_a_stopped_run_goes_on_bit_for_bit(
    tiny_folder: Callable, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_spectrum(_settings(tiny_folder("sd15"), pictures, tmp_path / "whole", **{"optimizer.steps": 6}))
    import bestiary.trainer.training.train as module

    fit = module.fit
    with monkeypatch.context() as patch:
        steps: list[int] = []
        patch.setattr(
            module, "fit", lambda *a, **k: fit(*a, **{**k, "should_stop": lambda: len(steps) >= 3, "on_progress": lambda d, _: steps.append(d)})
        )  # fmt: skip
        with pytest.raises(TrainingStopped):
            train_spectrum(_settings(tiny_folder("sd15"), pictures, tmp_path / "cut", **{"optimizer.steps": 6}))
    assert not (tmp_path / "cut" / "spectrum.safetensors").exists()
    assert RunFolder.open(tmp_path / "cut").kind == "spectrum"
    resumed = resume_training(tmp_path / "cut")
    ours, theirs = load_spectrum(resumed.path), load_spectrum(whole.path)
    assert torch.equal(ours.matrix(), theirs.matrix())


def test_previews_show_the_whole_and_every_stage(tiny_folder: Callable, pictures: Path, tmp_path: Path) -> None:
    changes = {"run.preview_every": 2, "run.preview_steps": 1, "run.preview_count": 1, "optimizer.steps": 2}
    trained = train_spectrum(
        _settings(tiny_folder("bestiary-demo"), pictures, tmp_path / "run", **{**changes, "method.stages": 3})
    )
    sheets = sorted(path.name for path in trained.run.samples.iterdir())
    assert sheets == ["step-0000000.png", "step-0000002.png"]
    # one real picture, one of all stages, three of one stage alone: a row of five
    assert Image.open(trained.run.samples / sheets[0]).width > 5 * 150


def test_what_the_doctor_says(tiny_folder: Callable, pictures: Path, tmp_path: Path) -> None:
    from bestiary.trainer.training.doctor import examine

    (pictures / "broken.png").write_bytes(b"no picture")
    lines = "\n".join(
        examine(
            SpectrumTask(_settings(tiny_folder("sd15"), pictures, tmp_path / "run", **{"run.estimate_memory": True}))
        )
    )
    assert "pictures: 3 in" in lines and "1 files left out" in lines
    assert "stages: 10 with 1 vectors each, 320 learned numbers, start from red bird" in lines
    assert "work: 4 steps of 5 pictures, 2.0 pictures for every stage" in lines
    assert "memory: about" in lines and "first forward pass: loss" in lines
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["nothing", "text", "empty", "only broken", "broken one"])
def test_material_that_gives_no_picture(tiny_folder: Callable, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "material"
    messages = {
        "nothing": "no picture and no folder",
        "text": "is not a picture file by its name",
        "empty": r"no picture to learn from in .*\(it holds none\); one readable picture is enough",
        "only broken": r"no picture to learn from in .*files left out: 1, first a.png",
        "broken one": "a.png: ",
    }
    if kind == "text":
        source = tmp_path / "a.txt"
        source.write_text("x")
    elif kind in ("empty", "only broken"):
        source.mkdir()
        if kind == "only broken":
            (source / "a.png").write_bytes(b"x")
    elif kind == "broken one":
        source = tmp_path / "a.png"
        source.write_bytes(b"x")
    with pytest.raises(BestiaryError, match=messages[kind]):
        train_spectrum(_settings(tiny_folder("sd15"), source, tmp_path / "run"))
    assert not (tmp_path / "run").exists()  # nothing was begun


def test_odd_pictures_are_taken_as_they_are_meant(tiny_folder: Callable, pictures: Path, tmp_path: Path) -> None:
    turned = Image.open(pictures / "0.png").copy()
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(pictures / "turned.jpg", exif=exif)
    Image.new("RGBA", (70, 90), (255, 0, 0, 0)).save(pictures / "clear.png")
    (pictures / "notes.txt").write_text("no picture")
    setup = _setup(tiny_folder("sd15"), pictures, tmp_path)
    assert set(setup.pictures.names) == {"0.png", "1.png", "2.png", "turned.jpg", "clear.png"}
    assert not setup.settings.images.flip and setup.spec.views == 1


def test_settings_read_back_and_tell_their_faults(tmp_path: Path) -> None:
    settings = load_spectrum_recipe(None, {"method.boundaries": [0.1, 0.5], "captions.templates": ["a {}", "{} here"]})
    (tmp_path / "r.toml").write_text(format_toml(settings))
    assert load_spectrum_recipe(tmp_path / "r.toml") == settings
    assert settings.method.bounds(1000).edges == (1000, 900, 500, 0)
    for override, message in (
        ({"method.boundaries": [0.5, 0.2]}, "stage edges"),
        ({"method.boundaries": [1.5]}, "stage boundary 1.5 is out of range"),
        ({"method.stages": 0}, "method.stages = 0"),
        ({"captions.templates": ["no place"]}, "each template needs {} exactly once"),
        ({"captions.templates": []}, "got none at all"),
        ({"optimizer.vector_lr": 0}, "optimizer.vector_lr is 0: nothing would be learned"),
        ({"optimizer.warmup": 900}, "optimizer.warmup 900 must be below"),
        ({"optimizer.betas": [0.9, 1.0]}, "each beta must be from 0 to below 1"),
        ({"method.parameterisation": "reference", "method.vectors": 2}, "has one vector per stage, not 2"),
        ({"run.name": "../x"}, "run.name"),
        ({"images.sorce": "x"}, "did you mean 'source'"),
    ):
        with pytest.raises(BestiaryError) as raised:
            load_spectrum_recipe(None, override)
        assert message in str(raised.value)


def test_pictures_that_go_missing_before_a_resume(tiny_folder: Callable, pictures: Path, tmp_path: Path) -> None:
    trained = train_spectrum(_settings(tiny_folder("sd15"), pictures, tmp_path / "run", **{"optimizer.steps": 1}))
    shutil.rmtree(pictures)
    with pytest.raises(BestiaryError, match="no picture and no folder"):
        resume_training(trained.run.path)


def test_weights_that_are_not_finite_are_never_written(tiny_folder: Callable, pictures: Path, tmp_path: Path) -> None:
    setup = _setup(tiny_folder("sd15"), pictures, tmp_path)
    with torch.no_grad():
        setup.objective.table.rows[4].fill_(float("nan"))
    with pytest.raises(BestiaryError, match="hold values that are not finite"):
        build_spectrum(setup.training, 1)
