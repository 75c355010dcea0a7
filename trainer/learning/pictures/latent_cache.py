"""Autoencoder moments of every training picture, computed once and stored in one memory-mapped file.

Mean and log-variance are stored instead of one sample, so that every step samples the posterior anew. The whole picture
is cached; random crops are cut on the latent grid. Letters: N pictures, V views (original, mirrored), C latent channels,
h and w the latent grid.
"""

import hashlib
import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ....concepts.denoiser.backbone import Backbone
from ....concepts.denoiser.denoiser import ProgressCallback
from ....concepts.errors import BestiaryError
from ....concepts.files.atomic_file import remove_leftovers, write_text
from ....concepts.pictures.square_fit import fit_shape
from ..run.processes import Parallel, SingleProcess
from ..run.run_settings import PictureSettings
from .image_files import image_to_tensor, read_image

logger = logging.getLogger("bestiary")
NOT_FINITE_REMEDY = (
    'Set run.dtype = "fp32" (some autoencoders overflow in half precision); if it is already fp32, check these pictures '
    "and the base model's vae"
)
MOMENTS_NAME, DONE_NAME, SPEC_NAME = "moments.f16", "done.u8", "spec.json"
SHARED_MEMORY = "/dev/shm"
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class CacheSpec:
    """Specification of a cache; every specification has its own cache."""

    model: str
    """Fingerprint of the autoencoder."""
    image_size: int
    """Edge of the cached square in pixels."""
    latent_size: int
    channels: int
    flip: bool
    pictures: tuple[tuple[str, int, int], ...]
    """Relative path, bytes and modification time in ns of every picture, in order."""
    precision: str = ""
    """Floating-point type of the autoencoder, such as float16; part of the key because it changes the latents."""
    pixels: tuple[int, int] | None = None
    """Height and width of the cached pictures where they are not squares of `image_size`."""

    @property
    def picture_shape(self) -> tuple[int, int]:
        """Height and width of the cached pictures in pixels."""
        return self.pixels or (self.image_size, self.image_size)

    @property
    def views(self) -> int:
        """Number of views of every picture: the original, and the mirrored one if `flip` is set."""
        return 2 if self.flip else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, V, 2, C, h, w): mean and log-variance."""
        factor = self.image_size // self.latent_size
        height, width = (edge // factor for edge in self.picture_shape)
        return (len(self.pictures), self.views, 2, self.channels, height, width)

    @property
    def byte_count(self) -> int:
        """Size on disk of moments of `shape`, (N, V, 2, C, h, w) in two bytes each."""
        return 2 * int(np.prod(self.shape))

    def fingerprint(self) -> str:
        """Sixteen hex digits that identify this specification."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()[:16]

    def as_json(self) -> str:
        """The specification as JSON text."""
        fields = dict(self.__dict__)
        # squares are known by their edge alone, as they always were
        if self.pixels is None:
            del fields["pixels"]
        return json.dumps(fields, sort_keys=True)


@dataclass(frozen=True)
class LatentCache:
    """Cached moments, read by slices."""

    moments: np.ndarray
    """(N, V, 2, C, h, w) float16, memory-mapped."""

    def read(
        self,
        rows: Sequence[int],
        views: Sequence[int],
        tops: Sequence[int],
        lefts: Sequence[int],
        size: int | tuple[int, int],
    ) -> Tensor:
        """Moments `(B, 2, C, h, w)` float16 of crops; tops, lefts and size, an edge or (h, w), in latent cells."""
        height, width = (size, size) if isinstance(size, int) else size
        picked = [
            self.moments[row, view, :, :, top : top + height, left : left + width]  # (2, C, h, w)
            for row, view, top, left in zip(rows, views, tops, lefts, strict=True)
        ]
        return torch.from_numpy(np.stack(picked))  # (B, 2, C, h, w)


