"""Runs as a browser sees them: found by name, never by path, and bounded."""

import json
import os

import pytest
from bestiary.concepts.errors import BestiaryError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """`runs(name, age=0)` -> folder of a run that was started so many seconds ago."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))

    def make(name, age=0, steps=40):
        folder = tmp_path / "bestiary" / name
        (folder / "samples").mkdir(parents=True)
        config = folder / "config.resolved.toml"
        config.write_text(f"[optimizer]\nsteps = {steps}\n")
        os.utime(config, (1e9 - age, 1e9 - age))
        return folder

    return make


def test_the_newest_run_of_a_name(runs):
    from bestiary.nodes.runs.run_listing import newest_run

    for name, age in (("birds", 30), ("birds-2", 10), ("birds-3", 20), ("birds-x", 1), ("birdsong", 0), ("bi.ds", 5)):
        runs(name, age)
    assert newest_run("birds") == newest_run(" birds ") == "birds-2"
    assert newest_run("bi.ds") == "bi.ds" and newest_run("bird") is None
    assert newest_run("../bestiary/birds") is None and newest_run("") is None


def test_runs_of_another_kind_are_passed_over(runs):
    from bestiary.nodes.runs.run_listing import newest_run

    runs("birds", 30)
    spectrum = runs("birds-2", 10) / "config.resolved.toml"
    spectrum.write_text('kind = "spectrum"\n[optimizer]\nsteps = 9\n')
    assert [newest_run("birds", kind) for kind in ("parts", "spectrum", None, "x")] == [
        "birds",
        "birds-2",
        "birds-2",
        None,
    ]


def test_a_run_is_listed_with_its_curves_names_and_previews(runs):
    from bestiary.nodes.runs.run_listing import list_run, run_stamp

    folder = runs("birds")
    record = {"step": 10, "loss": 0.5, "part_attention_loss": [0.1, 0.2], "steps_per_second": 2.5}
    (folder / "log.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "curve_labels.json").write_text(json.dumps({"part_attention_loss": ["head", "<b>" * 100]}))
    for name in ("step-0000010.png", "step-0000005.png", "step-0000010-attention.png", "step-x.png", "other.png"):
        (folder / "samples" / name).write_bytes(PNG)
    listed = list_run("birds")
    assert (listed["run"], listed["step"], listed["total"], listed["rate"]) == ("birds", 10, 40, 2.5)
    assert listed["curves"]["part_attention_loss/1"] == [0.2]
    assert listed["labels"]["part_attention_loss"] == ["head", ("<b>" * 100)[:80]]
    assert listed["previews"] == {"pictures": [5, 10], "attention": [10]}
    before = run_stamp("birds")
    (folder / "log.jsonl").write_text("")
    assert run_stamp("birds") != before and run_stamp("other") == ""
    assert list_run("birds")["step"] == 0


def test_the_file_of_a_cancelled_run_is_named(runs, monkeypatch, tmp_path):
    from bestiary.nodes.runs import run_listing

    runs("birds")
    files = [
        "birds_stopped.safetensors",
        "birds_stopped_2.safetensors",
        "birds-2_stopped.safetensors",
        "birds.safetensors",
    ]
    for age, name in enumerate(files):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (1e9 + age, 1e9 + age))
    listed: list[str] = []
    monkeypatch.setattr(run_listing, "concept_names", lambda: listed)
    monkeypatch.setattr(run_listing, "concept_path", lambda name: tmp_path / name)
    before = run_listing.run_stamp("birds")
    assert run_listing.list_run("birds")["stopped"] is None
    listed.extend(files)
    assert run_listing.list_run("birds")["stopped"] == "birds_stopped_2.safetensors"
    assert run_listing.run_stamp("birds") != before


@pytest.mark.parametrize("content", ["", "null", "[]", '{"a": 3}', "{" * 50_000, "\ud800"])
def test_broken_files_of_a_run_leave_the_rest(runs, content):
    from bestiary.nodes.runs.run_listing import list_run

    folder = runs("birds")
    for name in ("curve_labels.json", "config.resolved.toml"):
        (folder / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    listed = list_run("birds")
    assert listed["labels"] == {} and listed["total"] is None


def test_a_large_text_is_not_read(runs, monkeypatch):
    from bestiary.nodes.runs import run_listing

    runs("birds")
    monkeypatch.setattr(run_listing, "LARGEST_TEXT", 3)
    assert run_listing.list_run("birds")["total"] is None


@pytest.mark.parametrize("name", ["../birds", "birds/..", "", ".", "birds/samples", ".training_sets"])
def test_what_is_no_run_is_refused(runs, name):
    from bestiary.nodes.runs.run_listing import find_run, preview_stamp

    runs("birds")
    with pytest.raises(BestiaryError, match=r"no run .* in output/bestiary; available: 'birds'"):
        find_run(name)
    assert preview_stamp(name, 5, "pictures") == ""


def test_a_preview_and_what_is_none(runs, monkeypatch):
    from bestiary.nodes.runs import run_listing

    folder = runs("birds")
    (folder / "samples" / "step-0000005.png").write_bytes(PNG)
    (folder / "samples" / "step-0000006.png").write_bytes(b"<script>")
    assert run_listing.preview_picture("birds", 5, "pictures") == PNG
    assert run_listing.preview_stamp("birds", 5, "pictures") and not run_listing.preview_stamp("birds", 9, "pictures")
    for step, sheet, message in (
        (5, "attention", "run birds has no preview attention of step 5"),
        (6, "pictures", "step-0000006.png is not a PNG picture"),
        (5, "../x", r"unknown kind of preview '../x'; choose pictures or attention"),
    ):
        with pytest.raises(BestiaryError, match=message):
            run_listing.preview_picture("birds", step, sheet)
    monkeypatch.setattr(run_listing, "LARGEST_PICTURE", 10)
    with pytest.raises(BestiaryError, match="step-0000005.png has 28 bytes, at most 10 are shown"):
        run_listing.preview_picture("birds", 5, "pictures")
