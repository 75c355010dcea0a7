"""The newest discoveries, kept so that edits of their parts need no new one, and what an editor shows of them.

Letters: N pictures, n of them shown, (h, w) patch grid, M parts.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..concepts.errors import BestiaryError
from ..concepts.parts.edit_script import EditFault, apply_edits
from ..concepts.parts.part_codebook import PartCodebook
from ..concepts.parts.part_map import PartMaps
from ..concepts.patch_features import FeatureSource
from .discovery_job import DiscoveryChoice, FoundParts, find_parts
from .graph_progress import GraphProgress
from .part_pictures import as_squares
from .part_sight import seen_from_maps
from .picture_encoding import checked_entries

MOST_KEPT = 2
"""Discoveries in memory, with their pictures."""
MOST_SHOWN = 64
"""Pictures that an editor is given."""
EDGE = 256
"""Longest edge of a picture that an editor is given, in pixels."""
MOST_NODES = 64


@dataclass(frozen=True)
class KeptDiscovery:
    """A discovery and small pictures of what it looked at."""

    found: FoundParts = field(repr=False)
    """Without its pictures, which may be large."""
    maps: PartMaps = field(repr=False)
    """Of all N pictures: labels `(N, h, w)`, codes `(N, M)`."""
    squares: np.ndarray = field(repr=False)
    """`(n, EDGE, EDGE, 3)` uint8."""
    belongings: object = field(repr=False)
    """What the key counts by identity, kept so that nothing else takes its place in memory."""


class Discoveries:
    """The newest few, by key; safe to ask from several threads."""

    def __init__(self) -> None:
        """Empty."""
        self._kept: OrderedDict[str, KeptDiscovery] = OrderedDict()
        self._by_node: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def take(
        self,
        key: str,
        node_id: str | None,
        images: Sequence[Tensor],
        find: Callable[[], FoundParts],
        belongings: object = None,
    ) -> FoundParts:
        """The discovery of this key with its images `(B, H, W, 3)`, found now if it is not kept; it is then its node's newest."""
        with self._lock:
            kept = self._kept.get(key)
        if kept is None:
            found = find()
            kept = _keep(found, belongings)
        else:
            found = replace(kept.found, images=checked_entries(images))
        with self._lock:
            self._kept[key] = kept
            self._kept.move_to_end(key)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
            if node_id is not None:
                self._by_node[node_id] = key
                self._by_node.move_to_end(node_id)
                while len(self._by_node) > MOST_NODES:
                    self._by_node.popitem(last=False)
        return found

    def of_node(self, node_id: str) -> str | None:
        """Key of the newest discovery of a node, None where none is kept."""
        with self._lock:
            key = self._by_node.get(node_id)
            return key if key in self._kept else None

    def get(self, key: str) -> KeptDiscovery:
        """A kept discovery.

        Raises:
            BestiaryError: it is not kept any more.
        """
        with self._lock:
            kept = self._kept.get(key)
        if kept is None:
            raise BestiaryError("this discovery is no longer in memory: run the graph again")
        return kept


DISCOVERIES = Discoveries()


@dataclass(frozen=True)
class AskedDiscovery:
    """What a discovery depends on."""

    images: Sequence[Tensor] = field(repr=False)
    """`(B, H, W, 3)` each."""
    masks: Sequence[Tensor] | None = field(repr=False)
    """Foregrounds `(B, H, W)`; None finds the foreground."""
    source: FeatureSource
    choice: DiscoveryChoice
    model: object = None
    """The denoiser behind the source, known by its identity."""

    def key(self) -> str:
        """Sixteen hex digits of all of it."""
        digest = hashlib.sha256(f"{self.source.spec!r} {self.choice!r} {id(self.model)} {self.masks is None}".encode())
        for tensor in (*self.images, *(self.masks or ())):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def discover_once(asked: AskedDiscovery, edits: str, node_id: str | None) -> tuple[FoundParts, str]:
    """The parts of pictures after some edits, and the key of the discovery; it runs only where it is not kept.

    Raises:
        BestiaryError: what `find_parts` refuses, or a line of the edits that does not fit.
    """
    key, progress = asked.key(), GraphProgress(node_id)

    def find() -> FoundParts:
        return find_parts(asked.images, asked.masks, asked.source, asked.choice, progress)

    found = DISCOVERIES.take(key, node_id, asked.images, find, asked.model)
    return edit_found(found, edits), key


