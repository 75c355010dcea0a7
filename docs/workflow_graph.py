"""A small graph of ComfyUI nodes that is laid out in groups and written as UI JSON (0.4) and as API JSON.

What a node takes and gives is read from a server's `/object_info`, so a wrong name is told here and not in the browser.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

NodeInfo = Mapping[str, object]
"""What `/object_info` says of one node."""

CORE_VERSION = "0.3.64"
GROUP_COLORS = {"model": "#3f789e", "parts": "#a1309b", "prompt": "#88A", "picture": "#8A8", "look": "#b58b2a"}
"""Colours by what a group is for, of those that ComfyUI's menu offers."""
NOTE_COLORS = {"color": "#432", "bgcolor": "#653"}

# heights in pixels in the browser, of the taller of canvas nodes and Vue nodes (frontends 1.27 to 1.58)
_TITLE, _EDGE, _SLOT, _WIDGET, _TEXT, _PICTURE = 30, 44, 20, 32, 90, 240
_GAP, _MARGIN, _GROUP_TITLE, _NARROW, _WIDE = 24, 20, 56, 300, 380
_SEEDS = frozenset({"seed", "noise_seed"})
_SHOWS_PICTURES = frozenset({"PreviewImage", "SaveImage", "MaskPreview", "LossGraphNode"})
_SHOWS_TEXT = frozenset({"PreviewAny"})
_SHOWS_BOTH = frozenset({"BestiaryDictionaryInfo"})
_PANELS = {
    "BestiaryPart": 380,
    "BestiaryPartPrompt": 345,
    "BestiaryShowAttention": 460,
    "BestiaryMixAttributes": 300,
    "BestiaryDiscoverParts": 580,
    "BestiaryTrainParts": 580,
    "BestiaryTrainSpectrum": 580,
    "BestiaryTrainDreamBooth": 580,
    "BestiaryEditLayout": 420,
    "BestiaryStageText": 285,
    "BestiarySpectrumPrompt": 60,
}
"""Heights in pixels of what our blocks show in the browser; lower than open, a panel is folded."""
_MUTED = 2


@dataclass(frozen=True)
class Socket:
    """An output of a node."""

    node: Node
    slot: int


@dataclass
class Node:
    """One block: its kind, what goes in (values and sockets by input name), and where it stands."""

    id: int
    kind: str
    info: NodeInfo
    inputs: dict[str, object]
    title: str
    muted: bool = False
    place: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)

    def __getitem__(self, output: str) -> Socket:
        """The output of that displayed name, small or capital; raises KeyError with the names there are."""
        names = [name.lower() for name in self.info["output_name"]]
        if output.lower() not in names:
            raise KeyError(f"{self.kind} has no output {output!r}; it has {names}")
        return Socket(self, names.index(output.lower()))


@dataclass
class Note:
    """Text for people, in Markdown."""

    id: int
    text: str
    lines: float
    place: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)


@dataclass
class Group:
    """A coloured frame with columns of blocks."""

    title: str
    color: str
    columns: list[list[Node | Note]] = field(default_factory=lambda: [[]])
    bounding: tuple[int, int, int, int] = (0, 0, 0, 0)


