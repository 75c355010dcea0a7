"""Part training on single pictures and scenes: what each scene shows, its captions and masks, shares, previews, resume, bad sets."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_prompt.part_captions import CaptionStyle
from bestiary.scenes.collage import NO_PART, compose
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.scenes.scene_set import SceneEntry, SceneSet
from bestiary.scenes.subject import PictureSource, Subject
from bestiary.trainer.learning.discovery.discovery_folder import Discovery
from bestiary.trainer.learning.parts.concept_images import ConceptImages
from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.learning.run.run_folder import RunFolder
from bestiary.trainer.training.previews import Previews
from bestiary.trainer.training.resume import tell_changed_pictures
from bestiary.trainer.training.tasks import resume_training
from bestiary.trainer.training.train_parts import PartTask, train_parts
from bestiary.trainer.training.training_setup import TrainingSetup, prepare
from PIL import Image

PAIRS = ((0, 4), (5, 3), (4, 1))
"""Pictures of the discovery that stand left and right in each scene."""


def write_set(folder: Path, found: Path, *, parts: bool = True, words: str = "", moved: bool = False) -> Path:
    """Scenes of 128 x 64: two pictures of a discovery side by side, without their background."""
    discovery = Discovery.load(found)
    scenes = SceneSet(folder)
    for number, pair in enumerate(PAIRS):
        subjects = []
        for place, row in enumerate(pair):
            path = discovery.image_paths[row]
            labels = np.kron(discovery.maps.labels[row].numpy(), np.ones((8, 8), np.uint8))  # (64, 64)
            kept = np.where(labels == 2, NO_PART, labels).astype(np.uint8)
            pixels = np.dstack([np.asarray(Image.open(path)), np.where(kept == NO_PART, 1, 255).astype(np.uint8)])
            source = PictureSource("" if words or moved else path.as_posix(), "")
            if moved:
                source = PictureSource("elsewhere.png", hashlib.sha256(path.read_bytes()).hexdigest())
            known = kept if parts else None
            subjects.append(Subject(f"bird {place}", pixels, words or "bird", parts=known, source=source))
        layout = SceneLayout(
            128, 64, tuple(Placement(one.name, 64 * place, 0, 64, 64) for place, one in enumerate(subjects))
        )
        scene = compose(subjects, layout, np.full((64, 128, 3), 90 + number, np.uint8))
        scenes.write(f"{number + 1:06d}", SceneEntry(scene, "a photo of two birds"), "key")
    scenes.finish()
    return folder


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, make_discovery: Callable[..., Path]) -> Path:
    return make_discovery(tmp_path_factory.mktemp("birds"))


@pytest.fixture(scope="module")
def pairs(found: Path) -> Path:
    return write_set(found.parent / "pairs", found)


@pytest.fixture(scope="module")
def flags(found: Path, pairs: Path, tiny_folder: Callable[[str], Path]) -> dict[str, object]:
    return {
        "discovery.folder": found, "base.path": str(tiny_folder("bestiary-demo")), "images.size": 64, "run.device": "cpu",
        "images.scenes": pairs, "run.dtype": "fp32", "run.preview_every": 0, "lora.rank": 2, "optimizer.batch_size": 2,
        "optimizer.accumulation": 2, "run.tensorboard": False, "run.estimate_memory": False, "run.preview_steps": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def setup(flags: dict[str, object]) -> TrainingSetup:
    return prepare(PartTask(load_recipe(None, {**flags, "run.preview_every": 1, "captions.noun": "bird"})))


def test_single_pictures_and_scenes_alternate(setup: TrainingSetup) -> None:
    single, scene = setup.batches.draw(0, 0), setup.batches.draw(0, 1)
    assert single.moments.shape[-2:] == (8, 8) and single.codes.shape == (2, 3) and single.masks.shape == (2, 3, 8, 8)
    assert scene.moments.shape[-2:] == (8, 16) and scene.codes.shape == (2, 6) and scene.masks.shape == (2, 6, 8, 16)
    assert all("pairs/images" in name for name in scene.names) and not any("pairs" in name for name in single.names)
    assert scene.sizes is not None and scene.sizes[0].tolist() == [64, 128, 0, 0, 64, 128]
    # every scene comes equally often, and the same batch whenever it is asked for
    seen = [name for step in range(3) for name in setup.batches.draw(step, 1).names]
    assert sorted(seen) == sorted(2 * list(setup.pictures.names[-3:]))
    assert torch.equal(setup.batches.draw(7, 1).noise, setup.batches.draw(7, 1).noise)


@pytest.mark.parametrize(("share", "scenes"), [(0.25, 2), (0.75, 6), (1.0, 8)])
def test_the_share_of_scenes_is_kept(setup: TrainingSetup, share: float, scenes: int) -> None:
    known = setup.batches
    plan = replace(known.plan, scene_share=share)
    batches = ConceptImages(known.names, known.buckets, setup.pictures.kinds, known._tokenize, CaptionStyle(), plan)
    drawn = [batches.draw(step, micro) for step in range(4) for micro in range(2)]
    assert sum(batch.codes.shape[1] == 6 for batch in drawn) == scenes


def test_each_subject_has_its_slot_with_the_kinds_of_its_picture(setup: TrainingSetup, found: Path) -> None:
    codes, labels = Discovery.load(found).maps.codes, Discovery.load(found).maps.labels
    rows = [row for row, name in enumerate(setup.pictures.names) if "pairs" in name]
    batch = setup.batches.fixed(rows, 0.25)
    for place, pair in enumerate(PAIRS):
        wanted = torch.cat([codes[row] for row in pair]).long()
        wanted[[2, 5]] = -1  # no background of theirs is in the scene
        assert torch.equal(batch.codes[place], wanted)
        for slot, row in enumerate(pair):
            for part in (0, 1):
                mask = batch.masks[place, 3 * slot + part, :, 8 * slot : 8 * slot + 8]
                assert torch.equal(mask, (labels[row] == part) & (codes[row, part] >= 0))


def test_a_caption_names_one_subject_after_the_other(setup: TrainingSetup) -> None:
    batch = setup.batches.draw(0, 1)
    for codes, prompt in zip(batch.codes, batch.prompts, strict=True):
        slots = prompt["clip_l"].slots
        assert torch.equal(slots >= 0, codes >= 0)
        first, second = (slots[start : start + 3][codes[start : start + 3] >= 0] for start in (0, 3))
        assert first.max() < second.min() or second.max() < first.min()
    one = setup.batches.draw(0, 0)
    report = setup.objective(batch)
    assert report.curves["part_attention_loss"].shape == (4, 3) and report.curves["attention_iou"].shape == (4, 3)
    assert setup.objective(one).curves["part_attention_loss"].shape == (2, 3)
    # both things of a scene teach the same rows
    setup.objective.zero_grad()
    report.total.backward()
    kinds = setup.objective.projector.num_kinds
    learned = setup.objective.projector.embedding.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
    shown = {
        (column % 3) * (kinds + 1) + int(kind) for row in batch.codes for column, kind in enumerate(row) if kind >= 0
    }
    assert set(learned) == shown


def test_previews_show_both_and_the_doctor_says_so(setup: TrainingSetup, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    Previews(setup, run).write(1, sampling_steps=1)
    attention = Image.open(run.samples / "step-0000001-attention.png")
    assert attention.height > 3 * 160 and attention.width > 4 * 160
    lines = "\n".join(setup.task.findings(setup))
    assert "scenes: 3 in " in lines and "up to 2 subjects each, in 50% of the batches" in lines
    assert "3 at 128 x 64 px" in lines and "8 x 8, 16 x 8" in lines
    assert setup.training.largest_batch().moments.shape[-1] == 16
    assert setup.origin.square(len(setup.pictures.names) - 1).size == (128, 64)


def test_a_stopped_training_ends_with_the_same_bits(flags: dict[str, object], tmp_path: Path) -> None:
    asked = {**flags, "optimizer.steps": 2, "optimizer.accumulation": 1, "run.save_every": 1, "run.keep_states": 9}
    whole = train_parts(load_recipe(None, {**asked, "run.out": tmp_path / "whole"}))
    cut = shutil.copytree(whole.run.path, tmp_path / "cut")
    (cut / whole.path.name).unlink()
    newest = max((cut / "state").iterdir())
    newest.unlink()
    again = resume_training(cut)
    assert again.path.read_bytes() == whole.path.read_bytes()
    record = json.loads((whole.run.path / "pictures.json").read_text())
    assert sum("pairs/images" in name for name in record) == 3
    assert not tell_changed_pictures(whole.run, Path(flags["discovery.folder"]).parent / "pictures", list(record))


def test_scenes_have_another_size_where_it_is_asked_for(flags: dict[str, object]) -> None:
    changed = prepare(PartTask(load_recipe(None, {**flags, "images.scene_size": "256x128"})))
    assert changed.batches.draw(0, 1).masks.shape[-2:] == (16, 32)
    wide = prepare(PartTask(load_recipe(None, {**flags, "images.scenes": None, "images.size": "128x64"})))
    batch = wide.batches.draw(0, 0)
    assert batch.moments.shape[-2:] == (8, 16) and batch.masks.shape[-2:] == (8, 16)
    # square pictures lose their upper and lower quarter: what is left has the labels of rows 2 to 5
    found = Discovery.load(Path(str(flags["discovery.folder"])))
    row = wide.pictures.names.index("0.png")
    mask = wide.batches.fixed([row], 0.25).masks[0, 0]
    assert torch.equal(mask, (found.maps.labels[0] == 0)[2:6].repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert "128 x 64" in "\n".join(wide.task.findings(wide))


def test_subjects_are_known_by_their_bytes_or_their_words(
    flags: dict[str, object], found: Path, tmp_path: Path
) -> None:
    moved = PartTask(load_recipe(None, {**flags, "images.scenes": write_set(tmp_path / "m", found, moved=True)}))
    codes = Discovery.load(found).maps.codes
    assert moved.pictures.scenes.codes[0].tolist() == [*codes[0, :2].tolist(), -1, *codes[4, :2].tolist(), -1]
    named = write_set(tmp_path / "n", found, words="<head:blue> <body:2> bird")
    task = PartTask(load_recipe(None, {**flags, "images.scenes": named}))
    assert task.pictures.scenes.codes[0].tolist() == [1, 2, -1, 1, 2, -1]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda folder, found: folder,
            "images.scenes .*bad does not exist: give the folder that `bestiary scenes build` wrote",
        ),
        (lambda folder, found: folder.mkdir() or folder, "bad is not a set of scenes: it has no layouts"),
        (
            lambda folder, found: write_set(folder, found, parts=False),
            "none of its 3 scenes has part labels; build it again with the discovery of its pictures",
        ),
        (
            lambda folder, found: write_set(folder, found, words="bird of nowhere"),
            "subject 'bird 0' of scene 000001 was cut from no file, which .*found does not hold, and its words name no kinds",
        ),
        (
            lambda folder, found: write_set(folder, found, words="<head:9> bird"),
            "subject 'bird 0' of scene 000001: unknown kind '9' of part 'head': kinds are 0 to 1",
        ),
    ],
)
def test_sets_that_cannot_be_learned_from_are_told(
    flags: dict[str, object], found: Path, tmp_path: Path, made: Callable[[Path, Path], Path], message: str
) -> None:
    folder = made(tmp_path / "bad", found)
    with pytest.raises(BestiaryError, match=message):
        _ = PartTask(load_recipe(None, {**flags, "images.scenes": folder})).pictures


def test_sizes_are_read_as_people_write_them() -> None:
    read = [load_recipe(None, {"images.size": given}).images.size for given in (128, "256x128", [256, 128], "128x128")]
    assert read == [128, (256, 128), (256, 128), 128]
    for wrong, message in (
        (60, "60 pixels: a side is a multiple of 8 from 64 to 2048"),
        ("wide", "write an edge such as"),
    ):
        with pytest.raises(BestiaryError, match=f"images.size = .*{message}"):
            load_recipe(None, {"images.size": wrong})
    from bestiary.trainer.learning.spectrum.spectrum_settings import load_spectrum_recipe

    with pytest.raises(BestiaryError, match="images.size 256x128: this training cuts squares; give one edge in pixels"):
        load_spectrum_recipe(None, {"images.source": "a.png", "images.size": "256x128"})
