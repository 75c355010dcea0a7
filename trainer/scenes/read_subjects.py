"""Pictures of subjects as cut-outs: the file's own transparency, a mask beside it, or IS-Net. No picture is cut twice."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...concepts.errors import BestiaryError
from ...concepts.files.pack import ROOT
from ...scenes.isnet import IsNet, segment
from ...scenes.isnet_weights import check_ending, load_isnet, weights_in
from ...scenes.scene_layout import VERSION
from ...scenes.source_list import SourceTerms, with_terms
from ...scenes.subject import PictureSource, Subject
from ...scenes.subject_sources import WEIGHTS_FOLDER, CutSubject, MaskSources, Segment, cut_subject
from ..learning.pictures.companion_files import masks_among
from ..learning.pictures.cutout_files import read_pixels, with_masks
from ..learning.pictures.image_files import UnreadableImage, scan_images
from ..learning.pictures.mask_files import read_mask
from .cutout_cache import CutoutCache, CutRecord
from .discovered_parts import DiscoveredParts
from .scene_settings import CutoutSettings, GateSettings, SubjectSettings

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CutPicture:
    """A picture of a subject that was cut out; the cut-out is read when it is needed."""

    asked: SubjectSettings
    source: PictureSource
    record: CutRecord
    cache: CutoutCache

    def subject(self) -> Subject:
        """With its cut-out.

        Raises:
            BestiaryError: the file of the cut-out cannot be read.
        """
        asked, key = self.asked, self.record.key
        parts = self.cache.parts(key) if self.record.parts else None
        return Subject(
            asked.name, self.cache.pixels(key), asked.words, asked.size, asked.support, parts, source=self.source
        )

    def identity(self) -> dict[str, object]:
        """All that decides what the subject looks like and is called, as JSON values."""
        asked = self.asked
        said = {"name": asked.name, "words": asked.words, "size": asked.size, "support": asked.support}
        return said | {"cut": self.record.png, "parts": self.record.parts, "source": asdict(self.source)}


@dataclass(frozen=True)
class ReadSubjects:
    """Cut-outs by name of the subject, and pictures that gave none."""

    pool: Mapping[str, list[CutPicture]]
    skipped: Sequence[tuple[str, str]]
    """File and reason."""
    refused: frozenset[str] = frozenset()
    """Keys of pictures whose mask was refused."""


@dataclass(frozen=True)
class CutoutRules:
    """How pictures are cut out."""

    cutout: CutoutSettings = field(default_factory=CutoutSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    weights: Path | None = None
    """IS-Net file; None for the one in the usual folder."""


class SegmentNetwork:
    """IS-Net, loaded when the first picture needs it."""

    def __init__(self, file: Path, *, bf16: bool = False) -> None:
        self.file, self._bf16 = file, bf16

    @functools.cached_property
    def sha256(self) -> str:
        """Of the file of weights."""
        digest = hashlib.sha256()
        with open(self.file, "rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()

    @functools.cached_property
    def _network(self) -> IsNet:
        return load_isnet(self.file)

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Mask `(h, w)` in 0..1 of a picture `(h, w, 3)`."""
        return segment(self._network, picture, bf16=self._bf16)


def find_network(weights: Path | None, *, bf16: bool = False) -> SegmentNetwork | None:
    """IS-Net with the weights of a file, or of models/bestiary/segmentation; None where there are none.

    Raises:
        BestiaryError: no such file, or its ending is not that of a file of weights.
    """
    if weights is not None:
        if not weights.is_file():
            raise BestiaryError(f"no weights file {weights}: give an IS-Net file, or leave the weights out")
        check_ending(weights)
    found = weights or weights_in(Path(WEIGHTS_FOLDER)) or weights_in(ROOT / WEIGHTS_FOLDER)
    return None if found is None else SegmentNetwork(found, bf16=bf16)


def find_things(weights: Path | None) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None:
    """Masks `(h, w)` of what stands out in pictures `(h, w, 3)`, by IS-Net; None without weights.

    Raises:
        BestiaryError: as `find_network`.
    """
    network = find_network(weights)
    return None if network is None else lambda picture: (network(picture) * 255).round().astype(np.uint8)


