"""Reading pickled tensors of strangers without running a line of theirs.

`load_tensors` is for files of weights. `load_inert` is for files that hold objects besides tensors, such as the k-means of
kamwoh/partcraft @ dfe64e1 (torchpq and cupy classes): a short list of names is allowed, classes of those two libraries become
inert shells that only keep their attributes, and every other name in the file is listed and refused. Both use a pickle machine
of their own (inert_pickle.py): nothing of this process can be reached from a file, and what a file may cost is bounded.
"""

import io
import struct
import sys
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ..errors import BestiaryError
from .inert_pickle import Budget, InertMachine, Name, PickleFault, check_extent
from .inert_pickle import Shell as Shell
from .inert_tensors import STORAGES, VALUE_NAMES, make_builders
from .wrong_download import wrong_download

SHELL_LIBRARIES = ("torchpq", "cupy")
"""Libraries whose classes are read as inert shells; they are never imported."""
SHELL_CLASSES = ("torch.nn.modules.container.ParameterDict", "torch.nn.modules.container.ParameterList")
"""Containers of parameters, as the first textual inversions were saved in; read as shells wherever they occur."""
LARGEST_FILE = 8 << 30
"""Bytes; larger pickles are refused unread."""
LARGEST_PICKLE = 32 << 20
"""Bytes of the pickle without the numbers of its tensors."""
LARGEST_DIRECTORY = 8 << 20
"""Bytes of an archive's table of contents."""
SPARE_ROOM = 64 << 20
"""Bytes that may be built besides four times the file's own size."""

_MAGIC = 0x1950A86A20F9469CFC6C
_NOT_READ = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error)


class _Numbers(ABC):
    """The stored numbers of one file, each storage read once."""

    def __init__(self, size: int) -> None:
        self._room = size
        self._stored: dict[str, Tensor] = {}

    def __call__(self, reference: object) -> "Tensor | Name":
        """What a persistent id means: the flat tensor `(n,)` of ("storage", type, key, place, n[, view]), or a class's name."""
        # the oldest files wrap classes of modules with their source code, which nobody reads
        if isinstance(reference, tuple) and reference[:1] == ("module",) and isinstance(reference[1], Name):
            return reference[1]
        if (
            not isinstance(reference, tuple)
            or len(reference) < 5
            or reference[0] != "storage"
            or not isinstance(reference[1], Name)
        ):
            raise PickleFault("it refers to something other than stored data")
        kind, key, count = reference[1], str(reference[2]), reference[4]
        dtype = STORAGES.get(kind.name) if kind.module in ("torch", "torch.storage") else None
        if dtype is None or not isinstance(count, int) or not 0 <= count < 1 << 48:
            raise PickleFault(f"it holds numbers of an unknown type, {kind}")
        if key not in self._stored:
            # never more than the file itself has
            self._room -= count * dtype.itemsize
            if self._room < 0:
                raise PickleFault("it declares more data than it contains")
            self._stored[key] = torch.empty(count, dtype=dtype)
            self._read(key, self._stored[key])
        flat = self._stored[key]
        if len(flat) != count or flat.dtype != dtype:
            raise PickleFault(f"it describes the numbers {key[:40]!r} in two ways")
        return flat

    @abstractmethod
    def _read(self, key: str, flat: Tensor) -> None:
        """Fill the storage `(n,)` called `key`."""