def edit_found(found: FoundParts, text: str) -> FoundParts:
    """A discovery after the edits of a text: codebook and part maps in the new numbers.

    Raises:
        EditFault: a line does not fit.
    """
    edited = apply_edits(found.codebook, text)
    seen = [seen_from_maps(edited.codebook, edited.apply(entry.maps), entry.size, entry.fit) for entry in found.seen]
    return replace(found, codebook=edited.codebook, seen=seen)


def describe_discovery(key: str, text: str) -> dict[str, object]:
    """What was found, and what the edits of a text make of it; a line that does not fit is told as `fault`.

    Raises:
        BestiaryError: the discovery is no longer kept, or the text is too long.
    """
    kept = DISCOVERIES.get(key)
    codebook, fault = kept.found.codebook, None
    try:
        edited = apply_edits(codebook, text)
    except EditFault as told:
        edited, fault = told.done, {"line": told.line, "text": str(told)}
    maps = edited.apply(kept.maps)
    shown = len(kept.squares)
    return {
        "key": key,
        "pictures": shown,
        "total": len(kept.maps.labels),
        "found": _described(codebook, kept.maps, shown),
        "edited": _described(edited.codebook, maps, shown),
        "parts": edited.parts(),
        "codes": maps.codes[:shown].tolist(),
        "fault": fault,
    }


def picture_of(key: str, number: int) -> bytes:
    """One of the pictures shown, WebP.

    Raises:
        BestiaryError: the discovery is no longer kept, or it shows no such picture.
    """
    return _encoded(_row(DISCOVERIES.get(key).squares, number), "WEBP")


def labels_of(key: str, number: int) -> bytes:
    """Numbers of the found parts on the patch grid `(h, w)`, a grey PNG; faults as `picture_of`."""
    kept = DISCOVERIES.get(key)
    labels = kept.maps.labels[: len(kept.squares)].to(torch.uint8).numpy()  # (n, h, w)
    return _encoded(_row(labels, number), "PNG")


def _row(rows: np.ndarray, number: int) -> np.ndarray:
    if not 0 <= number < len(rows):
        raise BestiaryError(f"picture {number}: the editor shows 0 to {len(rows) - 1}")
    return rows[number]


def _encoded(array: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(stream, kind)
    return stream.getvalue()


def _keep(found: FoundParts, belongings: object) -> KeptDiscovery:
    maps = PartMaps(
        torch.cat([entry.maps.labels for entry in found.seen]), torch.cat([entry.maps.codes for entry in found.seen])
    )
    squares, left = [], MOST_SHOWN
    for images, seen in zip(found.images, found.seen, strict=True):
        if left > 0:
            square = as_squares(images[:left], EDGE, seen.fit)  # (b, 3, EDGE, EDGE)
            squares.append((square.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
            left -= len(square)
    return KeptDiscovery(replace(found, images=[]), maps, np.concatenate(squares), belongings)


def _described(codebook: PartCodebook, maps: PartMaps, shown: int) -> list[dict[str, object]]:
    """Per part its name, mean share of the area, and its kinds with how many pictures show each."""
    areas = maps.masks(codebook.num_parts).flatten(2).float().mean((0, 2))  # (M,)
    listed = []
    for part, name in enumerate(codebook.part_names):
        codes = maps.codes[:, part]  # (N,)
        kinds = []
        for kind in range(len(codebook.fine[part]) if codebook.fine else 0):
            rows = (codes == kind).nonzero().flatten().tolist()
            example = next((row for row in rows if row < shown), None)
            title = codebook.kind_names[part].get(kind) if codebook.kind_names else None
            kinds.append({"name": title, "count": len(rows), "example": example})
        background = part == codebook.background
        listed.append({"name": name, "background": background, "share": round(float(areas[part]), 4), "kinds": kinds})
    return listed
