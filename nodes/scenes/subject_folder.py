"""Subjects from pictures below ComfyUI's input folder: transparent, with a mask beside them, or cut out by IS-Net."""

from __future__ import annotations

import functools
import hashlib
import logging
from pathlib import Path, PurePosixPath, PureWindowsPath

import folder_paths

from ...concepts.errors import BestiaryError
from ...concepts.name_search import shown_name
from ...scenes.subject import PictureSource, Subject
from ...scenes.subject_sources import MaskSources, cut_subject, subject_names
from ...trainer.learning.pictures.companion_files import masks_among
from ...trainer.learning.pictures.cutout_files import read_pixels, with_masks
from ...trainer.learning.pictures.image_files import UnreadableImage, scan_images
from ...trainer.learning.pictures.mask_files import read_mask
from ..host.graph_progress import GraphProgress
from ..host.socket_types import SceneSubjects
from .segmentation_weights import AUTOMATIC, Segment, find_segment

LOG = logging.getLogger(__name__)


def input_folder(name: str) -> Path:
    """A folder below ComfyUI's input folder.

    Raises:
        BestiaryError: the name leads out of it, or there is no such folder.
    """
    root = Path(folder_paths.get_input_directory()).resolve()
    plain = name.strip().replace("\\", "/")
    path = (root / plain).resolve()
    if PureWindowsPath(plain).drive or PurePosixPath(plain).is_absolute() or not path.is_relative_to(root):
        raise BestiaryError(f"folder {shown_name(name)} leads out of ComfyUI's input folder: name a folder inside it")
    if not path.is_dir():
        raise BestiaryError(f"no folder {shown_name(name)} in ComfyUI's input folder {root}: put your pictures there")
    return path


def folder_stamp(name: str) -> str:
    """Changes when a picture of the folder does; empty where there is no such folder."""
    try:
        folder = input_folder(name)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        facts = [(path.relative_to(folder).as_posix(), path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    except (BestiaryError, OSError):
        return ""
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def read_folder(name: str, limit: int, progress: GraphProgress) -> tuple[SceneSubjects, str]:
    """The subjects of a folder, and a report with a line for every picture.

    Every picture is a subject that is called as its file. Pictures in a subfolder are all of one subject, called as the subfolder: the
    first is shown, the others are references.

    Args:
        name: folder below ComfyUI's input folder.
        limit: subjects at most.
        progress: counts pictures.

    Raises:
        BestiaryError: as `input_folder`; no picture can be used; a picture has neither alpha nor mask and there are no weights.
        InterruptProcessingException: the user cancelled.
    """
    folder = input_folder(name)
    scan = scan_images(folder)
    masks = masks_among(scan.names)
    files = [file for file in scan.names if file not in masks]
    lines = [f"{file}: skipped, {reason}" for file, reason in scan.unreadable]
    found: dict[str, list[Subject]] = {}
    segment, beside = find_segment(AUTOMATIC), dict(with_masks(files, folder, None))
    progress.begin(len(files))
    for group, members in _grouped(files).items():
        # pictures that cannot be used do not count
        if len(found) == limit:
            break
        for file in members:
            progress.add()
            try:
                made, line = _cut(folder, file, group, beside[file], segment)
            except UnreadableImage as fault:
                made, line = None, f"skipped, {fault.reason}"
            lines.append(f"{file}: {line}")
            if made is None:
                LOG.warning("skipped %s: %s", file, line)
            else:
                found.setdefault(group, []).append(made)
    progress.finish()
    if not found:
        said = "; ".join(lines[:3]) or "it holds no picture"
        raise BestiaryError(f"folder {shown_name(name)} gives no subject ({said}): add pictures, or masks for these")
    firsts, rests = [one[0] for one in found.values()], [other for one in found.values() for other in one[1:]]
    return SceneSubjects(tuple(firsts), tuple(rests)), "\n".join(lines)


def _grouped(files: list[str]) -> dict[str, list[str]]:
    """Pictures by the name of their subject, in the order of the files."""
    alone = subject_names([file for file in files if "/" not in file])
    folders = subject_names(list(dict.fromkeys(file.split("/")[0] for file in files if "/" in file)))
    groups: dict[str, list[str]] = {}
    for file in files:
        group = alone[file] if file in alone else folders[file.split("/")[0]]
        groups.setdefault(group, []).append(file)
    return groups


def _cut(
    folder: Path, file: str, name: str, mask_file: Path | None, segment: Segment | None
) -> tuple[Subject | None, str]:
    """The subject of a picture, or None, and what became of it in words."""
    path = folder / file
    pixels = read_pixels(path)  # (h, w, 3) or (h, w, 4)
    size = (pixels.shape[1], pixels.shape[0])
    mask = None if mask_file is None else functools.partial(read_mask, mask_file, size)
    source = PictureSource(file, hashlib.sha256(path.read_bytes()).hexdigest())
    cut = cut_subject(pixels, name, MaskSources(mask=mask, isnet=segment), source=source)
    if cut.subject is None:
        return None, f"skipped, {'; '.join(cut.faults)}"
    height, width = cut.subject.cutout.shape[:2]
    return cut.subject, f"{name}, {width} x {height} pixels by {cut.way}"