class _ArchiveNumbers(_Numbers):
    """Each storage is an entry of the archive, since torch 1.6."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, size: int) -> None:
        super().__init__(size)
        self._archive, self._folder = archive, folder

    def _read(self, key: str, flat: Tensor) -> None:
        try:
            entry = self._archive.getinfo(f"{self._folder}data/{key}")
        except KeyError:
            raise PickleFault(f"it lacks the numbers {key[:40]!r}") from None
        if entry.file_size != flat.numel() * flat.element_size():
            raise PickleFault(f"the numbers {key[:40]!r} take {entry.file_size:,} bytes, not the declared number")
        with self._archive.open(entry) as stream:
            _fill(cast(io.BufferedIOBase, stream), flat)  # a ZipExtFile is one, its stubs only say IO[bytes]


class _TrailingNumbers(_Numbers):
    """All storages follow the pickles, before torch 1.6."""

    def _read(self, key: str, flat: Tensor) -> None:
        """Their place is known only when every pickle has been read."""

    def read_all(self, stream: io.BufferedIOBase, keys: object) -> None:
        """Fill the storages in the order of `keys`, each with its length before it."""
        if not isinstance(keys, list) or {str(key) for key in keys} != self._stored.keys():
            raise PickleFault("its list of numbers contradicts its tensors")
        for key in keys:
            flat = self._stored[str(key)]
            if struct.unpack("<q", stream.read(8))[0] != len(flat):
                raise PickleFault(f"the numbers {str(key)[:40]!r} do not have the declared length")
            _fill(stream, flat)


def _fill(stream: io.BufferedIOBase, flat: Tensor) -> None:
    """Read the bytes of `flat` `(n,)`."""
    view = flat.view(torch.uint8).numpy().data if len(flat) else memoryview(b"")
    while len(view):
        count = stream.readinto(view)
        if not count:
            raise PickleFault("it is truncated")
        view = view[count:]


def load_inert(path: Path, shells: Collection[str] = ()) -> object:
    """The content of a torch file: containers, numbers, text, tensors on the CPU, and shells for torchpq and cupy objects.

    Arrays of numpy become tensors, names stay names.

    Args:
        path: the file.
        shells: further classes, `module.Name` in full, whose objects are read as shells too; nothing of them is imported.

    Raises:
        BestiaryError: the file names anything else (all such names are listed), costs too much, or is broken.
    """
    path, refused = Path(path), set()
    known = frozenset((*SHELL_CLASSES, *shells))
    size, is_archive = _check_container(path)
    budget = Budget(room=4 * size + SPARE_ROOM)
    try:
        with path.open("rb") as stream:
            read = _read_archive if is_archive else _read_stream
            content = read(stream, size, budget, known, refused)
        if not refused:
            check_extent(content)
            return content
    except (PickleFault, *_NOT_READ) as fault:
        # a shell in the place of a function often breaks the read; the list of names says more than that fault
        if not refused:
            reason = fault if isinstance(fault, PickleFault) else "its parts do not fit together"
            raise BestiaryError(f"{path} is not a readable torch file: {reason}; download it again") from fault
    except OSError as fault:
        raise BestiaryError(f"could not read {path}: {fault.strerror or fault}") from fault
    raise BestiaryError(
        f"{path} was not loaded: it asks for {', '.join(sorted(refused)[:20])}, which files of tensors do not need. "
        "Such a file can execute code; use a safetensors version or ask its author for one"
    )


def _read_archive(
    stream: io.BufferedIOBase, size: int, budget: Budget, shells: frozenset[str], refused: set[str]
) -> object:
    with zipfile.ZipFile(stream) as archive:
        (entry,) = (one for one in archive.infolist() if one.filename.endswith("/data.pkl"))
        folder = entry.filename.removesuffix("data.pkl")
        if entry.file_size > LARGEST_PICKLE:
            raise PickleFault(f"its pickle has {entry.file_size:,} bytes, more than {LARGEST_PICKLE:,}")
        if f"{folder}byteorder" in archive.namelist():
            with archive.open(f"{folder}byteorder") as order:
                _check_order(order.read(6) == sys.byteorder.encode())
        numbers = _ArchiveNumbers(archive, folder, size + SPARE_ROOM)
        return _machine(archive.read(entry), numbers, budget, shells, refused).run()


def _read_stream(
    stream: io.BufferedIOBase, size: int, budget: Budget, shells: frozenset[str], refused: set[str]
) -> object:
    numbers = _TrailingNumbers(size)
    machine = _machine(stream.read(LARGEST_PICKLE), numbers, budget, shells, refused)
    # a number that says what it is, a version, the machine it was written on
    magic = machine.run()
    if magic != _MAGIC:
        raise PickleFault("it is a pickle that was not written by torch")
    machine.run()
    about = machine.run()
    _check_order(not isinstance(about, Mapping) or about.get("little_endian", True) == (sys.byteorder == "little"))
    content, keys = machine.run(), machine.run()
    stream.seek(machine.place)
    numbers.read_all(stream, keys)
    return content


def _check_order(fits: bool) -> None:
    if not fits:
        raise PickleFault("its numbers are stored in another byte order than this machine's")


def _machine(
    content: bytes, numbers: _Numbers, budget: Budget, shells: frozenset[str], refused: set[str]
) -> InertMachine:
    machine = InertMachine(
        content=content,
        builders=make_builders(lambda: machine, budget),
        is_shell=lambda full: full in shells or full.split(".")[0] in SHELL_LIBRARIES,
        is_value=VALUE_NAMES.__contains__,
        persistent=numbers,
        budget=budget,
        refused=refused,
    )
    return machine


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A flat dictionary of tensors from a `.bin`, `.pt` or `.pth` file.

    Raises:
        BestiaryError: the file needs more than tensors, holds something else, or is broken.
    """
    content = load_inert(path)
    # a file of weights is a table of named tensors
    tensors = {str(name): value for name, value in content.items()} if isinstance(content, Mapping) else {}
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise BestiaryError(f"{path} holds {_described(content)}, expected a table of named tensors")
    return tensors


