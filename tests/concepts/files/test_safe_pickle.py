"""Pickles of strangers: tensors come out, nothing runs."""

import collections
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.safe_pickle import Shell, load_inert, load_tensors, tensors_in


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


class TwoBombs:
    def __reduce__(self) -> tuple:
        return eval, ("__import__('os')",)


@pytest.fixture
def torchpq(monkeypatch: pytest.MonkeyPatch) -> type:
    """A stand-in library while writing; it is gone when reading."""
    module = types.ModuleType("torchpq.clustering.KMeans")
    module.KMeans = type("KMeans", (torch.nn.Module,), {"__module__": module.__name__})
    for name in ("torchpq", "torchpq.clustering"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.KMeans


def kmeans(kind: type, centroids: torch.Tensor) -> torch.nn.Module:
    model = kind()
    model.n_redo = 5
    model.register_buffer("centroids", centroids)
    return model


@pytest.mark.parametrize("modern", [True, False])
def test_kmeans_objects_become_shells(tmp_path: Path, torchpq: type, modern: bool, monkeypatch) -> None:
    coarse = torch.randn(6, 8)
    path = tmp_path / "pretrained_kmeans.pth"
    content = {"coarse_kmeans": kmeans(torchpq, coarse), "fine_kmeans": [kmeans(torchpq, torch.ones(6, 3))]}
    torch.save(content, path, _use_new_zipfile_serialization=modern)
    for name in [name for name in sys.modules if name.startswith("torchpq")]:
        monkeypatch.delitem(sys.modules, name)
    ours = load_inert(path)
    assert isinstance(ours["coarse_kmeans"], Shell)
    assert torch.equal(ours["coarse_kmeans"]._buffers["centroids"], coarse)
    assert ours["coarse_kmeans"].n_redo == 5
    assert dict(tensors_in(ours)).keys() == {"coarse_kmeans._buffers.centroids", "fine_kmeans.0._buffers.centroids"}
    assert "torchpq" not in sys.modules


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("load", [load_inert, load_tensors])
def test_a_bomb_runs_nothing(tmp_path: Path, modern: bool, load) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "bomb.bin"
    torch.save({"a": torch.zeros(1), "b": Bomb(f"touch {marker}")}, path, _use_new_zipfile_serialization=modern)
    with pytest.raises(BestiaryError, match=r"bomb.bin was not loaded: it .*(posix|nt)\.system"):
        load(path)
    assert not marker.exists()


def test_all_refused_names_are_listed(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "two.bin"
    torch.save([Bomb(f"touch {marker}"), TwoBombs(), pickle.Unpickler], path)
    with pytest.raises(
        BestiaryError, match=r"asks for (__builtin__|builtins).eval, _?pickle.Unpickler, (nt|posix).system"
    ):
        load_inert(path)
    assert not marker.exists()


def test_a_bare_pickle_runs_nothing_either(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "bare.pth"
    path.write_bytes(pickle.dumps(Bomb(f"touch {marker}")))
    for load in (load_inert, load_tensors):
        with pytest.raises(BestiaryError, match="bare.pth"):
            load(path)
    assert not marker.exists()


def test_names_of_allowed_modules_are_not_allowed_as_such(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"hook": torch.load}, path)
    with pytest.raises(BestiaryError, match="asks for torch.serialization.load"):
        load_inert(path)


def test_tensor_files_load(tmp_path: Path) -> None:
    theirs = collections.OrderedDict(a=torch.randn(2, 3), b=torch.nn.Parameter(torch.ones(2)))
    for modern in (True, False):
        torch.save(theirs, tmp_path / "x.bin", _use_new_zipfile_serialization=modern)
        ours = load_tensors(tmp_path / "x.bin")
        assert torch.equal(ours["a"], theirs["a"])
        assert not ours["b"].requires_grad


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, expected a table of named tensors"),
        ({}, "holds an empty dictionary"),
        ({"a": torch.zeros(1), "epoch": 3}, r"holds a dictionary with 'epoch' \(int\)"),
    ],
)
def test_other_content_is_described(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(BestiaryError, match=message):
        load_tensors(tmp_path / "x.bin")


@pytest.mark.parametrize("load", [load_inert, load_tensors])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02", b"PK\x03\x04broken", b"\x80\x05\x95" + b"\xff" * 40])
def test_broken_files_are_refused(tmp_path: Path, content: bytes, load) -> None:
    path = tmp_path / "broken.bin"
    path.write_bytes(content)
    with pytest.raises(BestiaryError, match="broken.bin"):
        load(path)


def test_programs_folders_and_giants_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program.pt"
    with zipfile.ZipFile(program, "w") as archive:
        archive.writestr("x/data.pkl", b"")
        archive.writestr("x/code/__torch__.py", b"")
    with pytest.raises(BestiaryError, match="program.pt is a TorchScript program"):
        load_inert(program)
    with pytest.raises(BestiaryError, match="could not read"):
        load_tensors(tmp_path / "gone")
    with pytest.raises(BestiaryError, match="could not read"):
        load_inert(tmp_path)
    monkeypatch.setattr("bestiary.concepts.files.safe_pickle.LARGEST_FILE", 10)
    torch.save({"a": torch.zeros(1)}, tmp_path / "big.bin")
    with pytest.raises(BestiaryError, match="bytes; the limit for pickles is 10"):
        load_tensors(tmp_path / "big.bin")


def test_cyclic_content_ends() -> None:
    loop: list = [torch.zeros(1)]
    loop.append(loop)
    assert 1 <= len(list(tensors_in(loop))) < 20
