"""The latest discoveries, kept in memory so that edits of their parts need no new discovery.

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
"""Discoveries kept in memory without other references."""
MOST_SHOWN = 64
"""Maximum number of pictures in the editor."""
EDGE = 256
"""Edge of a picture in the editor, in pixels."""
MOST_BLOCKS = 64
"""Maximum number of nodes whose latest discovery is remembered."""
LONGEST_PLACE = 100
"""Maximum characters of a workflow's or a node's identifier; the rest is ignored."""


class DiscoveryGone(BestiaryError):
    """The requested discovery is no longer in memory."""


@dataclass(frozen=True)
class BlockPlace:
    """The node for which a discovery was computed."""

    workflow: str = ""
    """Identifier of the workflow, empty if it has none."""
    node: str = ""
    """Id of the node, prefixed by those of its subgraph nodes: `12:5`; `:5` if these are unknown."""
    client: str = ""
    """Client id of the page or program that queued the graph."""

    @classmethod
    def of(cls, node: object, png_info: object) -> BlockPlace | None:
        """The place of a node with this id, with the workflow from the hidden input `extra_pnginfo`; None outside a graph."""
        if node is None:
            return None
        workflow = png_info.get("workflow") if isinstance(png_info, dict) else None
        identifier = workflow.get("id") if isinstance(workflow, dict) else None
        client = getattr(running_server(), "client_id", None)
        return cls(*(str(name or "")[:LONGEST_PLACE] for name in (identifier, node, client)))

    def holds(self, other: BlockPlace) -> bool:
        """True if `other` identifies the same node, ignoring the client."""
        inner = other.node.startswith(":") and self.node.endswith(other.node)
        return self.workflow == other.workflow and (inner or self.node == other.node)


class KeptDiscovery:
    """A discovery with small copies of its pictures and a history of edits. Thread-safe."""

    def __init__(self, found: FoundParts, choice: DiscoveryChoice) -> None:
        """Does not keep the pictures of `found`, which may be large."""
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
        """The parts after the edits of a text; errors as `EditHistory.after`."""
        # results are cached beyond this run, so they must not be inference tensors
        with self._lock, torch.inference_mode(False), torch.no_grad():
            return self._history.after(text)

    def found_parts(self, images: list[Tensor], text: str) -> FoundParts:
        """The edited parts of these images `(B, H, W, 3)`; the result keeps this discovery alive."""
        edited = self.edited(text)
        seen = seen_by_entry(edited.codebook, edited.maps, self._entries, self._choice.fit, edited.colors())
        # the certainty of merged or dropped parts does not apply to the edited ones
        same = edited.codebook.num_parts == self.found.codebook.num_parts
        return FoundParts(edited.codebook, images, seen, sure=self._sure if same else None, origin=self)


class Discoveries:
    """Cache of the latest discoveries by key, and of all that are still referenced elsewhere. Thread-safe."""

    def __init__(self) -> None:
        """Empty."""
        self._all: WeakValueDictionary[str, KeptDiscovery] = WeakValueDictionary()
        self._kept: OrderedDict[str, KeptDiscovery] = OrderedDict()
        self._newest: OrderedDict[BlockPlace, str] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str, place: BlockPlace | None, find: Callable[[], KeptDiscovery]) -> KeptDiscovery:
        """The discovery of this key, computed by `find` if it is not cached; becomes the latest one of its place."""
        # `find` runs outside the lock: a discovery takes minutes, and other threads must not wait for it
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
        """Key of the latest discovery of a place, preferring that of the same client; None if there is none."""
        with self._lock:
            there = [
                (known, key) for known, key in reversed(self._newest.items()) if known.holds(place) and key in self._all
            ]
        there.sort(key=lambda entry: entry[0].client != place.client)  # stable: newest first
        return there[0][1] if there else None

    def has(self, key: str) -> bool:
        """True if the discovery is in memory."""
        with self._lock:
            return key in self._all

    def get(self, key: str) -> KeptDiscovery:
        """A discovery in memory.

        Raises:
            DiscoveryGone: it is no longer in memory.
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
    """The first pictures of all entries `(n, EDGE, EDGE, 3)` uint8, cropped as in the discovery."""
    squares, left = [], MOST_SHOWN
    for images, seen in zip(found.images, found.seen, strict=True):
        if left > 0:
            square = as_squares(images[:left], EDGE, seen.fit)  # (b, 3, EDGE, EDGE)
            squares.append((square.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
            left -= len(square)
    return np.concatenate(squares)