def tensors_in(content: object, depth: int = 12) -> Iterator[tuple[str, Tensor]]:
    """Dotted path and tensor, of any shape, for every tensor in nested containers and shells, to a depth that ends cycles."""
    if isinstance(content, Tensor):
        yield "", content
        return
    # a shell is searched like a dictionary of its attributes
    if isinstance(content, Shell):
        content = content.__dict__
    if depth and isinstance(content, Mapping | list | tuple):
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        for name, value in items:
            for path, tensor in tensors_in(value, depth - 1):
                yield f"{name}.{path}".removesuffix("."), tensor


def _check_container(path: Path) -> tuple[int, bool]:
    """Size and whether it is an archive; refuses folders, too large files, TorchScript programs and other files."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(512)
            # before torch's own two forms: what people have in the place of a model
            if (mistake := wrong_download(start)) is not None:
                raise BestiaryError(f"{path} {mistake}")
            # zip archives since torch 1.6, pickles of protocol 2 and up before
            if start[:2] != b"PK" and start[:1] != b"\x80":
                raise BestiaryError(f"{path} is neither a torch file nor a pickle (it begins with {start[:2]!r})")
            names = _entries_of(stream, size, path) if start[:2] == b"PK" else []
    except OSError as fault:
        raise BestiaryError(f"could not read {path}: {fault.strerror or fault}") from fault
    if size > LARGEST_FILE:
        raise BestiaryError(f"{path} has {size:,} bytes; the limit for pickles is {LARGEST_FILE:,}")
    # programs, not files of tensors
    if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        raise BestiaryError(f"{path} is a TorchScript program, not a file of tensors; it was not loaded")
    return size, start[:2] == b"PK"


def _entries_of(stream: io.BufferedIOBase, size: int, path: Path) -> list[str]:
    """Names in an archive whose table of contents and unpacked size are within bounds."""
    if (length := _directory_bytes(stream, size)) > LARGEST_DIRECTORY:
        raise BestiaryError(f"{path} has a table of contents of {length:,} bytes; the limit is {LARGEST_DIRECTORY:,}")
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
    except (*_NOT_READ, KeyError) as fault:
        raise BestiaryError(
            f"{path} is not a readable torch file: its archive is damaged or truncated; download it again"
        ) from fault
    # torch packs nothing: entries that claim more than the file has are a trap
    if (unpacked := sum(entry.file_size for entry in entries)) > size + SPARE_ROOM:
        raise BestiaryError(
            f"{path} has {size:,} bytes and would unpack to {unpacked:,}, which no torch file does; it was not loaded"
        )
    return [entry.filename for entry in entries]


def _directory_bytes(stream: io.BufferedIOBase, size: int) -> int:
    """Length of an archive's table of contents as its last record says; 0 where there is none to be found."""
    stream.seek(max(0, size - (1 << 16) - 22))
    tail = stream.read()
    stream.seek(0)
    with suppress(struct.error):
        # ZIP64 archives have a second record, because the first one cannot represent their length
        large, small = tail.rfind(b"PK\x06\x06"), tail.rfind(b"PK\x05\x06")
        length = struct.unpack_from("<I", tail, small + 12)[0] if small >= 0 else 0
        return struct.unpack_from("<Q", tail, large + 40)[0] if length == 0xFFFFFFFF and large >= 0 else length
    return 0


def _described(content: object) -> str:
    if isinstance(content, Mapping):
        odd = [f"{name!r} ({type(value).__name__})" for name, value in content.items() if not isinstance(value, Tensor)]
        return f"a dictionary with {', '.join(odd[:4])}" if odd else "an empty dictionary"
    return f"a {type(content).__name__}"
