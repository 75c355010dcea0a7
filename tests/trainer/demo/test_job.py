"""The demo on a tiny model: every stage leaves its files, a stop costs one stage, the page and the figures are whole."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.demo.attribute_judge import AttributeJudge
from bestiary.trainer.__main__ import main
from bestiary.trainer.composing.picture_making import SamplingChoice
from bestiary.trainer.demo import job as demo_job
from bestiary.trainer.demo import judging as demo_judging
from bestiary.trainer.demo.job import STAGES, DemoSettings, run_demo
from bestiary.trainer.demo.pictures import read_composed
from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.learning.run.run_folder import RunFolder
from bestiary.trainer.model import backbones

SETTINGS = DemoSettings(seed=1, pictures=16, kinds=3, steps=2, judged=4, device="cpu", dtype="fp32", progress="off")

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def tiny_world(tiny_folder):
    """The embedded model and judge replaced by tiny random ones, and two sampling steps."""
    patch = pytest.MonkeyPatch()
    folder = tiny_folder("bestiary-demo")
    patch.setattr(backbones, "demo_model_path", lambda name="demo": folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = AttributeJudge().eval()
    patch.setattr(demo_judging.AttributeJudge, "load", classmethod(lambda cls: judge))
    for module in (demo_judging, demo_job.demo_pictures):
        patch.setattr(module, "CHOICE", SamplingChoice(steps=1, guidance=1.0))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def finished(tiny_world, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, run_demo(out, SETTINGS)


def test_metrics_hold_everything_promised(finished):
    out, result = finished
    metrics = json.loads(result.metrics.read_text())
    assert 0 <= metrics["discovery"]["foreground_iou"] <= 1
    assert 0 <= metrics["discovery"]["part_miou"] <= 1
    for test in ("reconstruction", "mix4"):
        assert 0 <= metrics[test]["emr"] <= 1
        assert -1 <= metrics[test]["cosim"] <= 1
        assert metrics[test]["judge"]["parts"] > 0
    assert metrics["ceiling"]["real"]["emr"] == 1
    assert metrics["seconds"]["total"] >= metrics["seconds"]["train"] > 0
    assert metrics["seconds"].keys() == {*STAGES, "page", "total"}


def test_page_is_whole_and_pictures_come_first(finished):
    text = finished[1].page.read_text(encoding="utf-8")
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings[0] == "Creatures composed of four sources" and "How faithful are the pictures?" in headings
    assert text.index('class="recipe') < text.index("<table>")
    assert not re.search(r'src="(?!data:)', text)


def test_composed_pictures_say_what_they_are(finished):
    out, _ = finished
    pictures = read_composed(out)
    assert {picture.group for picture in pictures} == {"mix", "blend", "scene"}
    for picture in pictures:
        assert (out / "composed" / picture.file).is_file()
        assert picture.prompt.startswith("a photo of a <")
    assert any("*0.5+" in picture.prompt for picture in pictures)
    assert all((out / "composed" / file).is_file() for picture in pictures for file in picture.attention)


def test_method_never_sees_the_truth(finished, tiny_world, tmp_path):
    """With masks and species deleted, the stages before the judge give the same dictionary and the same pictures."""
    job = demo_job.DemoJob(tmp_path / "blind", SETTINGS)
    job.draw()
    shutil.rmtree(job.out / "truth")
    for stage in ("discover", "train", "compose"):
        getattr(job, stage)()
    ours, theirs = (PartDictionary.load(folder / "creatures.safetensors") for folder in (job.out, finished[0]))
    assert torch.equal(ours.rows, theirs.rows)
    torch.testing.assert_close(ours.matrix(), theirs.matrix())
    assert read_composed(job.out) == read_composed(finished[0])


def test_finished_demo_is_not_done_again(finished, tiny_world, monkeypatch):
    out, _ = finished
    monkeypatch.setattr(demo_job.DemoJob, "train", lambda self: pytest.fail("trained again"))
    before = json.loads((out / "metrics.json").read_text())["reconstruction"]
    run_demo(out, SETTINGS)
    assert json.loads((out / "metrics.json").read_text())["reconstruction"] == before


def test_stopped_demo_goes_on_where_it_was(finished, tiny_world, tmp_path, monkeypatch):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    record = json.loads((out / "stages.json").read_text())
    for stage in ("compose", "judge"):
        del record["seconds"][stage]
    (out / "stages.json").write_text(json.dumps(record))
    shutil.rmtree(out / "composed")
    done = []
    monkeypatch.setattr(
        demo_job.DemoJob,
        "compose",
        lambda self: done.append("compose") or shutil.copytree(finished[0] / "composed", out / "composed"),
    )
    monkeypatch.setattr(demo_job.DemoJob, "judge", lambda self: done.append("judge"))
    monkeypatch.setattr(demo_job.DemoJob, "train", lambda self: pytest.fail("trained again"))
    run_demo(out, SETTINGS)
    assert done == ["compose", "judge"]
    assert json.loads((out / "stages.json").read_text())["seconds"].keys() == set(STAGES)


def test_folder_of_another_demo_is_refused(finished):
    with pytest.raises(
        BestiaryError,
        match="contains a demo with --seed 1: use these values to continue it, or give --out another folder",
    ):
        run_demo(finished[0], SETTINGS.model_copy(update={"seed": 2}))


def test_folder_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "letters.txt").touch()
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "contains files that are not from a demo" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["letters.txt"]


def test_damaged_record_is_told(tmp_path):
    (tmp_path / "stages.json").write_text("{")
    with pytest.raises(BestiaryError, match=r"stages\.json is damaged: give --out another folder"):
        run_demo(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("option", "value"), [("--pictures", "3"), ("--steps", "0"), ("--judged", "1"), ("--seed", "-1")]
)
def test_values_out_of_range_name_the_option(option, value, tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "new"), option, value]) == 2
    error = capsys.readouterr().err
    assert option in error and value in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("left", ["state", "config"])
def test_a_fault_of_a_started_training_deletes_nothing(tiny_world, tmp_path, monkeypatch, left):
    """A full disk, say: what the training has is there at the next start, and is gone on with."""
    job = demo_job.DemoJob(tmp_path / "out", SETTINGS)
    run = RunFolder.create(job.out / "training")
    run.write_config("[run]\n")
    if left == "state":
        run.save_state(1, {"w": torch.ones(2)}, {}, keep=2)
    (run.path / "log.jsonl").write_text('{"step": 1}\n')
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}

    def full(folder, **_options):
        assert folder == run.path
        raise BestiaryError("could not write: No space left on device")

    monkeypatch.setattr(demo_job, "resume_training", full)
    monkeypatch.setattr(demo_job, "train_parts", lambda *_given, **_options: pytest.fail("trained anew"))
    with pytest.raises(BestiaryError, match="No space left"):
        job.train()
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_the_base_model_is_trained_on_and_a_transformer_learns_the_parts_that_the_unet_finds(tmp_path, monkeypatch):
    asked = {}
    models = {
        base: SimpleNamespace(backbone=SimpleNamespace(name=name))
        for base, name in (("demo", "bestiary-demo"), ("demo-dit", "bestiary-demo-dit"))
    }
    monkeypatch.setattr(demo_job, "load_denoiser", lambda base, **_: models[base])
    monkeypatch.setattr(
        demo_job, "discover", lambda settings, _, denoiser: asked.update(discovered=settings.base, model=denoiser)
    )
    monkeypatch.setattr(demo_job, "train_parts", lambda recipe, **_: asked.update(recipe=recipe) or Trained(tmp_path))
    job = demo_job.DemoJob(tmp_path, SETTINGS.model_copy(update={"base": "demo-dit"}))
    job.discover()
    job.train()
    assert (asked["discovered"], asked["recipe"].base.path) == ("demo", "demo-dit")
    assert asked["model"] is models["demo"]
    assert asked["recipe"] == load_recipe("demo_dit", {
        "discovery.folder": tmp_path / "discovery", "run.out": tmp_path / "training", "run.seed": 1, "run.device": "cpu",
        "run.dtype": "fp32", "optimizer.steps": 2, "optimizer.warmup": 0,
    })  # fmt: skip


class Trained:
    """A training that left a file."""

    def __init__(self, folder):
        self.path = folder / "creatures.bin"
        self.path.touch()


def test_a_demo_of_an_earlier_version_goes_on_and_another_base_is_refused(tmp_path):
    record = {"settings": SETTINGS.model_dump(include={"seed", "pictures", "kinds", "steps", "judged"}), "seconds": {}}
    (tmp_path / "stages.json").write_text(json.dumps(record))
    assert demo_job._read_record(tmp_path, SETTINGS) == {}
    with pytest.raises(BestiaryError, match="contains a demo with --base demo: use these values"):
        demo_job._read_record(tmp_path, SETTINGS.model_copy(update={"base": "demo-dit"}))
