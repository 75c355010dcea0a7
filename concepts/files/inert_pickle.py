"""A pickle machine that can build only what it was given builders for, and that stops before a file costs much.

Opcodes are those of protocols 2 to 5 (CPython, Lib/pickletools.py). Names are values and are never called: what a pickle
asks for by name is looked up in a table of builders of ours, or becomes a shell. State is accepted by shells and other
stand-ins alone, so nothing outside the result can be changed. Opcodes, bytes, depth and size are bounded.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

MOST_STEPS = 1 << 20
"""Opcodes and copied entries of one file; a checkpoint of 10,000 tensors takes about 250,000."""
DEEPEST = 64
"""Containers within containers."""
MOST_VALUES = 1 << 19
"""Values in the result, shared ones counted every time they are met."""
LARGEST_NUMBER = 16
"""Bytes of a whole number."""
LARGEST_KEY = 1 << 60
"""Whole numbers as keys end here: beyond, their hashes could be made to collide."""

Builder = Callable[[tuple], object]
Kind = TypeVar("Kind")


class PickleFault(Exception):
    """Reason to refuse a pickle, as text for a message without the name of the file."""


@dataclass(frozen=True)
class Name:
    """A class or function in a pickle, kept as a name and never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Shell:
    """What stands in for an object of an unknown class: its attributes, and nothing that runs."""

    def __init__(self, *arguments: object, **named: object) -> None:
        """Arguments are dropped."""

    def __setstate__(self, state: object) -> None:
        # with slots the state is a pair of dictionaries
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, Mapping):
                self.__dict__.update({str(name): value for name, value in part.items()})


class StandIn:
    """An object of ours that accepts state and then says what it has become."""

    def built(self, state: object) -> object:
        """The finished value."""
        raise NotImplementedError


@dataclass
class Budget:
    """What a file may still cost."""

    room: int
    """Bytes of tensors, arrays and texts that may be built."""
    steps: int = MOST_STEPS

    def step(self, count: int = 1) -> None:
        """Take steps.

        Raises:
            PickleFault: none are left.
        """
        self.steps -= count
        if self.steps < 0:
            raise PickleFault(f"it takes more than {MOST_STEPS:,} steps to read")

    def take(self, count: int) -> None:
        """Take bytes.

        Raises:
            PickleFault: none are left.
        """
        self.room -= count
        if self.room < 0:
            raise PickleFault("it would unpack to many times its size")


