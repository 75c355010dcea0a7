"""Finds and reads picture files of any colour mode, or rejects them with a reason.

Pictures are decoded to upright 8-bit RGB: rotation tags are applied, transparency is composited on white, 16-bit and
float values are scaled to 8 bits, an animation yields its first frame. Very large JPEGs are decoded at a fraction of their
size. HEIC pictures are read if pillow-heif is installed, and reported as skipped otherwise.
"""

import importlib
import os
import stat
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, JpegImagePlugin
from torch import Tensor

from ....concepts.errors import BestiaryError
from ....concepts.pictures.square_fit import fit_square as fit_square

HEIC_SUFFIXES = frozenset([".heic", ".heif", ".hif"])
"""Suffixes of pictures that only pillow-heif reads."""
SUFFIXES = HEIC_SUFFIXES | frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".jp2",
        ".j2k",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".tga",
        ".avif",
        ".ico",
        ".mpo",
    ]
)
"""Suffixes of picture files, in lower case."""
MIN_EDGE = 16
"""Minimum pixels of the shorter edge; smaller pictures are rejected."""
MAX_PIXELS = 90_000_000
"""Maximum number of pixels: a small file can declare a picture of many gigabytes."""
MAX_JPEG_PIXELS = 800_000_000
"""Limit for JPEG files, which can be decoded at an eighth of their size."""

GONE = "it no longer exists"
"""Reason for a picture that was listed but has been deleted since."""
OTHER_PICTURES = frozenset(
    [
        ".svg",
        ".psd",
        ".xcf",
        ".kra",
        ".jxl",
        ".exr",
        ".hdr",
        ".raw",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".orf",
        ".rw2",
        ".raf",
        ".eps",
        ".ai",
        ".pdf",
        ".mp4",
        ".mov",
        ".webm",
    ]
)
"""Suffixes of pictures and videos that are not supported; reported, because a user may expect them to be read."""

_JPEG_START = b"\xff\xd8\xff"
_ORIENTATION_TAG = 0x0112
_DRAFT_EDGE = 2048
_FLAT_AREAS = 0.5  # share of equal neighbouring pixels
_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    NotImplementedError,
    struct.error,
    Image.DecompressionBombError,
)
"""Exceptions that Pillow's decoders raise for broken files."""


# these problems are handled or reported here; a filter set during reading would not be thread-safe
warnings.filterwarnings("ignore", module=r"PIL\.")


class UnreadableImage(BestiaryError):
    """A file that cannot be read as a picture; `reason` is a text for the list of skipped files."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class ImageScan:
    """Contents of a folder and its subfolders."""

    names: list[str]
    """Picture files in sorted order, relative to the folder, with forward slashes."""
    other_files: dict[str, int] = field(default_factory=dict)
    """Other files: suffix -> number."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """Folders and pictures that cannot be used, relative to the folder, with the reason."""
    others: list[tuple[str, str]] = field(default_factory=list)
    """Files without a picture suffix, relative to the folder, with the reason."""


def scan_images(folder: Path, leave_out: Iterable[Path] = ()) -> ImageScan:
    """Find the picture files below a folder, except hidden entries and the folders `leave_out`.

    Links to folders are followed, each folder once.

    Raises:
        BestiaryError: the folder does not exist, or is a file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise BestiaryError(f"image folder {folder} {state}: give a folder of pictures")
    scan, kinds = ImageScan([]), Counter()
    # classified by suffix and file type without opening: a folder may contain millions of files
    for name in walk_files(folder, leave_out, scan.unreadable):
        suffix = os.path.splitext(name)[1].lower()
        if suffix not in SUFFIXES:
            kinds[shown_path(suffix) or "no suffix"] += 1
            taken = scan.unreadable if suffix in OTHER_PICTURES else scan.others
            taken.append(
                (
                    shown_path(name),
                    f"{shown_path(suffix) or 'a name without suffix'} is not a supported picture format",
                )
            )
        elif (reason := _name_fault(name) or _file_fault(folder / name)) is not None:
            scan.unreadable.append((shown_path(name), reason))
        else:
            scan.names.append(name)
    scan.other_files.update(sorted(kinds.items()))
    return scan


