"""What pickles of tensors and arrays may build: tensors over stored numbers, arrays, and plain containers.

The names are those that torch 0.4 to 2.14 and numpy 1 and 2 write; each stands for a function here, never for theirs.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .inert_pickle import Budget, Builder, InertMachine, Name, PickleFault, StandIn, checked_key

STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
    "storage.UntypedStorage": torch.uint8, "UntypedStorage": torch.uint8,
}  # fmt: skip
"""Names of torch's storages -> type of their numbers."""
_TYPES = (
    "float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool complex64 complex128 half float "
    "double long int short float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
)
DTYPES = {name: found for name in _TYPES.split() if isinstance(found := getattr(torch, name, None), torch.dtype)}
VALUE_NAMES = frozenset(
    [f"torch.{name}" for name in (*STORAGES, *DTYPES)]
    + ["torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.FloatTensor", "numpy.ndarray"]
    + [f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("dict", "list", "int", "float", "str")]
)
"""Names that files mention without calling them."""
_LARGEST_AXES = 16
_NUMPY_TYPE = re.compile(r"[<>=|]?(?:[biufc](?:1|2|4|8|16)|\?|bool)")


class _Type(StandIn):
    """A numpy type: letter, size, and the byte order that its state adds."""

    def __init__(self, text: object) -> None:
        if not isinstance(text, str) or not _NUMPY_TYPE.fullmatch(text):
            raise PickleFault(f"it holds an array of {str(text)[:40]!r}, which is not a numeric type")
        self.text, self.order = text.lstrip("<>=|"), ""

    def built(self, state: object) -> object:
        order = _state(state)[1]
        if order in ("<", ">"):
            self.order = order
        return self

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.text)


def _state(state: object) -> tuple:
    """The state of a numpy object, which is always a tuple.

    Raises:
        PickleFault: it is something else.
    """
    if not isinstance(state, tuple):
        raise PickleFault(f"it holds an array with a {type(state).__name__} as its state")
    return state


class _Array(StandIn):
    """An array before its numbers are known."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def built(self, state: object) -> object:
        _, shape, kind, by_columns, raw = _state(state)
        return _array(shape, kind, raw, by_columns, self._budget)


def _array(shape: object, kind: object, raw: object, by_columns: object, budget: Budget) -> Tensor:
    """A tensor of `shape` out of an array's bytes."""
    if not isinstance(kind, _Type) or not isinstance(raw, bytes):
        raise PickleFault("it holds an array whose numbers are not stored as bytes")
    sizes = _sizes(shape)
    if math.prod(sizes) * kind.dtype.itemsize != len(raw):
        raise PickleFault(f"it holds an array of shape {list(sizes)} in {len(raw):,} bytes")
    budget.take(2 * len(raw))
    numbers = np.frombuffer(raw, kind.dtype).reshape(sizes, order="F" if by_columns else "C")
    return torch.from_numpy(np.ascontiguousarray(numbers, kind.dtype.newbyteorder("=")).copy().reshape(sizes))


def _sizes(values: object) -> tuple[int, ...]:
    """Sizes of axes, or steps along them."""
    if not isinstance(values, tuple | list) or len(values) > _LARGEST_AXES:
        raise PickleFault(f"it holds a tensor of more than {_LARGEST_AXES} axes")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 48 for n in values):
        raise PickleFault("it holds a tensor with a negative or very large size")
    return tuple(values)


