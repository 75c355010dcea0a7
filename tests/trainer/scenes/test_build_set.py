"""`bestiary scenes build` and `replay`: whole sets, stopped builds, and what cannot be built."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bestiary.scenes import layout_solver
from bestiary.scenes.set_files import read_records
from bestiary.trainer.__main__ import main
from bestiary.trainer.scenes import build_set as module
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
KILLS = [1, 2, 3, 4, 5, 7, 9, 12, 16, 17, 18, 19, 20, 21, 22, 23, 31, 40, 52, 60]
"""Numbers of the files at which a build is killed: cut-outs first, then scenes, then the files of the set."""


def test_a_set_is_built_and_verified_and_a_broken_mask_is_named(
    recipe, tmp_path, capsys, monkeypatch, build, hashes
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    out = tmp_path / "pets"
    assert build(recipe, out) == 0
    assert main(["scenes", "verify", str(out)]) == 0
    again = hashes(out)
    assert build(recipe, out) == 0
    assert hashes(out) == again and "0 of them new" in capsys.readouterr().out
    # the kept recipe makes the same set, and stays as the user left it
    with (out / "recipe.toml").open("a") as file:
        file.write("# mine\n")
    again = hashes(out)
    assert build(out / "recipe.toml", out) == 0
    assert hashes(out) == again and "0 of them new" in capsys.readouterr().out
    # a scene composed once more has the bytes of the set
    assert main(["scenes", "replay", str(out / "layouts/000002.json"), "--out", str(tmp_path / "r.png")]) == 0
    assert (tmp_path / "r.png").read_bytes() == (out / "images/000002.png").read_bytes()
    (out / "masks/000003.png").write_bytes(b"broken")
    capsys.readouterr()
    assert main(["scenes", "verify", str(out)]) == 1
    assert "masks/000003.png" in capsys.readouterr().out
    # a build mends it
    assert build(recipe, out) == 0
    assert "1 of them new" in capsys.readouterr().out and main(["scenes", "verify", str(out)]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork of this process")
def test_a_build_killed_at_any_file_goes_on_to_the_same_hashes(recipe, tmp_path, build, hashes) -> None:
    whole = tmp_path / "whole" / "pets"
    assert build(recipe, whole) == 0
    wanted, out = hashes(whole), tmp_path / "killed" / "pets"
    for number in KILLS:
        shutil.rmtree(out, ignore_errors=True)
        child = os.fork()
        if child == 0:
            _kill_itself_at(number)
            build(recipe, out)
            os._exit(0)
        # the child was alive until the kill
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, number
        assert build(recipe, out) == 0
        assert hashes(out) == wanted, number


def _kill_itself_at(number: int) -> None:
    """From now on the process ends like by a power cut as it puts its number-th file into place."""
    rename, count = os.replace, 0

    def replace(*args: object) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*args)

    os.replace = replace


def start(recipe: Path, out: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "bestiary.trainer", "scenes", "build", str(recipe), "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=recipe.parent)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_build_stopped_from_outside_goes_on(recipe, tmp_path, capsys, build, stop) -> None:
    out, count = tmp_path / "pets", 300
    process = start(recipe, out, "--count", str(count))
    until = time.monotonic() + 600
    while len(list(out.glob("layouts/[!.]*.json"))) < 3 and time.monotonic() < until:
        time.sleep(0.002)
    assert process.poll() is None, "the build ended before it could be stopped"
    process.send_signal(stop)
    said = process.communicate(timeout=600)[1]
    done = len(list(out.glob("layouts/[!.]*.json")))
    assert 3 <= done < count
    if stop == signal.SIGINT:
        assert process.returncode == 130 and "stopped; run the same command again" in said and "Traceback" not in said
    # nothing of what was finished is made again
    assert build(recipe, out, "--count", str(done + 1)) == 0
    assert f"{done + 1} scenes, 1 of them new" in capsys.readouterr().out
    assert main(["scenes", "verify", str(out)]) == 0


def test_a_finished_scene_is_skipped_before_anything_is_cut_or_solved(recipe, tmp_path, monkeypatch, build) -> None:
    out = tmp_path / "pets"
    assert build(recipe, out) == 0

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("worked on what is finished")

    for place, name in (
        ("bestiary.trainer.scenes.read_subjects", "cut_subject"),
        ("bestiary.trainer.scenes.read_subjects", "read_pixels"),
        ("bestiary.trainer.scenes.cutout_cache", "read_png"),
        ("bestiary.trainer.scenes.build_set", "solve_measured"),
        ("bestiary.trainer.scenes.build_set", "compose"),
        ("bestiary.trainer.scenes.build_set", "make_background"),
    ):
        monkeypatch.setattr(f"{place}.{name}", refuse)
    assert build(recipe, out) == 0


def test_a_changed_picture_makes_only_its_own_scenes_again(recipe, tmp_path, capsys, build) -> None:
    out = tmp_path / "pets"
    assert build(recipe, out) == 0
    changed = tmp_path / "cat/0.png"
    picture = Image.open(changed).convert("RGBA")
    pixels = np.array(picture)
    pixels[..., 0] = 200
    Image.fromarray(pixels).save(changed)
    shown = sum(
        any(subject.source["file"].endswith("cat/0.png") for subject in record.subjects) for record in read_records(out)
    )
    capsys.readouterr()
    assert build(recipe, out) == 0 and 0 < shown < 6
    assert f"6 scenes, {shown} of them new" in capsys.readouterr().out
    # the settings of captions and layouts belong to a scene too
    assert build(recipe, out, "--set", "captions.relations=true") == 0
    assert "6 of them new" in capsys.readouterr().out
    assert "left of" in (out / "images/000001.txt").read_text()


def test_a_scene_that_cannot_be_solved_is_noted_and_left_out(
    recipe, tmp_path, capsys, monkeypatch, build, hashes
) -> None:
    solve, count = layout_solver.solve_measured, []

    def sometimes(subjects, request, measure, tries):
        count.append(request.seed)
        if len(count) in (2, 5):
            raise module.BestiaryError("no layout of 17 kept max_occlusion")
        return solve(subjects, request, measure, tries)

    monkeypatch.setattr(module, "solve_measured", sometimes)
    out = tmp_path / "pets"
    assert build(recipe, out) == 1
    shown = capsys.readouterr()
    assert "4 scenes, 4 of them new, 0 pictures skipped, 2 scenes rejected" in shown.out
    assert "scene 000002 could not be made: no layout of 17 kept max_occlusion" in shown.err
    assert main(["scenes", "verify", str(out)]) == 0
    rejected = json.loads((out / "provenance.json").read_text())["rejected"]
    assert [entry["stem"] for entry in rejected] == ["000002", "000005"] and "max_occlusion" in str(rejected)
    page = (out / "index.html").read_text()
    assert "Rejected scenes" in page and "no layout of 17" in page
    # it is known at once the next time, and still said
    before = hashes(out)
    assert build(recipe, out) == 1
    assert "2 scenes rejected" in capsys.readouterr().out and hashes(out) == before and len(count) == 6


def test_a_set_without_a_single_scene_says_why(recipe, tmp_path, fails) -> None:
    recipe.write_text(recipe.read_text().replace("[layout]", "[layout]\ncoverage = 0.00001"))
    arguments = ["scenes", "build", str(recipe), "--out", str(tmp_path / "pets"), "--progress", "off"]
    fails(arguments, "none of the 6 scenes could be made", "the limit is coverage 1e-05")


def test_photographs_are_kept_apart_for_evaluation(recipe, tmp_path, capsys, build) -> None:
    out = tmp_path / "pets"
    split = ["--set", "evaluation.share=0.25", "--set", "evaluation.count=3"]
    assert build(recipe, out, *split) == 0
    assert "6 scenes and 3 for evaluation, 9 of them new" in capsys.readouterr().out
    assert main(["scenes", "verify", str(out)]) == 0

    def shown(folder: Path) -> set[str]:
        return {subject.source["sha256"] for record in read_records(folder) for subject in record.subjects}

    assert len(shown(out)) == 6 and len(shown(out / "eval")) == 2 and not shown(out) & shown(out / "eval")
    assert "split: test" in (out / "README.md").read_text() and "for evaluation" in (out / "index.html").read_text()
    # a photograph of the evaluation in training is a fault
    stray = next((out / "eval/layouts").glob("*.json"))
    shutil.copyfile(stray, out / "layouts/000001.json")
    assert main(["scenes", "verify", str(out)]) == 1
    assert "is in training and in evaluation" in capsys.readouterr().out
    # without a share, the evaluation goes
    assert build(recipe, out) == 0
    assert not list((out / "eval").glob("**/*.png")) and "split: test" not in (out / "README.md").read_text()


def test_one_subject_makes_a_set(recipe, tmp_path, capsys, build) -> None:
    text = recipe.read_text()
    recipe.write_text(text[: text.rindex("[[subjects]]")])
    out = tmp_path / "cats"
    assert build(recipe, out) == 0
    assert (out / "images/000001.txt").read_text() == "a photo of a cat\n"


def test_a_folder_of_photographs_is_a_set_in_one_command(recipe, tmp_path, capsys, build, monkeypatch) -> None:
    photos, places = tmp_path / "photos", tmp_path / "places"
    photos.mkdir()
    for name in ("cat", "dog"):
        shutil.move(tmp_path / name, photos / name)
    places.mkdir()
    Image.effect_noise((90, 60), 60).convert("RGB").save(places / "garden_1.jpg")
    monkeypatch.chdir(tmp_path)
    assert build(Path("photos"), Path("pets"), "--count", "2", "--background", "places") == 0
    assert (tmp_path / "pets/images/000001.txt").read_text() == "a photo of a cat and a dog in a garden\n"
    # a single picture of a place, and a folder that is one subject
    assert build(photos / "cat", Path("cats"), "--count", "1", "--background", "places/garden_1.jpg") == 0
    assert (tmp_path / "cats/images/000001.txt").read_text() == "a photo of a cat in a garden\n"


def test_a_subject_on_another_is_shown_with_it(recipe, tmp_path, build) -> None:
    extra = f'[[subjects]]\nname = "hat"\nfolder = "{tmp_path / "cat"}"\nsupport = "on:dog"\nsize = 0.3\n'
    recipe.write_text(recipe.read_text() + extra)
    out = tmp_path / "pets"
    assert build(recipe, out) == 0
    shown = [{subject.name for subject in record.subjects} for record in read_records(out)]
    assert {"hat", "dog"} in shown and {"hat", "cat"} not in shown


def test_faults_a_user_can_mend(recipe, tmp_path, fails) -> None:
    text = recipe.read_text()
    arguments = ["scenes", "build", str(recipe), "--out", str(tmp_path / "out"), "--progress", "off"]
    dog = text[text.rindex("[[subjects]]") :]
    for changed, told in (
        ('kind = "scenes"\n', ["no subject"]),
        (text.replace('"dog"', '"cat"'), ["two subjects are called 'cat'"]),
        (text + '[background]\nmode = "photo"\n', ["needs pictures of places", "background.folder"]),
        (text + f'[background]\nmode = "photo"\nfolder = "{tmp_path / "none"}"\n', ["none does not exist"]),
        (text + f'[background]\nmode = "photo"\npicture = "{tmp_path / "no.png"}"\n', ["no.png does not exist"]),
        (f'weights = "{recipe}"\n' + text, ["pets.toml is not a file of IS-Net weights"]),
        (f'weights = "{tmp_path / "no.pth"}"\n' + text, ["no weights file", "no.pth"]),
        ("per_scene = [3]\n" + text, ["per_scene asks for 3 subjects", "has 2"]),
        ("per_scene = [0]\n" + text, ["per_scene.0 = 0"]),
        ("cuont = 3\n" + text, ["cuont: no such key; did you mean 'count'?"]),
        (text + "[gate]\nborder = 3\n", ["gate.border = 3", "share from 0 to 1"]),
        (text + "[gate]\nborder = true\n", ["gate.border", "false to switch this check off"]),
        (text + "[cutout]\nfeather = 99\n", ["cutout.feather = 99"]),
        (text + '[cutout]\nbackend = "parts"\n', ["cutout.discovery"]),
        (text + '[captions]\ntemplate = "hello"\n', ["does not say where the subjects stand"]),
        (text + "[evaluation]\nshare = 1.0\n", ["evaluation.share = 1.0"]),
        (text.replace("[layout]", "[layout]\nground = [0.9, 0.2]"), ["layout.ground", "the smaller first"]),
        (text + 'support = "on:hat"\n', ["'dog' stands on 'hat', and no subject is called so"]),
        (text.replace(dog, 'support = "on:dog"\n' + dog) + 'support = "on:cat"\n', ["in a circle"]),
        (text + "size = 0\n", ["subject 'dog': size 0.0 must be a number above 0"]),
        (text.replace(f'"{tmp_path / "dog"}"', f'"{tmp_path / "dgo"}"'), ["dgo does not exist"]),
        ('kind = "spectrum"\n' + text.split("\n", 1)[1], ["bestiary train spectrum", "bestiary scenes build"]),
        ("no toml", ["is not valid TOML"]),
    ):
        recipe.write_text(changed)
        fails(arguments, *told)
    assert not (tmp_path / "out").exists()
    recipe.write_text(text)
    fails([*arguments[:2], str(tmp_path / "none.toml"), *arguments[3:]], "none.toml")
    fails([*arguments[:4], str(tmp_path / "a.png.set"), *arguments[5:]], "holds '.png'")
    fails([*arguments, "--llm-url", "http://127.0.0.1:1"], "--layout llm")
    fails([*arguments, "--layout", "llm"], "--llm-url")
    (tmp_path / "empty").mkdir()
    fails([*arguments[:2], str(tmp_path / "empty"), *arguments[3:]], "holds no pictures", "subfolder")
    # a page of another command is not written over
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("mine")
    fails([*arguments[:4], str(tmp_path / "site"), *arguments[5:]], "an index.html of another command")


def test_files_of_no_use_are_skipped_with_their_reason(recipe, tmp_path, capsys, build) -> None:
    (tmp_path / "cat/broken.png").write_bytes(b"")
    (tmp_path / "cat/cut.png").write_bytes((tmp_path / "cat/1.png").read_bytes()[:120])
    Image.new("RGB", (80, 64)).save(tmp_path / "dog/dark.png")
    Image.new("L", (80, 64)).save(tmp_path / "dog/dark_mask.png")
    assert build(recipe, tmp_path / "pets") == 0
    shown = capsys.readouterr()
    assert "3 pictures skipped" in shown.out
    skipped = json.loads((tmp_path / "pets/provenance.json").read_text())["skipped"]
    reasons = {Path(entry["file"]).name: entry["reason"] for entry in skipped}
    assert "empty" in reasons["broken.png"] and reasons["dark.png"].startswith("empty: nothing in it")
    assert set(reasons) == {"broken.png", "cut.png", "dark.png"}
    assert "Skipped pictures" in (tmp_path / "pets/index.html").read_text()


def test_a_subject_without_any_usable_picture_ends_the_build(recipe, tmp_path, fails) -> None:
    arguments = ["scenes", "build", str(recipe), "--out", str(tmp_path / "pets"), "--progress", "off"]
    for path in (tmp_path / "dog").glob("*_mask.png"):
        Image.new("L", (80, 64)).save(path)
    fails(arguments, "subject 'dog': no picture in", "empty: nothing in it")
    shutil.rmtree(tmp_path / "dog")
    (tmp_path / "dog").mkdir()
    fails(arguments, "subject 'dog': no picture in", "no picture found")


def test_a_full_disk_ends_the_build_and_loses_nothing(recipe, tmp_path, capsys, build) -> None:
    out = tmp_path / "pets"
    assert build(recipe, out, "--count", "2") == 0
    records = {path.name: path.read_bytes() for path in (out / "layouts").iterdir()}
    limit = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, {resource.RLIM_INFINITY})); "
    program = limit + "from bestiary.trainer.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "scenes", "build", str(recipe), "--out", str(out), "--count", "4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "could not write" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert {path.name: path.read_bytes() for path in (out / "layouts").iterdir()} == records
    assert build(recipe, out, "--count", "4") == 0
    assert "4 scenes, 2 of them new" in capsys.readouterr().out


def test_files_without_a_licence_are_refused_before_anything_is_cut(recipe, tmp_path, fails, build) -> None:
    sources = tmp_path / "sources.toml"
    sources.write_text('["cat/0.png"]\nlicence = "CC0"\nauthor = "Ann"\n')
    recipe.write_text(f'sources = "{sources}"\nrequire_licence = true\n' + recipe.read_text())
    arguments = ["scenes", "build", str(recipe), "--out", str(tmp_path / "pets"), "--progress", "off"]
    fails(arguments, "no licence is given for", "cat/1.png")
    sources.write_text('[default]\nlicence = "CC BY 4.0"\n')
    assert build(recipe, tmp_path / "pets") == 0
    assert "CC BY 4.0" in (tmp_path / "pets/README.md").read_text()


def test_without_mask_and_weights_the_three_ways_are_listed(recipe, tmp_path, fails, monkeypatch) -> None:
    monkeypatch.setattr("bestiary.trainer.scenes.read_subjects.weights_in", lambda folder: None)
    (tmp_path / "dog/0_mask.png").unlink()
    arguments = ["scenes", "build", str(recipe), "--out", str(tmp_path / "pets"), "--progress", "off"]
    fails(arguments, "dog/0.png", "0_mask.png", "transparent", "segmentation", "bestiary import isnet")