@dataclass
class InertMachine:
    """Runs pickles that follow each other in `content`, one for every call of `run`."""

    content: bytes
    builders: Mapping[str, Builder]
    """Full name -> what makes its value from the arguments."""
    is_shell: Callable[[str], bool]
    """Full names whose objects become shells."""
    is_value: Callable[[str], bool]
    """Full names that may stand as values, such as types of numbers."""
    persistent: Callable[[object], object]
    """What a persistent id stands for."""
    budget: Budget
    refused: set[str] = field(default_factory=set)
    """Names the file asked for and did not get."""
    place: int = 0
    """Byte at which the next pickle begins."""

    def run(self) -> object:
        """The next pickle's value.

        Raises:
            PickleFault: it is truncated, asks for more than it may, or is none.
        """
        self._stack: list = []
        self._marks: list[list] = []
        self._memo: dict[int, object] = {}
        # where the memo holds objects that will become something else
        self._waiting: dict[int, list[int]] = {}
        while True:
            self.budget.step()
            code = self._bytes(1)[0]
            if code == 0x2E:  # STOP
                return self._pop()
            handler = _HANDLERS.get(code)
            if handler is None:
                raise PickleFault(f"it holds the unknown code {code:#04x} at byte {self.place - 1:,}")
            handler(self)

    # --- reading ---

    def _bytes(self, count: int) -> bytes:
        piece = self.content[self.place : self.place + count]
        if count < 0 or len(piece) != count:
            raise PickleFault("it is truncated")
        self.place += count
        return piece

    def _number(self, form: str) -> int:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self.content.find(b"\n", self.place, self.place + 1000)
        if end < 0:
            raise PickleFault("it is truncated")
        line = self.content[self.place : end]
        self.place = end + 1
        return _text(line)

    # --- stack ---

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> object:
        if not self._stack:
            raise PickleFault("it reads more values than it contains")
        return self._stack.pop()

    def _top(self, kind: type[Kind]) -> Kind:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise PickleFault("it adds items to something that is not a container")
        return self._stack[-1]

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _items(self) -> list:
        if not self._marks:
            raise PickleFault("it reads more values than it contains")
        items, self._stack = self._stack, self._marks.pop()
        self.budget.step(len(items))
        return items

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)))

    # --- containers ---

    def _append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _appends(self) -> None:
        items = self._items()
        self._top(list).extend(items)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._top(dict)[checked_key(key)] = value

    def _set_items(self) -> None:
        pairs = _pairs(self._items())
        self._top(dict).update(pairs)

    def _add_items(self) -> None:
        members = _members(self._items())
        self._top(set).update(members)

    # --- memo ---

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise PickleFault(f"it refers to value {index:,}, which does not exist")
        self._push(self._memo[index])

    def _put(self, index: int) -> None:
        if not self._stack:
            raise PickleFault("it reads more values than it contains")
        self._memo[index] = value = self._stack[-1]
        if isinstance(value, StandIn):
            self._waiting.setdefault(id(value), []).append(index)

    # --- names and objects ---

    def _named(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleFault("it contains a name that is not text")
        found = Name(module[:200], name[:200])
        full = str(found)
        # noted, not raised: so that the message can list every name at once
        if full not in self.builders and not self.is_shell(full) and not self.is_value(full):
            self.refused.add(full)
        self._push(found)

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._push(self.call(function, arguments))

    def _new_object_with_names(self) -> None:
        self._pop()
        self._reduce()

    def call(self, function: object, arguments: object) -> object:
        """What a name builds from arguments; a shell where no builder is known.

        Raises:
            PickleFault: no name, or arguments that do not fit it.
        """
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise PickleFault("it calls something that is not a name")
        builder = self.builders.get(str(function))
        if builder is None:
            # a class of its own each time: attributes of one shell class never reach another
            return type("Shell", (Shell,), {})()
        self.budget.step(sum(len(one) for one in arguments if isinstance(one, list | tuple | dict | set)))
        try:
            return builder(arguments)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError, RuntimeError, OverflowError) as fault:
            raise PickleFault(f"its arguments for {function.name} are inconsistent") from fault

    def _build(self) -> None:
        state, target = self._pop(), self._pop()
        if isinstance(target, Shell):
            parts = state if isinstance(state, tuple) else (state,)
            self.budget.step(sum(len(part) for part in parts if isinstance(part, Mapping)))
            target.__setstate__(state)
        elif isinstance(target, StandIn):
            try:
                finished = target.built(state)
            except (TypeError, ValueError, IndexError, KeyError, AttributeError, RuntimeError, OverflowError) as fault:
                raise PickleFault("its description of an array is inconsistent") from fault
            # later references must get the finished value
            if finished is not target:
                places = self._waiting.pop(id(target), [])
                self._memo.update({index: finished for index in places if self._memo[index] is target})
            target = finished
        elif not isinstance(target, dict):
            # attributes of dictionaries (`_metadata` of a state) are dropped; nothing else takes any
            raise PickleFault(
                f"it tries to modify {target if isinstance(target, Name) else 'a ' + type(target).__name__}"
            )
        self._push(target)


def checked_key(key: object) -> object:
    """A key of a dictionary or a member of a set: text, bytes, small whole numbers, None.

    Raises:
        PickleFault: any other type, because its hash could be expensive or collide.
    """
    if key is None or isinstance(key, str | bytes | bool) or (isinstance(key, int) and abs(key) < LARGEST_KEY):
        return key
    raise PickleFault(f"it uses a {type(key).__name__} as a key")


def check_extent(value: object) -> None:
    """Make sure that walking through a value ends soon: no cycles, bounded depth, bounded size.

    Raises:
        PickleFault: it does not.
    """
    if _extent(value, DEEPEST, set(), {})[0] > MOST_VALUES:
        raise PickleFault(f"its containers hold more than {MOST_VALUES:,} values, shared ones counted each time")