def make_builders(machine: Callable[[], InertMachine], budget: Budget) -> dict[str, Builder]:
    """Full name -> builder; all of them take the tuple of arguments that the pickle gives.

    Args:
        machine: the machine they build for, which exists only after its builders do.
        budget: what they may still cost.
    """

    def over_storage(given: tuple, dtype: torch.dtype | None = None) -> Tensor:
        flat, offset, size, stride = given[:4]
        if not isinstance(flat, Tensor):
            raise PickleFault("it holds a tensor without data")
        # storages without a type hold bytes
        if dtype is not None and flat.dtype != dtype:
            flat = flat[: len(flat) // dtype.itemsize * dtype.itemsize].view(dtype)
        (offset,), size, stride = _sizes((offset,)), _sizes(size), _sizes(stride)
        if len(size) != len(stride):
            raise PickleFault(f"it holds a tensor of {len(size)} axes with {len(stride)} steps")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
        if last >= max(len(flat), 1):
            raise PickleFault(f"it holds a tensor of shape {list(size)} over {len(flat):,} stored numbers")
        # steps of 0 make much of little: counted as if copied
        budget.take(count * flat.element_size())
        return flat.as_strided(size, stride, offset) if count else flat.new_empty(size)

    def tensor(given: tuple) -> Tensor:
        if not isinstance(given[0], Tensor):
            raise PickleFault("it holds a parameter that is not a tensor")
        return given[0]

    def of_type(given: tuple) -> Tensor:
        found = given[0]
        dtype = DTYPES.get(given[1].name) if isinstance(given[1], Name) else None
        if not isinstance(found, Tensor) or dtype is None:
            raise PickleFault("it holds a tensor of another device without data")
        budget.take(found.numel() * dtype.itemsize)
        return found.to(dtype)

    def encode(given: tuple) -> bytes:
        if given[1:] != ("latin1",) or not isinstance(given[0], str):
            raise PickleFault("it encodes something that is not text")
        budget.take(len(given[0]))
        return given[0].encode("latin1")

    def scalar(given: tuple) -> object:
        kind, raw = given
        if not isinstance(kind, _Type) or not isinstance(raw, bytes) or len(raw) != kind.dtype.itemsize:
            raise PickleFault("it holds an invalid number")
        return np.frombuffer(raw, kind.dtype)[0].item()

    def mapping(given: tuple) -> OrderedDict:
        pairs = given[0] if given else ()
        return OrderedDict((checked_key(key), value) for key, value in pairs)

    builders: dict[str, Builder] = {
        "collections.OrderedDict": mapping,
        "collections.defaultdict": lambda given: {},
        "torch._utils._rebuild_tensor": over_storage,
        "torch._utils._rebuild_tensor_v2": over_storage,
        "torch._utils._rebuild_tensor_v3": lambda given: over_storage(given, DTYPES[given[6].name]),
        "torch._utils._rebuild_parameter": tensor,
        "torch._utils._rebuild_parameter_with_state": tensor,
        "torch.nn.parameter.Parameter": tensor,
        "torch._utils._rebuild_device_tensor_from_numpy": of_type,
        "torch._utils._rebuild_device_tensor_from_cpu_tensor": of_type,
        "torch._utils._rebuild_xla_tensor": of_type,
        "torch._tensor._rebuild_from_type_v2": lambda given: machine().call(given[0], given[2]),
        "torch.Size": lambda given: _sizes(given[0]),
        "torch.device": lambda given: ":".join(str(part) for part in given)[:40],
        "_codecs.encode": encode,
        "numpy.dtype": lambda given: _Type(given[0]),
    }
    for module in ("numpy.core", "numpy._core"):
        builders[f"{module}.multiarray._reconstruct"] = lambda given: _Array(budget)
        builders[f"{module}.multiarray.scalar"] = scalar
        builders[f"{module}.numeric._frombuffer"] = lambda given: _array(
            given[2], given[1], given[0], given[3] == "F", budget
        )
    for module in ("builtins", "__builtin__"):
        builders[f"{module}.set"] = lambda given: {checked_key(one) for one in given[0]} if given else set()
        builders[f"{module}.frozenset"] = lambda given: frozenset(checked_key(one) for one in given[0])
        builders[f"{module}.bytearray"] = lambda given: bytes(given[0]) if isinstance(given[0], bytes) else b""
    return builders
