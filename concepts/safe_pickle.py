"""Reading pickled tensors of strangers without running a line of theirs.

`load_tensors` is torch's own weights-only reader. `load_inert` is for files that hold objects besides tensors, such as the
k-means of kamwoh/partcraft @ dfe64e1 (torchpq and cupy classes): a short list of names is allowed, classes of those two
libraries become inert shells that only keep their attributes, and every other name in the file is listed and refused.
"""

import collections
import pickle
import re
import types
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .errors import BestiaryError

SHELL_LIBRARIES = ("torchpq", "cupy")
"""Libraries whose classes are read as inert shells; none of them is ever imported."""
LARGEST_FILE = 8 << 30
"""Bytes; larger pickles are refused unread."""

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_REFUSED_READS = (
    pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, TypeError, IndexError, AttributeError,
    ImportError, AssertionError, MemoryError, RecursionError, OverflowError, zipfile.BadZipFile,
)  # fmt: skip


class Shell:
    """What stands in for an object of an unknown class: its attributes, and nothing that runs."""

    def __init__(self, *arguments: object, **named: object) -> None:
        """Arguments are dropped."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, Mapping):
            self.__dict__.update({str(name): value for name, value in state.items()})


def _allowed_names() -> dict[tuple[str, str], Callable[..., object] | type]:
    return {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
        ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
        ("torch", "Size"): torch.Size,
        ("torch", "device"): torch.device,
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
    }


_STORAGES = {
    f"{kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
}


class _RestrictedUnpickler(pickle.Unpickler):
    """Resolves allowed names; everything else becomes a shell and is noted."""

    refused: set[str]
    shells: frozenset[str]

    def find_class(self, module: str, name: str) -> object:
        """The object a pickle names by module and name; called by pickle."""
        allowed = _allowed_names().get((module, name))
        if allowed is not None:
            return allowed
        if module == "torch" and name in _STORAGES:
            return getattr(torch, name)
        # noted and replaced, not raised: so that the message can list every name at once
        if module.split(".")[0] not in SHELL_LIBRARIES and f"{module}.{name}" not in self.shells:
            self.refused.add(f"{module}.{name}")
        # a class of its own each time: attributes of one shell class never reach another
        return type("Shell", (Shell,), {})


def _pickle_module(refused: set[str], shells: frozenset[str]) -> types.ModuleType:
    """A stand-in for the module `pickle` as torch.load uses it."""
    module = types.ModuleType("restricted_pickle")
    # torch asks the module for its Unpickler: this one notes what it is asked for
    bound = type("Unpickler", (_RestrictedUnpickler,), {"refused": refused, "shells": shells})

    def load(stream: object, **options: object) -> object:
        return bound(stream, **options).load()

    module.Unpickler, module.load = bound, load
    module.UnpicklingError = pickle.UnpicklingError
    return module


def load_inert(path: Path, shells: Collection[str] = ()) -> object:
    """The content of a torch file: containers, numbers, text, tensors on the CPU, and shells for torchpq and cupy objects.

    Args:
        path: the file.
        shells: further classes, `module.Name` in full, whose objects are read as shells too; nothing of them is imported.

    Raises:
        BestiaryError: the file names anything else (all such names are listed), or is broken.
    """
    _check_container(path)
    # never weights_only=False alone: torch would import and call whatever the file names
    refused: set[str] = set()
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=False, pickle_module=_pickle_module(refused, frozenset(shells))
        )
    except _REFUSED_READS as fault:
        if not refused:
            raise BestiaryError(f"{path} is no readable torch file ({_short(fault)}); fetch it again") from fault
        # a shell in the place of a function often breaks the read; the list of names says more than that fault
        content = None
    if refused:
        raise BestiaryError(
            f"{path} was not loaded: it asks for {', '.join(sorted(refused)[:20])}, and none of these is needed for tensors. "
            "Such a file can run programs; get a safetensors version or ask its author"
        )
    return content


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A flat dictionary of tensors from a `.bin`, `.pt` or `.pth` file, by torch's weights-only reader.

    Raises:
        BestiaryError: the file needs more than tensors, holds something else, or is broken.
    """
    _check_container(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:
        named = _GLOBAL.search(str(fault))  # torch's own advice, to switch its protection off, is not passed on
        reason = f"it asks for {named[1]}" if named else "torch's safe reader refuses it"
        raise BestiaryError(
            f"{path} was not loaded: {reason}, which is not needed for tensors, or it is broken. "
            "Such a file can run programs; get a safetensors version or ask its author"
        ) from fault
    except _REFUSED_READS as fault:
        raise BestiaryError(f"{path} is no readable torch file ({_short(fault)}); fetch it again") from fault
    # names with a tensor each: anything else is no file of weights
    tensors = {str(name): value for name, value in content.items()} if isinstance(content, Mapping) else {}
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise BestiaryError(f"{path} holds {_described(content)}, expected names with a tensor each")
    return {name: value.detach() for name, value in tensors.items()}


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


def _check_container(path: Path) -> None:
    """Refuse folders, giants, TorchScript programs and what is no torch file at all."""
    try:
        size = Path(path).stat().st_size
        with Path(path).open("rb") as stream:
            start = stream.read(2)
        names = zipfile.ZipFile(path).namelist() if start == b"PK" else []
    except zipfile.BadZipFile as fault:
        raise BestiaryError(f"{path} is no readable torch file ({fault}); fetch it again") from fault
    except OSError as fault:
        raise BestiaryError(f"could not read {path}: {fault.strerror or fault}") from fault
    # before torch sees it
    if size > LARGEST_FILE:
        raise BestiaryError(f"{path} has {size:,} bytes; pickles beyond {LARGEST_FILE:,} are refused")
    # zip archives since torch 1.6, pickles of protocol 2 and up before
    if start != b"PK" and start[:1] != b"\x80":
        raise BestiaryError(f"{path} is neither a torch file nor a pickle (it begins with {start!r})")
    # torch.load would hand these to the TorchScript loader, past the restricted unpickler
    if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        raise BestiaryError(f"{path} is a TorchScript program, not a file of tensors; it was not loaded")


def _described(content: object) -> str:
    if isinstance(content, Mapping):
        odd = [f"{name!r} ({type(value).__name__})" for name, value in content.items() if not isinstance(value, Tensor)]
        return f"a dictionary with {', '.join(odd[:4])}" if odd else "an empty dictionary"
    return f"a {type(content).__name__}"


def _short(fault: BaseException) -> str:
    lines = str(fault).strip().splitlines()
    return f"{type(fault).__name__}: {lines[0][:200]}" if lines else type(fault).__name__