def _extent(value: object, depth: int, above: set[int], known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Number of values and height, every container measured once."""
    if isinstance(value, Shell):
        value = value.__dict__
    if not isinstance(value, dict | list | tuple | set | frozenset) or not value:
        return 1, 0
    if id(value) in above:
        raise PickleFault("it contains itself")
    if id(value) not in known:
        # a shared container is measured once, however often it is met
        if depth == 0:
            raise PickleFault(f"its containers are nested more than {DEEPEST} levels deep")
        above.add(id(value))
        count, height = 1, 0
        for child in value.values() if isinstance(value, dict) else value:
            below = _extent(child, depth - 1, above, known)
            count, height = count + below[0], max(height, below[1] + 1)
        above.discard(id(value))
        known[id(value)] = count, height
    if known[id(value)][1] > depth:
        raise PickleFault(f"its containers are nested more than {DEEPEST} levels deep")
    return known[id(value)]


def _text(raw: bytes) -> str:
    # invalid UTF-8 stays readable, and terminals never get a lone surrogate
    return raw.decode("utf-8", errors="backslashreplace")


def _pairs(items: list) -> dict:
    if len(items) % 2:
        raise PickleFault("it has a name without a value")
    return {checked_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _whole(raw: bytes) -> int:
    if len(raw) > LARGEST_NUMBER:
        raise PickleFault(f"it holds a number of {len(raw):,} bytes")
    return int.from_bytes(raw, "little", signed=True)


def _members(items: list) -> set:
    return {checked_key(item) for item in items}


_M = InertMachine
_HANDLERS: dict[int, Callable[[InertMachine], object]] = {
    0x80: lambda m: m._bytes(1),  # PROTO
    0x95: lambda m: m._bytes(8),  # FRAME
    ord("("): _M._mark,
    ord("0"): lambda m: m._pop() if m._stack else m._items(),
    ord("1"): _M._items,
    ord("2"): lambda m: m._push(m._top(object)),
    ord("N"): lambda m: m._push(None),
    0x88: lambda m: m._push(True),
    0x89: lambda m: m._push(False),
    ord("J"): lambda m: m._push(m._number("<i")),
    ord("K"): lambda m: m._push(m._number("<B")),
    ord("M"): lambda m: m._push(m._number("<H")),
    0x8A: lambda m: m._push(_whole(m._bytes(m._number("<B")))),
    0x8B: lambda m: m._push(_whole(m._bytes(m._number("<i")))),
    ord("G"): lambda m: m._push(m._number(">d")),
    ord("X"): lambda m: m._push(_text(m._bytes(m._number("<I")))),
    0x8C: lambda m: m._push(_text(m._bytes(m._number("<B")))),
    0x8D: lambda m: m._push(_text(m._bytes(m._number("<Q")))),
    ord("T"): lambda m: m._push(_text(m._bytes(m._number("<i")))),
    ord("U"): lambda m: m._push(_text(m._bytes(m._number("<B")))),
    ord("B"): lambda m: m._push(m._bytes(m._number("<I"))),
    ord("C"): lambda m: m._push(m._bytes(m._number("<B"))),
    0x8E: lambda m: m._push(m._bytes(m._number("<Q"))),
    0x96: lambda m: m._push(m._bytes(m._number("<Q"))),
    ord("]"): lambda m: m._push([]),
    ord("a"): _M._append,
    ord("e"): _M._appends,
    ord("l"): lambda m: m._push(m._items()),
    ord(")"): lambda m: m._push(()),
    ord("t"): lambda m: m._push(tuple(m._items())),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord("}"): lambda m: m._push({}),
    ord("d"): lambda m: m._push(_pairs(m._items())),
    ord("s"): _M._set_item,
    ord("u"): _M._set_items,
    0x8F: lambda m: m._push(set()),
    0x90: _M._add_items,
    0x91: lambda m: m._push(frozenset(_members(m._items()))),
    ord("h"): lambda m: m._get(m._number("<B")),
    ord("j"): lambda m: m._get(m._number("<I")),
    ord("q"): lambda m: m._put(m._number("<B")),
    ord("r"): lambda m: m._put(m._number("<I")),
    0x94: lambda m: m._put(len(m._memo)),
    ord("c"): lambda m: m._named(m._line(), m._line()),
    0x93: lambda m: m._named(*reversed((m._pop(), m._pop()))),
    ord("R"): _M._reduce,
    0x81: _M._reduce,
    0x92: _M._new_object_with_names,
    ord("b"): _M._build,
    ord("Q"): lambda m: m._push(m.persistent(m._pop())),
}
"""Opcode -> what it does. Those that carry numbers as text, or classes of protocol 0, are not among them."""
