"""Discoveries of a graph, computed once per input, and their data for the editor in the browser.

Letters: N pictures, n of them shown, (h, w) patch grid, M parts.
"""

from __future__ import annotations

import hashlib
import io
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.features.patch_features import FeatureSource
from ...concepts.part_map.edit_script import EditFault
from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_map.part_map import PartMaps
from ..host.graph_progress import GraphProgress
from .discovery_job import DiscoveryChoice, FoundParts, find_parts
from .kept_discoveries import BlockPlace, Discoveries, KeptDiscovery
from .picture_encoding import checked_entries

DISCOVERIES = Discoveries()
_numbers: WeakKeyDictionary[object, str] = WeakKeyDictionary()


@dataclass(frozen=True)
class AskedDiscovery:
    """Inputs of a discovery."""

    images: Sequence[Tensor] = field(repr=False)
    """`(B, H, W, 3)` each."""
    masks: Sequence[Tensor] | None = field(repr=False)
    """Foregrounds `(B, H, W)`; None detects the foreground."""
    source: FeatureSource
    choice: DiscoveryChoice
    model: object = None
    """The denoiser of the source, identified by object identity; it is not kept alive."""

    def key(self) -> str:
        """Sixteen hex digits that identify these inputs."""
        # a model cannot be hashed cheaply: it gets a random number for as long as it lives
        model = None if self.model is None else _numbers.setdefault(self.model, secrets.token_hex(8))
        digest = hashlib.sha256(f"{self.source.spec!r} {self.choice!r} {model} {self.masks is None}".encode())
        for tensor in (*self.images, *(self.masks or ())):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]


def discover_once(asked: AskedDiscovery, edits: str, place: BlockPlace | None) -> tuple[FoundParts, str]:
    """The parts of pictures after the edits, and the key of the discovery, which runs only if it is not cached.

    Raises:
        BestiaryError: as `find_parts`, or an invalid line of the edits.
    """
    key, progress = asked.key(), GraphProgress(place.node if place else None)
    images: list[Tensor] = []

    def find() -> KeptDiscovery:
        found = find_parts(asked.images, asked.masks, asked.source, asked.choice, progress)
        images.extend(found.images)
        # the cached tensors outlive this run, so they must not be inference tensors
        with torch.inference_mode(False):
            return KeptDiscovery(found, asked.choice)

    kept = DISCOVERIES.take(key, place, find)
    return kept.found_parts(images or checked_entries(asked.images), edits), key


def describe_discovery(key: str, text: str) -> dict[str, object]:
    """A discovery after the edits of a text; an invalid line is reported as `fault`, with the result of the lines before it.

    Returns:
        `parts`: the edited part of every discovered part; `edited`: every part with name, share and kinds; `codes`: `(n, M)`
        kinds in the displayed pictures, -1 for an absent part.

    Raises:
        DiscoveryGone: it is no longer in memory.
        BestiaryError: the text is too long.
    """
    kept = DISCOVERIES.get(key)
    fault = None
    try:
        edited = kept.edited(text)
    # an invalid line does not hide the result of the lines before it
    except EditFault as refused:
        edited, fault = refused.done, {"line": refused.line, "text": str(refused), "cause": refused.cause}
    shown = len(kept.squares)
    return {
        "key": key,
        "pictures": shown,
        "total": len(edited.maps.labels),
        "edited": _described(edited.codebook, edited.maps, shown),
        "parts": edited.parts(),
        "codes": edited.maps.codes[:shown].tolist(),
        "fault": fault,
    }


def picture_of(key: str, number: int) -> bytes:
    """One of the displayed pictures as WebP.

    Raises:
        BestiaryError: the discovery is no longer in memory, or the number is out of range.
    """
    return _encoded(_row(DISCOVERIES.get(key).squares, number), "WEBP")


def labels_of(key: str, number: int) -> bytes:
    """Numbers of the discovered parts on the patch grid `(h, w)` as a grey PNG; errors as `picture_of`."""
    kept = DISCOVERIES.get(key)
    labels = kept.found.maps.labels[: len(kept.squares)].to(torch.uint8).numpy()  # (n, h, w)
    return _encoded(_row(labels, number), "PNG")


def _row(rows: np.ndarray, number: int) -> np.ndarray:
    """Picture `number` of `(N, H, W, C)` or label map of `(N, h, w)`."""
    if not 0 <= number < len(rows):
        raise BestiaryError(f"picture {number} is out of range: the editor shows pictures 0 to {len(rows) - 1}")
    return rows[number]


def _encoded(array: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(stream, kind)
    return stream.getvalue()


def _height(labels: Tensor, part: int, background: int) -> float | None:
    """Mean height of a part of labels `(N, h, w)` in its objects: -1 at the top, 1 at the bottom; None if it never occurs."""
    offsets = []
    for rows in labels:
        own = (rows == part).any(1).nonzero().flatten()
        if len(own):
            thing = (rows != background).any(1).nonzero().flatten()
            middle, reach = (thing.min() + thing.max()) / 2, max(1.0, float(thing.max() - thing.min()) / 2)
            counts = (rows == part).sum(1).float()
            offsets.append(float((counts @ torch.arange(len(counts)).float() / counts.sum() - middle) / reach))
    return round(sum(offsets) / len(offsets), 3) if offsets else None


def _described(codebook: PartCodebook, maps: PartMaps, shown: int) -> list[dict[str, object]]:
    """Per part its name, mean share of the area, and its kinds with their numbers of pictures."""
    areas = torch.bincount(maps.labels.flatten().long(), minlength=codebook.num_parts) / maps.labels.numel()  # (M,)
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
        facts = {"name": name, "background": background, "share": round(float(areas[part]), 4), "kinds": kinds}
        listed.append({**facts, "height": _height(maps.labels[:shown], part, codebook.background)})
    return listed
