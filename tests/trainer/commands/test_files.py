"""`bestiary import`, `export` and `inspect` as typed; hostile and broken files are one line and run nothing."""

import json
import pickle
import struct

import pytest
import torch
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.trainer.__main__ import main


@pytest.fixture
def dictionary(tmp_path):
    rows = torch.tensor([[0, 3], [1, 0]])
    names = ({3: "cardinal"}, {})
    made = PartDictionary("sd15", ("head", "wing"), names, None, rows, {"clip_l": torch.randn(2, 768)})
    made.save(tmp_path / "birds.safetensors")
    return tmp_path / "birds.safetensors"


def _fault(capsys, *arguments) -> str:
    assert main(list(map(str, arguments))) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("bestiary: ")
    return captured.err


def test_inspect_tells_what_a_dictionary_holds(dictionary, capsys):
    assert main(["inspect", str(dictionary)]) == 0
    text = capsys.readouterr().out
    assert "sd15" in text and "head" in text and "cardinal" in text


def test_inspect_for_programs(dictionary, capsys):
    assert main(["inspect", str(dictionary), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(dictionary)


def test_export_writes_what_it_names(dictionary, tmp_path, capsys):
    assert main(["export", str(dictionary), "--out", str(tmp_path / "exported")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.startswith("wrote ") for line in lines)
    assert all(path.exists() for path in map(type(tmp_path), (line.removeprefix("wrote ") for line in lines)))


def test_export_to_a_place_that_cannot_be_written_to(dictionary, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in _fault(capsys, "export", dictionary, "--out", tmp_path / "file" / "here")


class _Hostile:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self):
        return open, (self.mark, "w")


@pytest.mark.parametrize("command", [["inspect"], ["import", "partcraft"]])
def test_hostile_pickle_runs_nothing(command, tmp_path, capsys):
    mark = tmp_path / "was-run"
    torch.save({"embedding.weight": _Hostile(str(mark))}, tmp_path / "mapper.pth")
    error = _fault(capsys, *command, tmp_path / "mapper.pth")
    assert not mark.exists()
    assert "open" in error and "mapper.pth" in error


def test_bare_hostile_pickle_runs_nothing(tmp_path, capsys):
    mark = tmp_path / "was-run"
    (tmp_path / "mapper.bin").write_bytes(pickle.dumps(_Hostile(str(mark))))
    _fault(capsys, "import", "partcraft", tmp_path / "mapper.bin")
    assert not mark.exists()


@pytest.mark.parametrize("command", [["inspect"], ["export"], ["compose"]])
def test_giant_header_is_refused_at_once(command, tmp_path, capsys):
    path = tmp_path / "giant.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    extra = ["<head:0>"] if command == ["compose"] else []
    assert "giant.safetensors" in _fault(capsys, *command, path, *extra)


@pytest.mark.parametrize("content", [b"", b"\x00" * 4, b"not a tensor file at all, but long enough to have a header"])
def test_broken_files_are_one_line(content, tmp_path, capsys):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    for command in (["inspect"], ["export"], ["import", "partcraft"]):
        assert "broken.safetensors" in _fault(capsys, *command, path)


def test_missing_files_say_what_is_there(dictionary, capsys):
    error = _fault(capsys, "export", dictionary.with_name("bird.safetensors"))
    assert "no file" in error and "birds.safetensors" in error


def test_an_export_replaces_nothing_of_another(dictionary, tmp_path, capsys):
    arguments = ["export", str(dictionary), "--out", str(tmp_path / "made")]
    assert main(arguments) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "made").rglob("*") if path.is_file()}
    # the same once more is the same, something else is refused as a whole
    assert main(arguments) == 0
    other = PartDictionary.load(dictionary)
    PartDictionary("sd15", other.part_names, other.kind_names, None, other.rows, {"clip_l": torch.randn(2, 768)}).save(
        tmp_path / "other.safetensors"
    )
    assert "is there already and is another file: choose another --out" in _fault(
        capsys, "export", tmp_path / "other.safetensors", "--out", tmp_path / "made"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "made").rglob("*") if path.is_file()} == before
    assert not [path for path in (tmp_path / "made").iterdir() if path.name.startswith(".")]


def test_an_export_is_named_like_its_concept(dictionary, tmp_path):
    dictionary.rename(tmp_path / "my birds.v2.spectrum.safetensors")
    assert main(["export", str(tmp_path / "my birds.v2.spectrum.safetensors")]) == 0
    assert (tmp_path / "my birds.v2").is_dir()


def test_an_import_never_replaces_its_source(tmp_path, capsys):
    from safetensors.torch import save_file

    source = tmp_path / "my.cat.v2.safetensors"
    save_file({"emb_params": torch.ones(2, 768)}, source)
    before = source.read_bytes()
    assert main(["import", "textual-inversion", str(source), "--out", str(source)]) == 0
    assert source.read_bytes() == before and (tmp_path / "my.cat.v2_2.safetensors").is_file()
    assert main(["import", "textual-inversion", str(source), "--out", str(tmp_path / "new")]) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["my.cat.v2.spectrum.safetensors"]
