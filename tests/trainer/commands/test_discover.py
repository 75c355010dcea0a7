"""`bestiary discover` and `bestiary parts` as typed: results are where the program says, faults are one line."""

import json
import shutil

import pytest
from bestiary.concepts.part_map import foreground
from bestiary.trainer.__main__ import main
from bestiary.trainer.demo.drawn_masks import draw_pictures
from bestiary.trainer.learning.discovery.discovery_folder import Discovery
from PIL import Image


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    draw_pictures(folder, 12, seed=5)
    return folder / "pictures"


def _options(out, parts: int, kinds: int, progress: str) -> list[str]:
    options = ["--out", out, "--source", "descriptor", "--parts", parts, "--kinds", kinds]
    return list(map(str, [*options, "--device", "cpu", "--progress", progress]))


@pytest.fixture(autouse=True)
def quick_foreground(monkeypatch):
    monkeypatch.setattr(foreground, "_TRAINING_STEPS", 40)


@pytest.fixture(scope="module")
def original(pictures):
    out = pictures.parent / "found"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreground, "_TRAINING_STEPS", 40)
        assert main(["discover", str(pictures), *_options(out, 4, 3, "off")]) == 0
    return out


@pytest.fixture
def found(original, tmp_path):
    return shutil.copytree(original, tmp_path / "found")


def _fault(capsys, *arguments) -> str:
    assert main(list(map(str, arguments))) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("bestiary: ")
    return captured.err


def test_discovery_is_as_asked(found):
    discovery = Discovery.load(found)
    assert len(discovery.image_paths) == 12
    assert len(discovery.codebook.part_names) == 5
    assert (found / "index.html").is_file()
    assert len((found / "captions.txt").read_text().splitlines()) == 12


def test_parts_are_renamed_merged_and_dropped(found, capsys):
    names = [name for name in Discovery.load(found).codebook.part_names if name != "background"]
    assert main(["parts", "rename", str(found), names[0], "beak"]) == 0
    assert main(["parts", "rename", str(found), "beak:0", "long"]) == 0
    assert main(["parts", "merge", str(found), names[1], names[2]]) == 0
    assert main(["parts", "drop", str(found), names[3]]) == 0
    codebook = Discovery.load(found).codebook
    assert set(codebook.part_names) == {"beak", names[1], "background"}
    assert codebook.kind_names[codebook.find_part("beak")] == {0: "long"}
    assert f"{names[2]} joined {names[1]}" in capsys.readouterr().out


def test_names_come_from_a_table(pictures, tmp_path, capsys):
    (tmp_path / "names.toml").write_text("nonsense = [")
    error = _fault(capsys, "discover", pictures, "--out", tmp_path / "o", "--names", tmp_path / "names.toml")
    assert "names.toml" in error


def test_progress_for_programs(pictures, tmp_path, capsys):
    assert main(["discover", str(pictures), *_options(tmp_path / "found", 2, 2, "json")]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == f"open {tmp_path / 'found' / 'index.html'}"
    lines = [json.loads(line) for line in captured.err.splitlines() if line.startswith("{")]
    assert lines[-1]["stage"] == "discover" and lines[-1]["done"] == lines[-1]["total"]


def test_missing_folder(tmp_path, capsys):
    assert "no folder" in _fault(capsys, "discover", tmp_path / "none")


def test_empty_folder(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    error = _fault(capsys, "discover", tmp_path / "empty", "--out", tmp_path / "o", "--source", "descriptor")
    assert "no pictures in" in error and "give a folder" in error


def test_folder_of_broken_pictures(tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    for number in range(3):
        (tmp_path / "broken" / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    options = ["--out", tmp_path / "o", "--source", "descriptor", "--progress", "off"]
    assert "none of 3 pictures could be read" in _fault(capsys, "discover", tmp_path / "broken", *options)


def test_more_kinds_than_pictures(pictures, tmp_path, capsys):
    options = ["--out", tmp_path / "o", "--source", "descriptor", "--kinds", 40, "--device", "cpu", "--progress", "off"]
    error = _fault(capsys, "discover", pictures, *options)
    assert "40" in error and "12" in error


def test_pictures_of_nothing(tmp_path, capsys):
    (tmp_path / "blank").mkdir()
    for number in range(8):
        Image.new("RGB", (128, 128), (120, 120, 120)).save(tmp_path / "blank" / f"{number}.png")
    options = ["--out", tmp_path / "o", "--source", "descriptor", "--kinds", 2, "--device", "cpu", "--progress", "off"]
    assert "foreground" in _fault(capsys, "discover", tmp_path / "blank", *options)


def test_source_without_its_model(pictures, tmp_path, capsys):
    assert "--base" in _fault(capsys, "discover", pictures, "--out", tmp_path / "o", "--source", "diffusion")


def test_place_that_cannot_be_written_to(pictures, tmp_path, capsys):
    (tmp_path / "file").touch()
    options = ["--out", tmp_path / "file" / "o", "--source", "descriptor", "--kinds", 2, "--device", "cpu"]
    assert str(tmp_path / "file") in _fault(capsys, "discover", pictures, *options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rename", "antler", "horn"], "antler"),
        (["merge", "background", "background:0"], "background"),
        (["drop", "background"], "background"),
        (["drop", "wing:99"], "wing"),
    ],
)
def test_wrong_parts_leave_the_discovery_as_it_was(found, capsys, arguments, message):
    before = {path.name: path.read_bytes() for path in found.iterdir() if path.is_file()}
    assert message in _fault(capsys, "parts", arguments[0], found, *arguments[1:])
    assert {path.name: path.read_bytes() for path in found.iterdir() if path.is_file()} == before


def test_parts_of_a_folder_without_discovery(tmp_path, capsys):
    assert "no discovery" in _fault(capsys, "parts", "drop", tmp_path, "wing")