class SubjectReader:
    """Cuts subjects out of pictures, once for each content."""

    def __init__(self, rules: CutoutRules, cache: CutoutCache, terms: Mapping[str, SourceTerms] | None = None) -> None:
        """Find the weights and the discovery; neither is used before a picture needs it.

        Args:
            terms: licence and author by file.

        Raises:
            BestiaryError: as `find_network` and `Discovery.load`, or the backend needs a discovery and there is none.
        """
        self._rules, self.cache, self._terms = rules, cache, terms or {}
        self._network = find_network(rules.weights, bf16=rules.cutout.bf16)
        self._discovery = None if rules.cutout.discovery is None else DiscoveredParts(rules.cutout.discovery)
        if rules.cutout.backend == "parts" and self._discovery is None:
            raise BestiaryError(
                "the backend `parts` takes the foreground of a discovery: give the folder that `bestiary discover` wrote "
                "as cutout.discovery"
            )

    def cut(self, path: Path, asked: SubjectSettings, mask_file: Path | None) -> CutPicture:
        """A picture of a subject, from the cache where its content and rules are unchanged. Its record may hold faults.

        Raises:
            UnreadableImage: the picture cannot be read.
            BestiaryError: as `cut_subject`; the mask cannot be read or has another size.
        """
        content = _read_bytes(path)
        sha = hashlib.sha256(content).hexdigest()
        source = with_terms(PictureSource(path.as_posix(), sha), self._terms)
        key = self._key(sha, path, mask_file)
        record = self.cache.find(key)
        if record is None:
            cut = self._cut(path, asked, mask_file, source)
            if cut.warning:
                LOG.warning("%s: %s", path, cut.warning)
            found = cut.subject
            record = CutRecord(key, cut.way, cut.faults, cut.warning)
            record = self.cache.keep(record, found and found.cutout, found and found.parts)
        return CutPicture(asked, source, record, self.cache)

    def _key(self, sha: str, path: Path, mask_file: Path | None) -> str:
        known = self._discovery and self._discovery.labels(path, 64, 64)
        content = {
            "version": VERSION,
            "picture": sha,
            "mask": "" if mask_file is None else hashlib.sha256(_read_bytes(mask_file)).hexdigest(),
            "network": "" if self._network is None else self._network.sha256,
            "parts": "" if known is None else hashlib.sha256(known.tobytes()).hexdigest(),
            "cutout": self._rules.cutout.model_dump(mode="json", exclude={"discovery"}),
            "gate": self._rules.gate.model_dump(mode="json"),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def _cut(self, path: Path, asked: SubjectSettings, mask_file: Path | None, source: PictureSource) -> CutSubject:
        pixels = read_pixels(path)  # (h, w, 3) or (h, w, 4)
        size = (pixels.shape[1], pixels.shape[0])
        rules, found = self._rules, self._discovery
        return cut_subject(
            pixels,
            asked.name,
            MaskSources(
                mask=None if mask_file is None else functools.partial(_mask, mask_file, size),
                isnet=self._network,
                parts=_given(None if found is None else found.foreground(path, *size)),
                rounds=rules.cutout.rounds,
            ),
            backend=rules.cutout.backend,
            changed=rules.cutout.options(),
            changed_limits=rules.gate.limits(),
            parts=None if found is None else found.labels(path, *size),
            source=source,
        )


def _given(mask: NDArray[np.float32] | None) -> Segment | None:
    return None if mask is None else lambda picture: mask


def _mask(path: Path, size: tuple[int, int]) -> NDArray[np.float32]:
    try:
        return read_mask(path, size)
    except UnreadableImage as fault:
        raise BestiaryError(f"its mask {path} cannot be read ({fault.reason}): save it again, or delete it") from fault


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise UnreadableImage(path, fault.strerror or str(fault)) from fault


def read_subjects(
    asked: Sequence[SubjectSettings],
    reader: SubjectReader,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReadSubjects:
    """Every picture of every subject, cut out; those that cannot be used are skipped with a reason.

    Args:
        asked: names, folders and words.
        reader: cuts them out.
        on_progress: called with (done, total) pictures.

    Raises:
        BestiaryError: a folder is missing; a picture has neither transparency nor mask and there are no weights; a subject is left
            without any picture.
    """
    folders = [_pictures(subject.folder) for subject in asked]
    total, done = sum(len(names) for names, _ in folders), 0
    pool: dict[str, list[CutPicture]] = {subject.name: [] for subject in asked}
    skipped: list[tuple[str, str]] = []
    refused: set[str] = set()
    for subject, (names, unreadable) in zip(asked, folders, strict=True):
        own = list(unreadable)
        for name, mask_file in with_masks(names, subject.folder, subject.masks):
            path = subject.folder / name
            try:
                cut = reader.cut(path, subject, mask_file)
            except UnreadableImage as fault:
                own.append((str(path), fault.reason))
            else:
                if cut.record.faults:
                    own.append((str(path), "; ".join(cut.record.faults)))
                    refused.add(cut.record.key)
                else:
                    pool[subject.name].append(cut)
            done += 1
            on_progress(done, total)
        for path, reason in own:
            LOG.warning("skipped %s: %s", path, reason)
        if not pool[subject.name]:
            reasons = "; ".join(f"{Path(path).name}: {reason}" for path, reason in own[:3])
            raise BestiaryError(
                f"subject {subject.name!r}: no picture in {subject.folder} can be used ({reasons or 'no picture found'}): "
                "add other pictures, or masks for these"
            )
        skipped += own
    return ReadSubjects(pool, skipped, frozenset(refused))


def _pictures(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    scan = scan_images(folder)
    masks = masks_among(scan.names)
    names = [name for name in scan.names if name not in masks]
    return names, [(str(folder / name), reason) for name, reason in scan.unreadable]