class _Pictures(Dataset):
    """Decoded pictures of one shape by row number; contains only paths, because it is pickled to worker processes."""

    def __init__(self, paths: Sequence[Path], rows: Sequence[int], shape: tuple[int, int]) -> None:
        self.paths, self.rows, self.shape = list(paths), list(rows), shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        row = self.rows[index]
        picture = read_image(self.paths[row], max(self.shape))
        return row, image_to_tensor(fit_shape(picture, *self.shape))  # (3, H, W)


def picture_stamps(folder: Path, names: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
    """Name, bytes and modification time of every picture.

    Raises:
        BestiaryError: pictures are missing; the message gives their number and the first name.
    """
    # collect all missing pictures for a single message
    stamps, missing = [], []
    for name in names:
        try:
            status = (folder / name).stat()
        except OSError:
            missing.append(name)
            continue
        stamps.append((name, status.st_size, status.st_mtime_ns))
    if missing:
        raise BestiaryError(
            f"{len(missing)} of {len(names)} discovered pictures are missing in {folder}, first {missing[0]}: "
            "restore them, set images.folder to their folder, or run `bestiary discover` again"
        )
    return tuple(stamps)


def cache_spec(
    images: PictureSettings, backbone: Backbone, folder: Path, names: Sequence[str], *, model: str, precision: str
) -> CacheSpec:
    """Specification of a training's latent cache: `names` below `folder`, encoded with the settings `images`.

    Args:
        model: fingerprint of the autoencoder.
        precision: its floating-point type, such as "float32".

    Raises:
        BestiaryError: pictures are missing.
    """
    size, factor = images.cached_size(backbone), backbone.latent_factor
    height, width = (images.with_margin(edge, factor) for edge in images.training_shape(backbone))
    return CacheSpec(
        model=model,
        image_size=size,
        latent_size=size // factor,
        channels=backbone.latent_channels,
        flip=images.flip,
        pictures=picture_stamps(folder, names),
        precision=precision,
        pixels=None if height == width else (height, width),
    )


def open_cache(
    folder: Path,
    spec: CacheSpec,
    paths: Sequence[Path],
    load_encoder: Callable[[], Encode],
    *,
    batch_size: int,
    workers: int = 0,
    parallel: Parallel | None = None,
    on_progress: ProgressCallback | None = None,
) -> LatentCache:
    """The cache of `spec` below `folder`: reused, completed after an interruption, or built.

    Args:
        folder: may contain the caches of several specifications.
        paths: the pictures, in the order of `spec.pictures`.
        load_encoder: called only if pictures are left to encode; returns a function images `(B, 3, H, W)` in 0..1 -> moments.
        batch_size: pictures per call of the encoder.
        workers: processes that decode pictures (start method spawn); 0 decodes in this process.

    Raises:
        BestiaryError: the folder cannot be written to, the disk is full, a picture cannot be read, or the encoder returned
            values that are not finite, which are never stored.
    """
    parallel = parallel or SingleProcess()
    place = Path(folder) / spec.fingerprint()
    if parallel.rank == 0:
        _prepare(place, spec)
    parallel.wait()
    # memory-mapped, so that every process can write its own rows of one file
    moments = np.memmap(place / MOMENTS_NAME, np.float16, "r+", shape=spec.shape)
    done = np.memmap(place / DONE_NAME, np.uint8, "r+", shape=(len(paths),))
    # pictures are distributed round-robin over the processes
    rows = [row for row in range(parallel.rank, len(paths), parallel.size) if not done[row]]
    if rows:
        logger.info("encoding %d of %d pictures at %d x %d px", len(rows), len(paths), *reversed(spec.picture_shape))
        loader = _loader(_Pictures(paths, rows, spec.picture_shape), batch_size, workers)
        _encode_rows(loader, len(rows), load_encoder(), spec, moments, done, on_progress)
    parallel.wait()
    return LatentCache(np.memmap(place / MOMENTS_NAME, np.float16, "r", shape=spec.shape))


@torch.no_grad()
def _encode_rows(
    loader: DataLoader,
    total: int,
    encode: Encode,
    spec: CacheSpec,
    moments: np.memmap,
    done: np.memmap,
    on_progress: ProgressCallback | None,
) -> None:
    finished = 0
    for rows, images in loader:  # images (B, 3, H, W)
        for view in range(spec.views):
            mean, log_variance = encode(images.flip(-1) if view else images)  # (B, C, h, w) each
            both = torch.stack([mean, log_variance], dim=1).float().cpu()  # (B, 2, C, h, w)
            # an autoencoder of another shape must fail at the first batch, before anything is stored
            if both.shape[1:] != spec.shape[2:]:
                raise BestiaryError(
                    f"the autoencoder returned moments {tuple(both.shape[1:])}, expected {spec.shape[2:]}: "
                    "give a base model whose vae matches its unet"
                )
            halved = both.half()
            _check_finite(halved, [spec.pictures[row][0] for row in rows.tolist()], spec)
            moments[rows.numpy(), view] = halved.numpy()
        moments.flush()  # the moments must be on disk before their rows are marked as done
        # a stop between the two flushes only means encoding these pictures again
        done[rows.numpy()] = 1
        done.flush()
        finished += len(rows)
        if on_progress:
            on_progress(finished, total)


def _check_finite(moments: Tensor, names: Sequence[str], spec: CacheSpec) -> None:
    """Reject moments `(B, 2, C, h, w)` with values that are not finite, which would break every later training."""
    spoilt = [name for name, one in zip(names, moments, strict=True) if not torch.isfinite(one).all()]
    if spoilt:
        raise BestiaryError(
            f"the autoencoder returned latents that are not finite for {', '.join(spoilt)}, computed in "
            f"{spec.precision or 'an unknown precision'}; they were not stored. {NOT_FINITE_REMEDY}"
        )


def _prepare(place: Path, spec: CacheSpec) -> None:
    """Create the files of a new cache at full size, so that a full disk is detected at once."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        remove_leftovers(place)
        for name, size in ((MOMENTS_NAME, spec.byte_count), (DONE_NAME, len(spec.pictures))):
            path = place / name
            # a file of another size is not from this cache: recreate it and mark no row as done
            if not path.exists() or path.stat().st_size != size:
                (place / DONE_NAME).unlink(missing_ok=True)
                _reserve(path, size)
    except OSError as fault:
        raise BestiaryError(
            f"cannot store {spec.byte_count / 2**20:.0f} MiB of latents in {place}: {fault.strerror or fault}; "
            "free some space or set images.cache to another folder"
        ) from fault
    write_text(place / SPEC_NAME, spec.as_json())


def _reserve(path: Path, size: int) -> None:
    zeros = bytes(2**20)
    # write the zeros: a sparse file would fail with a full disk in the middle of the encoding
    with path.open("wb") as file:
        for start in range(0, size, len(zeros)):
            file.write(zeros[: size - start])


def _loader(pictures: _Pictures, batch_size: int, workers: int) -> DataLoader:
    if workers and not _can_share_memory(2 * workers * batch_size * 3 * math.prod(pictures.shape) * 4):
        logger.info("no shared memory for %d worker processes (/dev/shm): pictures are decoded in this one", workers)
        workers = 0
    # forked workers inherit locked thread pools, and Windows and macOS cannot fork at all
    context = "spawn" if workers else None
    return DataLoader(pictures, batch_size=batch_size, num_workers=workers, multiprocessing_context=context)


def _can_share_memory(needed: int) -> bool:
    """True if worker processes can transfer `needed` bytes; Linux uses /dev/shm, which containers may lack."""
    if not sys.platform.startswith("linux"):
        return True
    try:
        status = os.statvfs(SHARED_MEMORY)
        with tempfile.TemporaryFile(dir=SHARED_MEMORY):
            return status.f_bavail * status.f_frsize >= needed
    except OSError:
        return False
