"""`bestiary scenes repaint`: subjects stay exactly, bad pictures are tried again, a stopped run goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.set_files import read_png, read_records
from bestiary.trainer.__main__ import main
from bestiary.trainer.scenes import painters
from bestiary.trainer.scenes.repaint_set import place_prompt, repaint_set
from bestiary.trainer.scenes.scene_settings import RepaintSettings

ASKED = RepaintSettings(mode="model", feather=2, tries=2)


class NoisePainter:
    """Grain instead of the place, and a little of it over the subjects, as a model leaves them."""

    name = "noise"

    def __init__(self, refuse: Callable[[int], bool] = lambda call: False) -> None:
        self.calls: list[tuple[str, int]] = []
        self.refuse = refuse

    def paint(self, picture: np.ndarray, mask: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        self.calls.append((prompt, seed))
        if self.refuse(len(self.calls)):
            return picture
        grain = np.random.default_rng(seed).integers(60, 120, picture.shape).astype(np.uint8)
        spoiled = np.clip(picture.astype(int) + 12, 0, 255).astype(np.uint8)
        return np.where(mask[..., None] > 0, grain, spoiled)


@pytest.fixture
def pets(recipe: Path, tmp_path: Path, build: Callable[..., int]) -> Path:
    """A set of six collages on noise; its places have no phrase."""
    assert build(recipe, tmp_path / "pets") == 0
    return tmp_path / "pets"


def core(folder: Path, stem: str) -> np.ndarray:
    """Where a subject is whole, away from its edge."""
    from PIL import Image, ImageFilter

    return np.asarray(Image.fromarray(read_png(folder / f"masks/{stem}.png")).filter(ImageFilter.MinFilter(7))) == 255


def test_subjects_are_exact_and_their_places_new(pets: Path, hashes: Callable) -> None:
    before = {record.stem: read_png(pets / f"images/{record.stem}.png") for record in read_records(pets)}
    other = {name: sha for name, sha in hashes(pets).items() if name.startswith(("masks/", "instances/", "subjects/"))}
    done = repaint_set(pets, ASKED, NoisePainter())
    assert (done.scenes, done.painted, done.refused) == (6, 6, ())
    for record in read_records(pets):
        after, whole = read_png(pets / f"images/{record.stem}.png"), core(pets, record.stem)
        assert whole.any() and np.array_equal(after[whole], before[record.stem][whole])
        assert not np.array_equal(after, before[record.stem])
        # 12 of 255 levels were painted over the subjects, and grain over their outermost pixels
        assert 10 < record.scores["psnr"] < 20 * np.log10(255 / 12)
        assert record.model.startswith("noise (") and record.scores["hidden"] >= 0
    assert {name: hashes(pets)[name] for name in other} == other
    assert main(["scenes", "verify", str(pets)]) == 0


def test_a_second_run_paints_nothing_and_other_settings_paint_again(pets: Path, hashes: Callable) -> None:
    repaint_set(pets, ASKED, NoisePainter())
    first, again = hashes(pets), NoisePainter()
    assert repaint_set(pets, ASKED, again).painted == 0 and again.calls == []
    assert hashes(pets) == first
    assert repaint_set(pets, ASKED.model_copy(update={"prompt": "a beach"}), again).painted == 6
    assert repaint_set(pets, ASKED, again, seed=5).painted == 6


def test_a_stopped_run_goes_on_with_the_same_bytes(pets: Path, tmp_path: Path, hashes: Callable) -> None:
    import shutil

    shutil.copytree(pets, tmp_path / "whole" / "pets")
    repaint_set(tmp_path / "whole" / "pets", ASKED, NoisePainter())

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repaint_set(pets, ASKED, NoisePainter(), on_scene=stop)
    going_on = NoisePainter()
    assert repaint_set(pets, ASKED, going_on).painted == 3 and len(going_on.calls) == 3
    same = lambda files: {name: sha for name, sha in files.items() if name != "index.html"}  # noqa: E731
    assert same(hashes(pets)) == same(hashes(tmp_path / "whole" / "pets"))


def test_another_seed_is_tried_and_its_reason_kept(pets: Path) -> None:
    painter = NoisePainter(refuse=lambda call: call == 1)
    done = repaint_set(pets, ASKED, painter)
    assert done.painted == 6 and len({seed for _, seed in painter.calls}) == 7
    first = next(read_records(pets))
    assert len(first.rejected) == 1 and "nothing new" in first.rejected[0]


def test_scenes_without_a_fit_picture_keep_their_collage_and_are_not_tried_for_ever(
    pets: Path, hashes: Callable
) -> None:
    pictures = {name: sha for name, sha in hashes(pets).items() if name.startswith("images/")}
    done = repaint_set(pets, ASKED, NoisePainter(refuse=lambda call: True))
    assert done.painted == 0 and len(done.refused) == 6
    assert done.refused[0][1].count("nothing new") == ASKED.tries
    assert {name: hashes(pets)[name] for name in pictures} == pictures
    again = NoisePainter()
    assert len(repaint_set(pets, ASKED, again).refused) == 6 and again.calls == []
    # a painter with other settings gets its chance
    assert repaint_set(pets, ASKED.model_copy(update={"strength": 0.9}), again).painted == 6
    assert all("not painted by" not in note for record in read_records(pets) for note in record.rejected)


def test_a_network_that_sees_another_subject_refuses(pets: Path) -> None:
    def find(picture: np.ndarray) -> np.ndarray:
        seen = np.zeros(picture.shape[:2], np.uint8)
        seen[:40, :30] = 255
        return seen

    done = repaint_set(pets, ASKED.model_copy(update={"tries": 1}), NoisePainter(), find_things=find)
    assert done.refused and all("extra: something as large as" in reason for _, reason in done.refused)


def test_a_built_set_keeps_its_paintings_and_captions(
    pets: Path, recipe: Path, build: Callable, hashes: Callable
) -> None:
    repaint_set(pets, ASKED, NoisePainter())
    first = {name: sha for name, sha in hashes(pets).items() if name.startswith("images/")}
    assert build(recipe, pets) == 0
    assert {name: hashes(pets)[name] for name in first} == first


def test_recipes_paint_what_they_build(recipe: Path, tmp_path: Path, build: Callable, monkeypatch, capsys) -> None:
    painter = NoisePainter()
    monkeypatch.setattr(painters, "open_painter", lambda asked: painter)
    options = ("--set", "repaint.mode=model", "--set", "evaluation.share=0.25")
    assert build(recipe, tmp_path / "pets", *options) == 0
    assert "6 of 6 scenes painted, 0 keep their collage" in capsys.readouterr().out
    assert len(painter.calls) > 6, "the scenes of the evaluation too"
    calls = len(painter.calls)
    assert build(recipe, tmp_path / "pets", *options) == 0 and len(painter.calls) == calls


def test_the_embedded_model_paints_a_set_from_the_command(pets: Path, capsys) -> None:
    command = ["scenes", "repaint", str(pets), "--strength", "0.6", "--tries", "1", "--progress", "off"]
    code = main([*command, "--set", "repaint.steps=4", "--set", "repaint.most_seam=100"])
    assert code == 0, capsys.readouterr()
    records = list(read_records(pets))
    assert all(record.model.startswith("model demo, strength 0.6, 4 steps") for record in records)
    # before the subjects were put back they were what the autoencoder and the steps made of them
    assert all(8 < record.scores["psnr"] < 45 for record in records)
    page = (pets / "index.html").read_text("utf-8")
    assert "psnr" in page and "model demo, strength 0.6" in json.dumps([record.model for record in records])


def test_prompts_name_the_place_alone() -> None:
    assert place_prompt("a photo {place}", "in a garden") == "a photo in a garden"
    assert place_prompt("a photo {place}", "") == "a photo"
    with pytest.raises(BestiaryError, match=r"only \{place\} can stand in braces"):
        place_prompt("a {subject}", "")


def test_what_cannot_be_painted_with_is_told(pets: Path, tmp_path: Path, fails: Callable) -> None:
    command = ["scenes", "repaint", str(pets), "--progress", "off"]
    fails([*command, "--base", str(tmp_path / "nothing")], "nothing")
    fails([*command, "--with", "comfy"], "needs its address and a workflow", "--workflow FILE")
    fails([*command, "--prompt", "a {dog}"], "only {place} can stand in braces")
    fails([*command, "--strength", "0"], "repaint.strength")
    fails(["scenes", "repaint", str(tmp_path / "cat")], "is not a set of scenes")