def list_images(folder: Path) -> list[Path]:
    """Picture files of a folder and its subfolders, in sorted order.

    Raises:
        BestiaryError: the folder does not exist, or is a file.
    """
    return [Path(folder, name) for name in scan_images(folder).names]


def read_image(path: Path, at_least: int | None = None) -> Image.Image:
    """Decode a file to an upright RGB picture.

    Args:
        at_least: edge in pixels that the caller needs; a large JPEG is then decoded at 1/2, 1/4 or 1/8 of its size,
            with a shorter edge of at least twice this.

    Raises:
        UnreadableImage: the file is empty, broken, truncated, not a picture, too small, too large or not readable.
    """
    return decoded(path, _rgb, at_least)


def decoded(path: Path, convert: Callable[[Image.Image], Image.Image], at_least: int | None = None) -> Image.Image:
    """Decode a file, convert its colour mode, and rotate it upright.

    Args:
        convert: converts the loaded picture from the file's own mode.
        at_least: as in `read_image`.

    Raises:
        UnreadableImage: as `read_image`.
    """
    with _opened(Path(path)) as image:
        _reduce_jpeg(image, at_least)
        # read before decoding, which may close the file
        orientation = _orientation(image)
        image.load()
        upright = convert(image)
        return upright if orientation is None else upright.transpose(orientation)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of the upright picture; reads only the header.

    Raises:
        UnreadableImage: as `read_image`, for faults that the header shows.
    """
    with _opened(Path(path)) as image:
        width, height = image.size
        turned = _orientation(image) in _SIDEWAYS
        return (height, width) if turned else (width, height)


def shown_path(name: str) -> str:
    """A path that is safe to print: bytes that are not UTF-8 and line breaks are escaped."""
    return name if _name_fault(name) is None else ascii(name)[1:-1]


def look_like_photographs(folder: Path, names: Sequence[str], most: int = 8) -> bool:
    """True if most of a sample of the pictures lack the flat areas that are typical of drawings."""
    flat = []
    for name in names[:: max(1, len(names) // most)][:most]:
        try:
            pixels = np.asarray(read_image(folder / name, at_least=256), dtype=np.int16)  # (H, W, 3)
        except UnreadableImage:
            continue
        flat.append(float((pixels[:, 1:] == pixels[:, :-1]).all(axis=2).mean()))
    return bool(flat) and float(np.median(flat)) < _FLAT_AREAS


def image_to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as floats `(3, H, W)` in 0..1."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.uint8))  # (H, W, 3)
    return pixels.permute(2, 0, 1).contiguous().float() / 255


def walk_files(
    folder: Path, leave_out: Iterable[Path] = (), unreadable: list[tuple[str, str]] | None = None
) -> Iterator[str]:
    """Files below a folder in sorted order, except hidden ones, as relative paths with forward slashes.

    Args:
        leave_out: folders that are not entered.
        unreadable: receives (relative path, reason) of folders that cannot be opened.
    """
    seen: set[Path] = set()
    left_out = {Path(path).resolve() for path in leave_out}

    def note(fault: OSError) -> None:
        if unreadable is not None:
            name = shown_path(os.path.relpath(fault.filename, folder))
            unreadable.append((name, f"the folder cannot be opened: {fault.strerror}"))

    for place, folders, files in os.walk(folder, onerror=note, followlinks=True):
        # links may form cycles: every real folder is entered once
        here = Path(place).resolve()
        if here in seen or here in left_out:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not _hidden(name))
        prefix = "" if place == str(folder) else Path(os.path.relpath(place, folder)).as_posix() + "/"
        yield from (prefix + name for name in sorted(files) if not _hidden(name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _name_fault(name: str) -> str | None:
    try:
        # names that are not UTF-8 reach Python as lone surrogates, which cannot be written to a text file
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not valid Unicode: rename the file"
    return "its name contains a line break: rename the file" if len(name.splitlines()) > 1 else None


def _file_fault(path: Path) -> str | None:
    """Reason if a directory entry is not a regular file; missing files are reported when they are read."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "it is a broken link" if path.is_symlink() else None
    except OSError:
        return None
    # reading a pipe would wait for a writer forever
    return None if stat.S_ISREG(mode) else "it is a pipe, a socket or a device, not a file"


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture of a file with a checked size; exceptions of decoders become UnreadableImage."""
    if reason := _file_fault(path):
        raise UnreadableImage(path, reason)
    try:
        with open(path, "rb") as stream:
            image = _open(path, stream)
            _check_size(image, path)
            yield image
    except UnreadableImage:
        raise
    except _FAULTS as fault:
        raise UnreadableImage(path, _reason(path, fault)) from fault


def _open(path: Path, stream: BinaryIO) -> Image.Image:
    start = stream.read(len(_JPEG_START))
    if not start:
        raise UnreadableImage(path, "the file is empty")
    stream.seek(0)
    if start != _JPEG_START:
        if path.suffix.lower() in HEIC_SUFFIXES:
            _learn_heic(path)
        return Image.open(stream)
    # JpegImageFile bypasses Pillow's size limit, which would reject the file before `draft` can reduce it
    return JpegImagePlugin.JpegImageFile(stream)


def _learn_heic(path: Path) -> None:
    """Register HEIC with Pillow, if pillow-heif is installed."""
    try:
        # no requirement of ours, so a type checker need not find it
        heif = importlib.import_module("pillow_heif")
    except ImportError as fault:
        raise UnreadableImage(
            path, "it is a HEIC picture: install pillow-heif (`pip install pillow-heif`), or save it as JPEG or PNG"
        ) from fault
    heif.register_heif_opener()


def _check_size(image: Image.Image, path: Path) -> None:
    width, height = image.size
    if min(width, height) < MIN_EDGE:
        raise UnreadableImage(
            path, f"{width} x {height} pixels are too few: at least {MIN_EDGE} x {MIN_EDGE} are required"
        )
    # only JPEGs can be decoded at a fraction of their size
    limit = MAX_JPEG_PIXELS if image.format in ("JPEG", "MPO") else MAX_PIXELS
    if width * height > limit:
        raise UnreadableImage(
            path, f"{width} x {height} pixels are too many: resize it to at most {limit // 1_000_000} million pixels"
        )


def _reduce_jpeg(image: Image.Image, at_least: int | None) -> None:
    """Ask the JPEG decoder for a smaller picture; other formats ignore it."""
    if at_least is not None:
        image.draft(None, (2 * at_least, 2 * at_least))
    elif image.width * image.height > MAX_PIXELS:
        image.draft(None, (_DRAFT_EDGE, _DRAFT_EDGE))


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """Transposition that turns the picture upright; broken tags count as upright."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _FAULTS:
        return None
    # EXIF orientation values; 1 is upright
    turns = Image.Transpose
    return {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(value)


def _rgb(image: Image.Image) -> Image.Image:
    """Any colour mode as RGB; transparent pixels become white."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _eight_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # also a key colour of RGB or palette files becomes alpha here
        layer = image.convert("RGBA")
        # transparent pixels have arbitrary colours in the file, so composite on white
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Integer and float pixels scaled to 0..255 by the usual range of their type, or by their own maximum beyond it."""
    # (H, W), one channel: colour pictures of 16 bits are reduced by Pillow itself
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    largest = float(values.max(initial=0.0))
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    if image.mode.startswith("I;16"):
        ranges = (65535.0,)
    # the smallest usual range that contains all values, else their own maximum
    scale = next((top for top in ranges if largest <= top), largest)
    return Image.fromarray((values / scale * 255).clip(0, 255).round().astype(np.uint8))


def _reason(path: Path, fault: BaseException) -> str:
    if isinstance(fault, PermissionError):
        return "it cannot be read: check its permissions"
    if isinstance(fault, FileNotFoundError):
        return GONE
    if isinstance(fault, Image.DecompressionBombError):
        return f"it has too many pixels: resize it to at most {MAX_PIXELS // 1_000_000} million pixels"
    if isinstance(fault, Image.UnidentifiedImageError):
        return "it is not a picture, or its format is not supported here"
    if isinstance(fault, MemoryError):
        return "there is not enough memory to decode it"
    text = str(fault).strip() or type(fault).__name__
    # Pillow has no exception type for truncated files
    kind = "it is truncated" if "truncated" in text.lower() or isinstance(fault, EOFError) else "it is damaged"
    return f"{kind} ({text.replace(str(path), path.name).splitlines()[0]})"
