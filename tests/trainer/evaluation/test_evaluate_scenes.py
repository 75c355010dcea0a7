"""`bestiary evaluate scenes`: prompts and subjects of a folder, figures by hand, files and page."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.demo.creatures import HELD_OUT_SPECIES, draw_creature
from bestiary.trainer.__main__ import main
from bestiary.trainer.evaluation.scene_cases import known_subjects, read_cases
from bestiary.trainer.evaluation.scene_figures import SceneFigures, mean_scores
from PIL import Image
from PIL.PngImagePlugin import PngInfo

LARK, PIPER = HELD_OUT_SPECIES[:2]


def _draw(path: Path, *species: object, text: str = "", seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(np.concatenate([draw_creature(one, rng).image for one in species], axis=1)).save(path)
    if text:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")


def test_the_drawn_world_is_evaluated_through_the_command(tmp_path: Path, capsys) -> None:
    pictures = tmp_path / "made"
    names = f"a {LARK.name} and a {PIPER.name}"
    _draw(pictures / "a.png", LARK, PIPER, text=f"a photo of {names}")
    _draw(pictures / "b.png", LARK, LARK, text=f"a photo of {names}", seed=1)
    _draw(pictures / "c.png", PIPER, PIPER, text=f"a photo of a {PIPER.name}", seed=2)
    command = ["evaluate", "scenes", str(pictures), "--drawn", LARK.name, "--drawn", PIPER.name, "--progress", "off"]
    assert main(command) in (0, None)
    told = capsys.readouterr()
    out = tmp_path / "made-evaluation"
    record = json.loads((out / "evaluation.json").read_text("utf-8"))
    assert record["models"] == {"attributes": "drawn world"} and record["pictures"] == 3
    rows = {row["file"]: row for row in record["scores"]}
    assert [rows[name]["found"] for name in ("a.png", "b.png", "c.png")] == [1, 0.5, 1]
    assert [rows[name]["extra_subjects"] for name in ("a.png", "b.png", "c.png")] == [0, 1, 1]
    pair = f"{LARK.name} and {PIPER.name}"
    assert record["pairs"][pair]["complete"] == 0.5 and record["pairs"][PIPER.name]["complete"] == 1
    assert record["mean"]["cp"] == pytest.approx(np.mean([row["cp"] for row in rows.values()]), abs=1e-4)
    table = list(csv.DictReader((out / "evaluation.csv").open(encoding="utf-8")))
    assert [row["complete"] for row in table] == ["1", "0", "1"] and table[0]["subjects"] == pair
    assert f"{pair}: 2 pictures, CP " in told.out and "all subjects in 50%, 0.50 extra subjects per picture" in told.out
    assert "not judged: TI. CLIP model" in told.err
    html = (out / "index.html").read_text("utf-8")
    assert html.count("data:image/") == 3 and f"not found: {PIPER.name}" in html and "Not judged: TI" in html


def test_prompts_are_read_from_whatever_made_the_picture(tmp_path: Path) -> None:
    pictures = tmp_path / "made"
    _draw(pictures / "1.png", LARK, text="a cat\nwritten twice")
    for name, key, text in (
        ("2.png", "bestiary", json.dumps({"prompt": "a <head:3> dog, rex"})),
        ("3.png", "parameters", "a Cat and rex\nNegative prompt: dog\nSteps: 3, Seed: 1"),
        ("4.png", "other", "nothing"),
    ):
        info = PngInfo()
        info.add_itxt(key, text)
        Image.new("RGB", (64, 64)).save(pictures / name, pnginfo=info)
    for name in ("cat", "my_dog2"):
        _draw(tmp_path / "known" / name / "x.png", LARK)
    subjects = known_subjects(tmp_path / "known", (), {"my_dog2": "rex"})
    assert [(one.name, one.words) for one in subjects] == [("cat", "cat"), ("my_dog2", "rex")]
    cases = {
        case.path.name: (case.prompt, [one.name for one in case.subjects]) for case in read_cases(pictures, subjects)
    }
    assert cases == {
        "1.png": ("a cat", ["cat"]),
        "2.png": ("a dog, rex", ["my_dog2"]),
        "3.png": ("a Cat and rex", ["cat", "my_dog2"]),
    }
    # words within others do not count
    (pictures / "1.txt").write_text("a catalogue", encoding="utf-8")
    assert "1.png" not in {case.path.name for case in read_cases(pictures, subjects)}


def test_a_listing_decides_which_pictures_and_subjects_there_are(tmp_path: Path) -> None:
    pictures = tmp_path / "made"
    for name in ("a", "b", "c"):
        _draw(pictures / "images" / f"{name}.png", LARK)
    rows = [
        {"file_name": "images/a.png", "text": "two of them", "subjects": ["rex", "ada"]},
        {"file_name": "images/b.png", "text": "one", "objects": {"id": ["ada"]}},
    ]
    listing = pictures / "metadata.jsonl"
    listing.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    for name in ("rex", "ada"):
        _draw(tmp_path / "known" / name / "x.png", LARK)
    subjects = known_subjects(tmp_path / "known", (), {})
    cases = read_cases(pictures, subjects)
    assert [(case.prompt, [one.name for one in case.subjects]) for case in cases] == [
        ("two of them", ["rex", "ada"]),
        ("one", ["ada"]),
    ]
    listing.write_text('{"file_name": "images/a.png", "subjects": ["tom"]}', encoding="utf-8")
    with pytest.raises(BestiaryError, match=r"images/a.png: subject 'tom' is not one of ada, rex"):
        read_cases(pictures, subjects)
    listing.write_text("[1]", encoding="utf-8")
    with pytest.raises(BestiaryError, match="metadata.jsonl cannot be read"):
        read_cases(pictures, subjects)


def test_faults_name_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*arguments: object) -> str:
        assert main(["evaluate", "scenes", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    _draw(tmp_path / "made" / "a.png", LARK, text="a house")
    (tmp_path / "known" / "cat").mkdir(parents=True)
    assert "give --subjects (a folder with a subfolder" in fails(tmp_path / "made")
    assert "no drawn species 'cat'" in fails(tmp_path / "made", "--drawn", "cat")
    assert "holds no readable picture of its subject" in fails(tmp_path / "made", "--subjects", tmp_path / "known")
    assert "has no subfolders" in fails(tmp_path / "made", "--subjects", tmp_path / "known" / "cat")
    assert "no picture of" in (text := fails(tmp_path / "made", "--drawn", LARK.name)) and "metadata.jsonl" in text
    assert "holds no readable pictures" in fails(tmp_path / "known" / "cat", "--drawn", LARK.name)
    assert "words for 'rex', which is not a subject" in fails(
        tmp_path / "made", "--drawn", LARK.name, "--words", "rex=dog"
    )


def test_means_leave_out_what_nobody_judged() -> None:
    row = {"file": "", "prompt": "", "subjects": ["b", "a"], "cp": None, "ti": 0.25, "match": None, "found": None}
    row |= {"extra_subjects": None, "places": {}, "likeness": {}}
    mean = mean_scores([row, {**row, "ti": 0.75}, {**row, "ti": None}])
    assert mean["ti"] == 0.5 and mean["cp"] is None and mean["complete"] is None and mean["pictures"] == 3
    assert list(SceneFigures([row], {}, {}).pairs) == ["a and b"]
    assert SceneFigures([row], {}, {}).to_csv().splitlines()[1] == ",a and b,,,0.25,,,,"
