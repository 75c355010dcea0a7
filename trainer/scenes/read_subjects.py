"""Pictures of subjects as cut-outs: the file's own transparency, a mask beside it, or IS-Net."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...concepts.errors import BestiaryError
from ...concepts.files.pack import ROOT
from ...scenes.source_list import SourceTerms, with_terms
from ...scenes.subject import PictureSource, Subject
from ...scenes.subject_sources import WEIGHTS_FOLDER, MaskSources, Segment, cut_subject
from ..learning.pictures.companion_files import CompanionFolder, masks_among
from ..learning.pictures.image_files import UnreadableImage, decoded, read_image, scan_images
from ..learning.pictures.mask_files import read_mask
from .scene_settings import SubjectSettings

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadSubjects:
    """Cut-outs by name of the subject, and pictures that gave none."""

    pool: Mapping[str, list[Subject]]
    skipped: Sequence[tuple[str, str]]
    """File and reason."""


def find_segment(weights: Path | None) -> Segment | None:
    """IS-Net with the weights of a file, of models/bestiary/segmentation, or None without any.

    Raises:
        BestiaryError: no such file, or it holds no weights of IS-Net.
    """
    from ...scenes.isnet import segment
    from ...scenes.isnet_weights import load_isnet, weights_in

    if weights is not None and not weights.is_file():
        raise BestiaryError(f"no file of weights {weights}: give an IS-Net file, or leave --weights out")
    found = weights or weights_in(Path(WEIGHTS_FOLDER)) or weights_in(ROOT / WEIGHTS_FOLDER)
    return None if found is None else partial(segment, load_isnet(found))


def read_subjects(
    asked: Sequence[SubjectSettings],
    weights: Path | None = None,
    terms: Mapping[str, SourceTerms] | None = None,
    *,
    backend: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReadSubjects:
    """Every picture of every subject, cut out; those that cannot be used are skipped with a reason.

    Args:
        asked: names, folders and words.
        weights: IS-Net file; None for the usual folder.
        terms: licence and author by file.
        backend: one way to take and no other, as in `find_mask`.
        on_progress: called with (done, total) pictures.

    Raises:
        BestiaryError: a folder is missing; a picture has neither transparency nor mask and there are no weights; a subject is left
            without any picture.
    """
    segment = find_segment(weights)
    folders = [_pictures(subject.folder) for subject in asked]
    total, done = sum(len(names) for names, _ in folders), 0
    pool: dict[str, list[Subject]] = {subject.name: [] for subject in asked}
    skipped: list[tuple[str, str]] = []
    for subject, (names, unreadable) in zip(asked, folders, strict=True):
        skipped += unreadable
        beside = CompanionFolder(subject.masks or subject.folder, names)
        pictures = frozenset((subject.folder / name).resolve() for name in names)
        for name in names:
            path = subject.folder / name
            try:
                cut = _cut(path, subject, partial(_mask, beside, name, pictures), segment, terms or {}, backend)
            except UnreadableImage as fault:
                skipped.append((str(path), fault.reason))
            else:
                if cut.warning:
                    LOG.warning("%s: %s", path, cut.warning)
                if cut.subject is not None:
                    pool[subject.name].append(cut.subject)
                else:
                    skipped.append((str(path), "; ".join(cut.faults)))
            done += 1
            on_progress(done, total)
    for path, reason in skipped:
        LOG.warning("skipped %s: %s", path, reason)
    for subject in asked:
        if not pool[subject.name]:
            reasons = [
                f"{Path(path).name}: {reason}" for path, reason in skipped if Path(path).is_relative_to(subject.folder)
            ]
            raise BestiaryError(
                f"subject {subject.name!r}: no picture in {subject.folder} can be used ({'; '.join(reasons[:3]) or 'there is none'}): "
                "give others, or masks for them"
            )
    return ReadSubjects(pool, skipped)


def _pictures(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    scan = scan_images(folder)
    masks = masks_among(scan.names)
    names = [name for name in scan.names if name not in masks]
    return names, [(str(folder / name), reason) for name, reason in scan.unreadable]


def _mask(beside: CompanionFolder, name: str, pictures: frozenset[Path], size: tuple[int, int]) -> np.ndarray | None:
    found = beside.of(name)
    # in the pictures' own folder a picture bears its own name, and is nobody's mask
    return None if found is None or found.resolve() in pictures else read_mask(found, size)


def _cut(path: Path, asked: SubjectSettings, mask: Callable, segment: Segment | None, terms: Mapping, backend: str):
    pixels = read_pixels(path)  # (h, w, 3) or (h, w, 4)
    size = (pixels.shape[1], pixels.shape[0])
    source = with_terms(PictureSource(path.as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()), terms)
    return cut_subject(
        pixels,
        asked.name,
        MaskSources(mask=partial(mask, size), isnet=segment),
        backend=backend,
        words=asked.words,
        size=asked.size,
        support=asked.support,
        source=source,
    )


def read_pixels(path: Path) -> np.ndarray:
    """A picture `(h, w, 3)` uint8 RGB, or `(h, w, 4)` with straight alpha where the file is transparent somewhere.

    Raises:
        UnreadableImage: as `read_image`.
    """
    layer = decoded(path, _layer)
    return np.asarray(layer if layer.mode == "RGBA" else read_image(path))


def _layer(image: Image.Image) -> Image.Image:
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    return image.convert("RGBA") if has_alpha else image
