"""Pictures of a class, which keep what a model knows of it: those that are there, and only the missing ones made."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...concepts.denoiser.denoiser import PromptPiece
from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import replacing
from ..learning.pictures.contact_sheet import to_image
from ..learning.pictures.image_files import scan_images
from ..learning.run.processes import Parallel, SingleProcess
from ..learning.run.progress_report import duration
from ..model.sampling import SamplingDenoiser, pictures_at_once, sample_images

logger = logging.getLogger("bestiary")
STEPS, GUIDANCE = 30, 7.5


def class_pictures(folder: Path) -> list[str]:
    """Names of the readable pictures in a folder, sorted; none where there is no folder."""
    return list(scan_images(folder, []).names) if folder.is_dir() else []


def make_missing(
    denoiser: SamplingDenoiser,
    prompt: str,
    folder: Path,
    count: int,
    *,
    size: int,
    on_made: Callable[[int, int], None] | None = None,
    at_once: int | None = None,
    parallel: Parallel | None = None,
) -> list[str]:
    """Fill a folder up to `count` pictures of `prompt`, one file per seed; names of all that are there then.

    Of several processes each makes its share, and none returns before all have. A file that is there is never changed. A stop leaves whole pictures, and the next call makes the rest. How long the rest will take is logged
    after the first ones.

    Args:
        at_once: pictures of a batch; None takes as many as fit.
        parallel: the processes that share the work; None is this one alone.

    Raises:
        BestiaryError: the folder cannot be written to, or the disk is full.
    """
    parallel = parallel or SingleProcess()
    present = class_pictures(folder)
    missing = count - len(present)
    if missing <= 0:
        return present[:count]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise BestiaryError(
            f"cannot make the folder {folder} for pictures of the class: {fault.strerror or fault}"
        ) from fault
    seeds = _free_seeds(folder, missing)[parallel.rank :: parallel.size]
    parallel.wait()  # nobody writes before all have looked
    missing = len(seeds)
    logger.info("making %d pictures of %r in %s", missing, prompt, folder)
    text = denoiser.text.encode([denoiser.text.tokenize([PromptPiece(prompt)], chunks=1)], None)
    at_once, made, started = at_once or pictures_at_once(denoiser, size), 0, time.monotonic()
    for start in range(0, missing, at_once):
        some = seeds[start : start + at_once]
        with torch.no_grad():
            pictures = sample_images(denoiser, text, None, seeds=some, steps=STEPS, guidance=GUIDANCE, size=size).images
        for seed, picture in zip(some, pictures, strict=True):
            with replacing(folder / _name(seed)) as temporary:
                to_image(picture).save(temporary, "PNG")
            made += 1
            if on_made:
                on_made(made, missing)
        if not start and made < missing:
            left = (time.monotonic() - started) / made * (missing - made)
            logger.info("the other %d pictures of the class take about %s", missing - made, duration(left))
    parallel.wait()
    return class_pictures(folder)[:count]


@dataclass(frozen=True)
class MakingTime:
    """How long the missing pictures of a class will take."""

    missing: int
    """Pictures still to be made."""
    seconds: float
    """Of one of them, made alone."""

    def __str__(self) -> str:
        took = f"one took {self.seconds:.1f} s"
        return f"{self.missing} more are made before the first step, in about {duration(self.missing * self.seconds)} ({took})"


def time_one(denoiser: SamplingDenoiser, prompt: str, folder: Path, count: int, *, size: int) -> MakingTime | None:
    """Make one of the missing pictures, as `make_missing` will make the others, and time it; None where none is missing.

    Raises:
        BestiaryError: as `make_missing`.
    """
    missing = count - len(class_pictures(folder))
    if missing <= 0:
        return None
    started = time.monotonic()
    make_missing(denoiser, prompt, folder, count - missing + 1, size=size, at_once=1)
    return MakingTime(missing - 1, time.monotonic() - started)


def _free_seeds(folder: Path, count: int) -> Sequence[int]:
    seeds, seed = [], 0
    while len(seeds) < count:
        if not (folder / _name(seed)).exists():
            seeds.append(seed)
        seed += 1
    return seeds


def _name(seed: int) -> str:
    return f"class-{seed:05d}.png"
