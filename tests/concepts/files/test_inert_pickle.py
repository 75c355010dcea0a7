"""Hostile and odd pickles, byte by byte: nothing outside the result changes, and every trap is told soon."""

import collections
import io
import pickle
import struct
import sys
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.safe_pickle import Shell, load_inert, load_tensors, tensors_in
from bestiary.trainer.exchange.import_spectrum import PROSPECT_SHELLS

MARK, STOP = b"(", b"."


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(raw)) + raw


def archive(path: Path, body: bytes, **entries: bytes) -> Path:
    """A torch archive around the opcodes of one value."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + body + STOP)
        for key, content in entries.items():
            file.writestr(f"archive/data/{key}", content)
    return path


def told_soon(path: Path, read: Callable[[Path], object] = load_inert, match: str = "") -> None:
    """Reading is refused after little work: unbounded, each of these takes minutes or many gigabytes."""
    begin = time.process_time()
    with pytest.raises(BestiaryError, match=match) as fault:
        read(path)
    assert time.process_time() - begin < 15
    assert "Error" not in str(fault.value)


ALLOWED = [
    ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"), ("torch", "FloatStorage"),
    ("collections", "OrderedDict"), ("torch.nn.parameter", "Parameter"), ("torch", "Size"), ("builtins", "set"),
    ("torch", "float32"), ("numpy", "dtype"), ("torchpq.clustering", "KMeans"),
]  # fmt: skip


@pytest.mark.parametrize("named", ALLOWED, ids=lambda value: value[1])
def test_state_for_something_allowed_is_refused(tmp_path: Path, named: tuple[str, str]) -> None:
    before = dict(vars(collections.OrderedDict)), torch._utils._rebuild_tensor_v2.__defaults__
    state = b"}" + MARK + text("__defaults__") + b"N" + text("spoilt") + b"K\x01u"
    path = archive(tmp_path / "x.pt", name(*named) + state + b"b")
    with pytest.raises(BestiaryError, match=rf"it tries to modify {named[0]}.{named[1]}"):
        load_inert(path)
    assert (dict(vars(collections.OrderedDict)), torch._utils._rebuild_tensor_v2.__defaults__) == before
    assert not hasattr(torch.FloatStorage, "spoilt") and not hasattr(torch.Size, "spoilt")


def test_state_of_a_dictionary_is_dropped(tmp_path: Path) -> None:
    theirs = torch.nn.Linear(2, 2).state_dict()
    assert theirs._metadata
    torch.save(theirs, tmp_path / "x.pt")
    ours = load_inert(tmp_path / "x.pt")
    assert ours.keys() == theirs.keys() and not hasattr(ours, "_metadata")


def test_names_stay_names(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", b"]" + name("torch", "float32") + b"a" + name("torch", "FloatStorage") + b"a")
    assert [str(value) for value in load_inert(path)] == ["torch.float32", "torch.FloatStorage"]
    # a storage type is a value, and calling it makes nothing but a shell
    path = archive(tmp_path / "y.pt", name("torch", "FloatStorage") + b"K\x05\x85R")
    assert isinstance(load_inert(path), Shell)


def nested(levels: int, wrap: Callable[[bytes], bytes], core: bytes = b"]") -> bytes:
    """Every level holds the one before it twice, through the memo."""
    body = core + b"q\x00"
    for level in range(levels):
        body += wrap(b"h" + bytes([level])) + b"q" + bytes([level + 1])
    return body


TRAPS = {
    "a list that holds itself": b"]q\x00h\x00a",
    "a dictionary that holds itself": b"}q\x00" + text("a") + b"h\x00s",
    "a shell that holds itself": name("torchpq.a", "K") + b")\x81q\x00}" + text("a") + b"h\x00sb",
    "laughs of lists": nested(40, lambda get: b"](" + get + get + b"e"),
    "laughs of tuples": nested(40, lambda get: get + get + b"\x86"),
    "laughs of dictionaries": nested(40, lambda get: b"}(" + text("a") + get + text("b") + get + b"u"),
    "laughs of shells": nested(
        40, lambda get: name("torchpq.a", "K") + b")\x81}(" + text("a") + get + text("b") + get + b"ub"
    ),
    "laughs as a key": b"}" + nested(40, lambda get: get + get + b"\x86", b")") + b"K\x01s",
    "laughs in a set": b"\x8f(" + nested(40, lambda get: get + get + b"\x86", b")") + b"\x90",
    "deep lists": b"]" * 400_000 + b"a" * 399_999,
    "deep shells": (name("torchpq.a", "K") + b")\x81}" + text("a")) * 30_000 + b"N" + b"sb" * 30_000,
    "one wide list, many times": b"](" + b"K\x01" * 1000 + b"eq\x000](" + b"h\x00" * 100_000 + b"e",
    "wide state, many times": (
        b"}(" + b"".join(text(f"n{n}") + b"N" for n in range(5000)) + b"uq\x000" + name("torchpq.a", "K") + b")\x81"
        + b"h\x00b" * 100_000
    ),
    "more steps than anyone needs": b"(" + b"N0" * 1_000_000 + b"t",
    "numbers as large as the file": b"\x8b" + struct.pack("<i", 20_000_000) + b"\x7f" * 20_000_000,
    "keys that collide": b"}(" + b"".join(
        b"\x8a\x0b" + (n * (2**61 - 1)).to_bytes(11, "little") + b"N" for n in range(60_000)
    ) + b"u",
    "numbers as text": b"I" + b"9" * 5_000_000 + b"\n",
    "a text of 2 GiB": b"X" + struct.pack("<I", 2**31) + b"abc",
    "a long name": b"c" + b"a" * 5_000_000 + b"\nb\n",
    "texts encoded again and again": text("x" * 1_000_000) + b"q\x000(" + (
        name("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R"
    ) * 20_000 + b"t",
    "bytes out of a number": name("numpy.core.numeric", "_frombuffer") + b"(J\xff\xff\xff\x7fNNNtR",
    "an array of objects": name("numpy", "dtype") + text("O8") + b"\x89\x88\x87R",
    "nothing": b"",
    "a mark alone": b"(",
    "a value that was never made": b"h\x07",
    "a call of no name": b"K\x01)R",
    "state for a number": b"K\x01}b",
    "something added to text": text("a") + b"Na",
    "an unknown code": b"\xff",
    "an extension": b"\x82\x01",
}  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS)
def test_traps_are_told_soon(tmp_path: Path, trap: str) -> None:
    path = archive(tmp_path / "trap.pt", TRAPS[trap])
    told_soon(path, match="trap.pt is not a readable torch file: ")


TENSOR = name("torch._utils", "_rebuild_tensor_v2") + MARK
STORED = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (STORED + b"K\x00K\x05\x85K\x01\x85\x89N", r"a tensor of shape \[5\] over 4 stored numbers"),
        (STORED + b"K\x01K\x04\x85K\x01\x85\x89N", "over 4 stored numbers"),
        (STORED + b"K\x00J\xff\xff\xff\xff\x85K\x01\x85\x89N", "a negative or very large size"),
        (STORED + b"K\x00\x8a\x07\x00\x00\x00\x00\x00\x00\x01\x85K\x00\x85\x89N", "a negative or very large size"),
        (STORED + b"K\x00J\xff\xff\xff\x7f\x85K\x00\x85\x89N", "many times its size"),
        (STORED + b"K\x00K\x02K\x02\x86K\x01\x85\x89N", "2 axes with 1 steps"),
        (STORED + b"K\x00(" + b"K\x01" * 40 + b"tK\x01\x85\x89N", "more than 16 axes"),
        (b"K\x01K\x00K\x05\x85K\x01\x85\x89N", "a tensor without data"),
        (b"N", "its arguments for _rebuild_tensor_v2 are inconsistent"),
    ],
)
def test_tensors_that_contradict_their_numbers(tmp_path: Path, arguments: bytes, message: str) -> None:
    path = archive(tmp_path / "x.pt", TENSOR + arguments + b"tR", **{"0": struct.pack("<4f", 1, 2, 3, 4)})
    told_soon(path, match=message)


def test_stored_numbers_must_be_there(tmp_path: Path) -> None:
    sound = TENSOR + STORED + b"K\x00K\x04\x85K\x01\x85\x89NtR"
    assert load_inert(archive(tmp_path / "x.pt", sound, **{"0": struct.pack("<4f", 1, 2, 3, 4)})).tolist() == [
        1,
        2,
        3,
        4,
    ]
    told_soon(archive(tmp_path / "a.pt", sound), match="it lacks the numbers '0'")
    told_soon(archive(tmp_path / "b.pt", sound, **{"0": b"123"}), match="take 3 bytes, not the declared number")
    giant = sound.replace(b"K\x04tQ", b"\x8a\x06\x00\x00\x00\x00\x00\x10tQ")
    told_soon(archive(tmp_path / "c.pt", giant), match="more data than it contains")
    strange = sound.replace(b"FloatStorage", b"QInt8Storage")
    told_soon(archive(tmp_path / "d.pt", strange), match="asks for torch.QInt8Storage")


def test_archives_that_unpack_to_more(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("archive/data.pkl", b"\x80\x02N.")
        with file.open("archive/data/0", "w") as entry:
            for _ in range(200):
                entry.write(bytes(1 << 20))
    told_soon(path, match="bytes and would unpack to 209,715,204, which no torch file does")
    wide = tmp_path / "wide.pt"
    with zipfile.ZipFile(wide, "w") as file:
        for number in range(40_000):
            file.writestr(f"archive/{'n' * 200}{number}", b"")
    told_soon(wide, match="a table of contents of .* bytes; the limit is 8,388,608")


def test_texts_that_are_no_utf8(tmp_path: Path) -> None:
    keys = b"U\x03a\xff\xfeN" + b"X\x03\x00\x00\x00\xed\xa0\x80K\x01" + b"T\x02\x00\x00\x00\xc3\xa9K\x02"
    content = load_inert(archive(tmp_path / "x.pt", b"}(" + keys + b"u"))
    assert list(content) == ["a\\xff\\xfe", "\\xed\\xa0\\x80", "é"]
    "".join(content).encode()


def test_containers_of_parameters(tmp_path: Path) -> None:
    vectors = torch.nn.Parameter(torch.randn(2, 8))
    torch.save({"a": torch.nn.ParameterDict({"*": vectors}), "b": torch.nn.ParameterList([vectors])}, tmp_path / "x.pt")
    found = dict(tensors_in(load_inert(tmp_path / "x.pt")))
    assert found and all(torch.equal(tensor, vectors) for tensor in found.values())
    assert {path.split(".")[0] for path in found} == {"a", "b"}


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2", "<f8", "<i8", "|u1", "?"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_become_tensors(tmp_path: Path, kind: str, protocol: int) -> None:
    theirs = np.arange(12).reshape(3, 4).astype(kind)
    body = pickle.dumps({"a": theirs, "again": theirs, "f": np.asfortranarray(theirs), "n": np.float32(1.5)}, protocol)
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("archive/data.pkl", body)
    ours = load_inert(tmp_path / "x.pt")
    for key in ("a", "again", "f"):
        assert ours[key].tolist() == theirs.tolist()
    assert ours["a"] is ours["again"] and ours["n"] == 1.5


def test_tensors_of_other_machines(tmp_path: Path) -> None:
    class Elsewhere:
        """Pickles as torch 1.12 wrote tensors of Apple GPUs."""

        def __reduce__(self) -> tuple:
            rebuild = torch._utils._rebuild_device_tensor_from_numpy
            return rebuild, (np.full((2, 3), 0.5, np.float32), torch.float16, "mps:0", False)

    torch.save({"emb": Elsewhere()}, tmp_path / "x.pt")
    ours = load_tensors(tmp_path / "x.pt")["emb"]
    assert ours.dtype == torch.float16 and ours.device.type == "cpu" and ours.tolist() == [[0.5] * 3] * 2
    # since torch 2 the storage itself says where it was
    stream = io.BytesIO()
    torch.save(torch.ones(3), stream)
    moved = stream.getvalue().replace(b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00mps")
    # an archive's checksums would not fit: only the pickle is taken out of it
    with zipfile.ZipFile(io.BytesIO(stream.getvalue())) as source, zipfile.ZipFile(tmp_path / "y.pt", "w") as file:
        for entry in source.infolist():
            file.writestr(entry.filename, source.read(entry).replace(b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00mps"))
    assert moved != stream.getvalue()
    assert load_inert(tmp_path / "y.pt").tolist() == [1, 1, 1]


@pytest.mark.parametrize("modern", [True, False])
def test_ours_and_theirs(tmp_path: Path, modern: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    theirs = {
        "views": [base, base[1:3, ::2], base.T, base[0, 0]], "empty": torch.zeros(0, 3), "size": base.shape,
        "half": base.half(), "bf16": base.bfloat16(), "bool": base > 3, "complex": base.to(torch.complex64),
        "long": base.long(), "u8": base.byte(), "parameter": torch.nn.Parameter(base), "none": None, "set": {1, 2},
        "numbers": (1, -5, 2**40, -(2**70), 1.5, True), "text": "é\U0001f989", "bytes": b"\x00\xff",
        "ordered": collections.OrderedDict(a=1), "many": list(range(3000)),
    }  # fmt: skip
    torch.save(theirs, tmp_path / "x.pt", _use_new_zipfile_serialization=modern)
    ours = load_inert(tmp_path / "x.pt")
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(ours[key], value) and ours[key].dtype == value.dtype
        elif key == "views":
            assert all(torch.equal(*pair) for pair in zip(ours[key], value, strict=True))
        else:
            assert ours[key] == value
    assert not ours["parameter"].requires_grad


@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no 8-bit floats")
def test_types_that_only_new_files_have(tmp_path: Path) -> None:
    theirs = {"a": torch.ones(3).to(torch.float8_e4m3fn), "b": torch.ones(3, dtype=torch.uint16)}
    torch.save(theirs, tmp_path / "x.pt")
    ours = load_inert(tmp_path / "x.pt")
    assert ours["a"].dtype == torch.float8_e4m3fn and ours["a"].float().tolist() == [1, 1, 1]
    assert ours["b"].dtype == torch.uint16


def test_tensors_with_attributes_of_their_own(tmp_path: Path) -> None:
    theirs = torch.ones(2)
    theirs.note = "hello"
    torch.save({"a": theirs}, tmp_path / "x.pt")
    assert load_inert(tmp_path / "x.pt")["a"].tolist() == [1, 1]


def test_files_of_large_trainings_are_within_the_bounds(tmp_path: Path) -> None:
    torch.save({f"layer.{number}": torch.zeros(2) for number in range(10_000)}, tmp_path / "x.pt")
    begin = time.perf_counter()
    assert len(load_tensors(tmp_path / "x.pt")) == 10_000
    assert time.perf_counter() - begin < 30


def test_modules_read_as_shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.ModuleType("ldm.modules.attention")
    library.FeedForward = type("FeedForward", (torch.nn.Module,), {"__module__": library.__name__})
    for module in ("ldm", "ldm.modules", library.__name__):
        monkeypatch.setitem(sys.modules, module, library)
    model = library.FeedForward()
    model.net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU())
    torch.save(model, tmp_path / "x.pt")
    ours = load_inert(tmp_path / "x.pt", PROSPECT_SHELLS)
    assert torch.equal(ours._modules["net"]._modules["0"]._parameters["weight"], model.net[0].weight)
