"""`bestiary scenes score`: scores in the records, metadata, page and scores.json of a set, and when they are taken off."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from bestiary.demo.creatures import HELD_OUT_SPECIES, draw_creature
from bestiary.scenes.scene_set import SceneSet
from bestiary.scenes.set_files import read_records
from bestiary.scenes.set_verify import verify_set
from bestiary.trainer.__main__ import main
from bestiary.trainer.evaluation.scene_judges import KnownSubject, load_scene_judges
from bestiary.trainer.scenes.score_set import score_set
from bestiary.trainer.scenes.set_page import write_set_page
from PIL import Image

CREATURES = {"lark": HELD_OUT_SPECIES[0], "piper": HELD_OUT_SPECIES[1]}


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of three scenes of two drawn creatures, two of one and one of both, with one scene for evaluation."""
    folder = tmp_path_factory.mktemp("scored")
    rng = np.random.default_rng(4)
    for name, species in CREATURES.items():
        (folder / name).mkdir()
        for number in range(4):
            drawing = draw_creature(species, rng)
            alpha = np.where(drawing.labels > 0, 255, 0).astype(np.uint8)
            Image.fromarray(np.dstack([drawing.image, alpha])).save(folder / name / f"{number}.png")
    recipe = folder / "pets.toml"
    recipe.write_text(
        'kind = "scenes"\ncount = 3\nper_scene = [2]\n[layout]\nwidth = 320\nheight = 176\ncoverage = 0.5\nperspective = 0\n'
        "[background]\nmode = 'plain'\n[evaluation]\nshare = 0.25\ncount = 1\n"
        + "".join(f'[[subjects]]\nname = "{name}"\nfolder = "{folder / name}"\nsize = "medium"\n' for name in CREATURES)
    )
    assert main(["scenes", "build", str(recipe), "--out", str(folder / "pets"), "--progress", "off"]) == 0
    return folder / "pets"


def test_scores_stand_in_records_metadata_page_and_their_own_file(pets: Path, capsys) -> None:
    assert main(["scenes", "score", str(pets), "--drawn", "--progress", "off"]) in (0, None)
    told = capsys.readouterr()
    assert f"{pets}: 3 pictures, CP " in told.out and f"{pets / 'eval'}: 1 pictures" in told.out
    assert "not scored: TI. CLIP model" in told.err
    content = json.loads((pets / "scores.json").read_text("utf-8"))
    assert (
        content["models"] == {"attributes": "drawn world"} and content["pictures"] == 3 and "TI" in content["left_out"]
    )
    records = list(read_records(pets))
    rows = {
        json.loads(line)["file_name"]: json.loads(line) for line in (pets / "metadata.jsonl").open(encoding="utf-8")
    }
    for record, row in zip(records, content["scores"], strict=True):
        assert row["file"] == f"images/{record.stem}.png" and set(row["places"]) == {"lark", "piper"}
        assert record.scores["cp"] == row["cp"] and "ti" not in record.scores and "hidden" in record.scores
        assert rows[row["file"]]["scores"]["found"] == row["found"] == record.scores["found"]
    # cut-outs are like themselves, where they were put
    assert content["mean"]["complete"] == 1 and content["mean"]["cp"] > 0.7 and content["mean"]["extra_subjects"] == 0
    assert verify_set(pets) == []
    html = (pets / "index.html").read_text("utf-8")
    assert "lark and piper" in html and "cp 0." in html and "Judged by attributes: drawn world" in html


def test_scores_that_no_longer_belong_to_the_scenes_are_taken_off(pets: Path) -> None:
    judges = load_scene_judges(None, None, drawn=True)
    score_set(pets, judges)
    scores = pets / "scores.json"
    scene_set, records = SceneSet(pets), list(read_records(pets))
    assert scene_set.finish() == 3 and scores.is_file()
    # other words: what was measured with the old ones goes, the rest stays
    scored = scene_set.rescore(records[0], {"ti": 0.3})
    assert scene_set.recaption(scored, "a lark and a piper at home", "a lark")
    (changed, *_) = read_records(pets)
    assert "ti" not in changed.scores and changed.scores["cp"] == records[0].scores["cp"]
    # another picture: scores.json would speak of the old one
    scene_set.rescore(changed, {"cp": None})
    assert [fault.reason for fault in verify_set(pets) if fault.file == "scores.json"] == [
        "the scores are not those of the scenes: score the set again"
    ]
    scene_set.finish()
    assert not scores.exists() and verify_set(pets) == []
    write_set_page(pets)
    assert "Judged by" not in (pets / "index.html").read_text("utf-8")


def test_the_page_finds_scenes_that_lack_a_subject(pets: Path, fails) -> None:
    score_set(pets, load_scene_judges(None, None, drawn=True))
    first, *others = read_records(pets)
    SceneSet(pets).rescore(first, {"found": 0.5})
    assert all(one.scores["found"] == 1 for one in others)
    html = write_set_page(pets).read_text("utf-8")
    assert html.count("&quot;a subject was not found&quot;") == 1 and ">a subject was not found</option>" in html
    (pets / "scores.json").write_text("{}")
    fails(["scenes", "score", str(pets / "images"), "--drawn"], "is not a set of scenes")
    fails(["scenes", "score", str(pets), "--clip", "nowhere"], "no CLIP model 'nowhere'")


def test_judges_are_given_every_cut_out_and_where_subjects_stand(pets: Path) -> None:
    asked: list[tuple] = []
    judges = load_scene_judges(None, None, drawn=True)

    class Noting:
        def look(self, picture: Image.Image, subjects: list[KnownSubject], boxes: np.ndarray) -> object:
            asked.append((picture.size, [(one.name, one.words, len(one.pictures)) for one in subjects], boxes.tolist()))
            assert judges.composition is not None
            return judges.composition.look(picture, subjects, boxes)

    score_set(pets, dataclasses.replace(judges, composition=Noting()))
    records = list(read_records(pets))
    for (size, subjects, boxes), record in zip(asked, records, strict=True):
        assert size == (320, 176) and boxes == [list(one.bbox) for one in record.objects]
        assert [name for name, _, _ in subjects] == [one.id for one in record.objects]
    used = {item.cutout for record in records for item in record.subjects if item.name == "lark"}
    assert {count for _, subjects, _ in asked for name, _, count in subjects if name == "lark"} == {len(used)}