class Graph:
    """Blocks in groups, from left to right in the order in which they are added."""

    def __init__(self, name: str, object_info: Mapping[str, NodeInfo], pack_version: str) -> None:
        self.name = name
        self.groups: list[Group] = []
        self._known = object_info
        self._pack_version = pack_version
        self._count = 0

    @property
    def nodes(self) -> list[Node]:
        """All blocks that do something, by id."""
        return [block for block in self._blocks() if isinstance(block, Node)]

    def group(self, title: str, color: str) -> None:
        """Starts a group to the right of the last; what is added next stands in it. `color` is a key of GROUP_COLORS."""
        self.groups.append(Group(title, GROUP_COLORS[color]))

    def column(self) -> None:
        """Starts a column inside the group."""
        self.groups[-1].columns.append([])

    def add(self, kind: str, /, *, title: str = "", muted: bool = False, **inputs: object) -> Node:
        """Puts a block below the last one. Inputs are values or sockets; those left out take their defaults.

        Raises:
            KeyError: the kind or an input is not known to the server.
        """
        if kind not in self._known:
            raise KeyError(f"the server has no node {kind!r}")
        info = self._known[kind]
        declared = _declared(info)
        if strange := sorted(set(inputs) - set(declared)):
            raise KeyError(f"{kind} has no input {strange[0]!r}; it has {sorted(declared)}")
        values = {
            name: _default(spec) for name, spec in declared.items() if _is_widget(spec) and _default(spec) is not None
        }
        self._count += 1
        node = Node(self._count, kind, info, {**values, **inputs}, title, muted)
        self.groups[-1].columns[-1].append(node)
        return node

    def note(self, text: str) -> None:
        """Puts a note below the last block; its height follows its length."""
        self._count += 1
        lines = sum(0.5 if not line else 1 + len(line) // 56 for line in text.splitlines())
        self.groups[-1].columns[-1].append(Note(self._count, text, lines))

    def api(self) -> dict[str, dict]:
        """What `POST /prompt` takes: every block that is not muted, by id."""
        return {
            str(node.id): {
                "class_type": node.kind,
                "inputs": {
                    name: [str(value.node.id), value.slot] if isinstance(value, Socket) else value
                    for name, value in sorted(node.inputs.items(), key=lambda entry: entry[0])
                },
                "_meta": {"title": node.title or self._known[node.kind]["display_name"]},
            }
            for node in sorted(self.nodes, key=lambda node: node.id)
            if not node.muted
        }

    def ui(self) -> dict[str, object]:
        """What the browser saves and loads: blocks with places and sizes, links and groups."""
        self._lay_out()
        links = self._links()
        blocks = sorted(self._blocks(), key=lambda block: block.id)
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"bestiary/{self.name}")),
            "revision": 0,
            "last_node_id": self._count,
            "last_link_id": len(links),
            "nodes": [self._ui_block(order, block, links) for order, block in enumerate(blocks)],
            "links": links,
            "groups": [
                {
                    "id": number,
                    "title": group.title,
                    "bounding": list(group.bounding),
                    "color": group.color,
                    "font_size": 24,
                    "flags": {},
                }
                for number, group in enumerate(self.groups, 1)
            ],
            "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [60, 90]}},
            "version": 0.4,
        }

    def _blocks(self) -> list[Node | Note]:
        return [block for group in self.groups for column in group.columns for block in column]

    def _lay_out(self) -> None:
        x = 0
        for group in self.groups:
            left, lowest = x, 0
            for column in group.columns:
                for block in column:
                    block.size = _size(block)
                width = max(block.size[0] for block in column)
                y = _GROUP_TITLE + _TITLE
                for block in column:
                    block.place, block.size = (x + _MARGIN, y), (width, block.size[1])
                    y += block.size[1] + _GAP + _TITLE
                x, lowest = x + width + _MARGIN, max(lowest, y - _TITLE)
            group.bounding = (left, 0, x + _MARGIN - left, lowest)
            x += _MARGIN + 2 * _GAP

    def _links(self) -> list[list[object]]:
        """[id, from, slot, to, slot, type] of every link."""
        links: list[list[object]] = []
        for node in self.nodes:
            for slot, name in enumerate(_socket_names(node)):
                source = node.inputs.get(name)
                if isinstance(source, Socket):
                    kind = source.node.info["output"][source.slot]
                    links.append([len(links) + 1, source.node.id, source.slot, node.id, slot, kind])
        return links

    def _ui_block(self, order: int, block: Node | Note, links: list[list[object]]) -> dict[str, object]:
        shared = {"id": block.id, "pos": list(block.place), "size": list(block.size), "flags": {}, "order": order}
        if isinstance(block, Note):
            text = {"type": "MarkdownNote", "mode": 0, "inputs": [], "outputs": [], "properties": {}, "title": "Note"}
            return {**shared, **text, "widgets_values": [block.text], **NOTE_COLORS}
        ours = block.kind.startswith("Bestiary")
        origin = (
            {"cnr_id": "bestiary", "ver": self._pack_version} if ours else {"cnr_id": "comfy-core", "ver": CORE_VERSION}
        )
        written = {
            **shared,
            "type": block.kind,
            "mode": _MUTED if block.muted else 0,
            "inputs": _ui_inputs(block, links),
            "outputs": _ui_outputs(block, links),
            "properties": {**origin, "Node name for S&R": block.kind},
            "widgets_values": _widget_values(block),
        }
        return {**written, "title": block.title} if block.title else written


