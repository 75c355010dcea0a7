"""The newest discoveries, kept in memory so that edits of their parts need no new one.

Letters: N pictures, n of them shown, (h, w) patch grid, M parts.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.part_map.edit_script import EditedParts, EditHistory
from ...concepts.part_map.part_map import PartMaps
from ..host.running_graph import running_server
from .discovery_job import DiscoveryChoice, FoundParts, seen_by_entry
from .part_pictures import as_squares

MOST_KEPT = 2
"""Discoveries in memory that nothing else holds."""
MOST_SHOWN = 64
"""Pictures that an editor is given."""
EDGE = 256
"""Longest edge of a picture that an editor is given, in pixels."""
MOST_BLOCKS = 64
"""Blocks whose newest discovery is remembered."""
LONGEST_PLACE = 100
"""Characters of a workflow's or a node's name that count."""


class DiscoveryGone(BestiaryError):
    """A discovery that is no longer kept."""


@dataclass(frozen=True)
class BlockPlace:
    """Where a discovery was asked for."""

    workflow: str = ""
    """The workflow's own identifier, empty where it has none."""
    node: str = ""
    """Number of the node, after those of the blocks around it: `12:5`; `:5` where these are not known."""
    client: str = ""
    """The page, or program, that asked."""

    @classmethod
    def of(cls, node: object, png_info: object) -> BlockPlace | None:
        """The place of a node with this number in a graph that came with this information for saved pictures; None outside
        of graphs."""
        if node is None:
            return None
        workflow = png_info.get("workflow") if isinstance(png_info, dict) else None
        identifier = workflow.get("id") if isinstance(workflow, dict) else None
        client = getattr(running_server(), "client_id", None)
        return cls(*(str(name or "")[:LONGEST_PLACE] for name in (identifier, node, client)))

    def holds(self, other: BlockPlace) -> bool:
        """Whether `other` names this place, for whatever page."""
        inner = other.node.startswith(":") and self.node.endswith(other.node)
        return self.workflow == other.workflow and (inner or self.node == other.node)


class KeptDiscovery:
    """A discovery, small pictures of what it looked at, and what edits have made of it. Safe to ask from several threads."""

    def __init__(self, found: FoundParts, choice: DiscoveryChoice) -> None:
        """The pictures of `found`, which may be large, are not kept."""
        self._choice, self._sure = choice, found.sure
        self._entries = [(entry.size, len(entry.maps.labels)) for entry in found.seen]
        maps = PartMaps(
            torch.cat([entry.maps.labels for entry in found.seen]),
            torch.cat([entry.maps.codes for entry in found.seen]),
        )
        self.found = EditedParts(
            found.codebook, maps, found=found.means, num_kinds=choice.num_kinds or None, seed=choice.seed
        )
        self.squares = _squares(found)
        """`(n, EDGE, EDGE, 3)` uint8."""
        self._history = EditHistory(self.found)
        self._lock = threading.Lock()

    def edited(self, text: str) -> EditedParts:
        """The parts after the edits of a text; faults as `EditHistory.after`."""
        # fitting new kinds is no inference, and results are kept beyond this thread's mode
        with self._lock, torch.inference_mode(False), torch.no_grad():
            return self._history.after(text)

    def found_parts(self, images: list[Tensor], text: str) -> FoundParts:
        """What a node gives: the edited parts of these images `(B, H, W, 3)`. It holds this discovery."""
        edited = self.edited(text)
        seen = seen_by_entry(edited.codebook, edited.maps, self._entries, self._choice.fit, edited.colors())
        # what was sure of parts that were joined or dropped since says nothing of those there are now
        same = edited.codebook.num_parts == self.found.codebook.num_parts
        return FoundParts(edited.codebook, images, seen, sure=self._sure if same else None, origin=self)


class Discoveries:
    """The newest few, by key, and all that something else still holds; safe to ask from several threads."""

    def __init__(self) -> None:
        """Empty."""
        self._all: WeakValueDictionary[str, KeptDiscovery] = WeakValueDictionary()
        self._kept: OrderedDict[str, KeptDiscovery] = OrderedDict()
        self._newest: OrderedDict[BlockPlace, str] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str, place: BlockPlace | None, find: Callable[[], KeptDiscovery]) -> KeptDiscovery:
        """The discovery of this key, found now if it is not kept; it is then the newest of its place."""
        with self._lock:
            kept = self._all.get(key)
        kept = kept or find()
        with self._lock:
            self._all[key] = kept
            _put(self._kept, key, kept, MOST_KEPT)
            if place is not None:
                _put(self._newest, place, key, MOST_BLOCKS)
        return kept

    def newest_of(self, place: BlockPlace) -> str | None:
        """Key of the newest discovery of a place, its own page's before those of others; None where none is kept."""
        with self._lock:
            there = [
                (known, key) for known, key in reversed(self._newest.items()) if known.holds(place) and key in self._all
            ]
        there.sort(key=lambda entry: entry[0].client != place.client)  # stable: newest first
        return there[0][1] if there else None

    def has(self, key: str) -> bool:
        """Whether a discovery is kept."""
        with self._lock:
            return key in self._all

    def get(self, key: str) -> KeptDiscovery:
        """A kept discovery.

        Raises:
            DiscoveryGone: it is not kept any more.
        """
        with self._lock:
            kept = self._all.get(key)
        if kept is None:
            raise DiscoveryGone("this discovery is no longer in memory: run the graph again")
        return kept


def _put(table: OrderedDict, key: object, value: object, most: int) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > most:
        table.popitem(last=False)


def _squares(found: FoundParts) -> np.ndarray:
    """The first pictures of all entries `(n, EDGE, EDGE, 3)` uint8, as the discovery saw them."""
    squares, left = [], MOST_SHOWN
    for images, seen in zip(found.images, found.seen, strict=True):
        if left > 0:
            square = as_squares(images[:left], EDGE, seen.fit)  # (b, 3, EDGE, EDGE)
            squares.append((square.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
            left -= len(square)
    return np.concatenate(squares)