def _declared(info: NodeInfo) -> dict[str, list]:
    """Specification of every input, required ones first, each in its order."""
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def _is_widget(spec: list) -> bool:
    """Whether people set the value on the block itself."""
    return isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def _default(spec: list) -> object:
    options = spec[1] if len(spec) > 1 else {}
    choices = spec[0] if isinstance(spec[0], list) else options.get("options")
    return options.get("default", choices[0] if choices else None)


def _has_control(name: str, spec: list) -> bool:
    """Whether the browser adds "control after generate" behind this widget."""
    return len(spec) > 1 and bool(spec[1].get("control_after_generate", name in _SEEDS and spec[0] == "INT"))


def _socket_names(node: Node) -> list[str]:
    """Inputs with a socket: those that are no widgets, then the widgets that are linked."""
    declared = _declared(node.info)
    plain = [name for name, spec in declared.items() if not _is_widget(spec)]
    return plain + [name for name in declared if name not in plain and isinstance(node.inputs.get(name), Socket)]


def _ui_inputs(node: Node, links: list[list[object]]) -> list[dict[str, object]]:
    declared = _declared(node.info)
    taken = {slot: number for number, _, _, target, slot, _ in links if target == node.id}
    entries = []
    for slot, name in enumerate(_socket_names(node)):
        kind = "COMBO" if isinstance(declared[name][0], list) else declared[name][0]
        entry = {"name": name, "type": kind, "link": taken.get(slot)}
        entries.append({**entry, "widget": {"name": name}} if _is_widget(declared[name]) else entry)
    return entries


def _ui_outputs(node: Node, links: list[list[object]]) -> list[dict[str, object]]:
    # what ComfyUI's own nodes show newer versions also hand on; one file fits all versions where nobody takes it
    if _hands_on_unasked(node, links):
        return []
    return [
        {
            "name": name,
            "type": kind,
            "links": [number for number, source, taken, *_ in links if (source, taken) == (node.id, slot)],
        }
        for slot, (name, kind) in enumerate(zip(node.info["output_name"], node.info["output"], strict=True))
    ]


def _hands_on_unasked(node: Node, links: list[list[object]]) -> bool:
    shows = bool(node.info.get("output_node")) and not node.kind.startswith("Bestiary")
    return shows and not any(source == node.id for _, source, *_ in links)


def _widget_values(node: Node) -> list[object]:
    """Values in the order of the widgets; a linked one keeps its default in its place."""
    values: list[object] = []
    for name, spec in _declared(node.info).items():
        if _is_widget(spec):
            value = node.inputs.get(name, _default(spec))
            values.append(_default(spec) if isinstance(value, Socket) else value)
            values += ["fixed"] if _has_control(name, spec) else []
    return values


def _size(block: Node | Note) -> tuple[int, int]:
    """Width and height that the browser needs for a block, its title left out."""
    if isinstance(block, Note):
        return _WIDE, round(56 + 20 * block.lines)
    declared = _declared(block.info)
    widgets = [spec for spec in declared.values() if _is_widget(spec)]
    texts = [spec for spec in widgets if len(spec) > 1 and spec[1].get("multiline")]
    controls = [name for name, spec in declared.items() if _is_widget(spec) and _has_control(name, spec)]
    slots = max(len([spec for spec in declared.values() if not _is_widget(spec)]), len(block.info["output"]))
    height = _EDGE + slots * _SLOT + (len(widgets) - len(texts) + len(controls)) * _WIDGET + len(texts) * _TEXT
    height += _PANELS.get(block.kind, 0)
    height += _PICTURE * (block.kind in _SHOWS_PICTURES | _SHOWS_BOTH) + _TEXT * (
        block.kind in _SHOWS_TEXT | _SHOWS_BOTH
    )
    wide = texts or block.kind in _PANELS or block.kind in _SHOWS_PICTURES | _SHOWS_BOTH
    return (_WIDE if wide else _NARROW), height
