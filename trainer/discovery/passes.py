"""The two streaming passes over pictures: features of sampled pictures, then labels and part means of all of them.

Letters: n pictures, S edge in pixels, (h, w) patch grid, M parts, D channels.
"""

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.features.patch_features import FeatureSource, PatchGrid
from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_map.sample_checks import plain_pictures
from ...concepts.part_map.sample_views import SampleViews, look_again, viewed_pictures
from ..learning.discovery.discovery_doubts import part_sureness
from ..learning.pictures.image_files import GONE, UnreadableImage, fit_square, image_to_tensor, read_image
from .foreground_masks import ForegroundMasks
from .state import DiscoveryState, PartShard, SampleShard, Skipped

_PLAIN = "it is one plain colour and shows nothing"


@dataclass(frozen=True)
class PictureReader:
    """Reads pictures of a list as squares of one size, one batch ahead."""

    root: Path
    names: Sequence[str]
    """Paths relative to the root."""
    size: int
    threads: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    masks: ForegroundMasks | None = None
    """Foreground masks given by the user, if any."""

    def batches(self, indices: Sequence[int], batch_size: int, skipped: Skipped) -> Iterator[tuple[list[int], Tensor]]:
        """Batches of (indices into the list, images `(n, 3, S, S)` in 0..1); unreadable files are added to `skipped`."""
        pieces = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        with ThreadPoolExecutor(self.threads) as pool:
            ahead = [pool.submit(self.read, index) for index in (pieces[0] if pieces else [])]
            for number, piece in enumerate(pieces):
                # decode the next batch while the features of this one are computed
                waiting, following = ahead, pieces[number + 1] if number + 1 < len(pieces) else []
                ahead = [pool.submit(self.read, index) for index in following]
                read = [(index, future.result()) for index, future in zip(piece, waiting, strict=True)]
                skipped.extend((self.names[index], found) for index, found in read if isinstance(found, str))
                # the order of `piece` is kept; one unreadable file must not stop the run
                good = [(index, found) for index, found in read if isinstance(found, Tensor)]
                if good:
                    yield [index for index, _ in good], torch.stack([found for _, found in good])  # (n, 3, S, S)

    def read(self, index: int) -> Tensor | str:
        """One picture `(3, S, S)` in 0..1, or the reason why it cannot be used."""
        try:
            image = image_to_tensor(
                fit_square(read_image(self.root / self.names[index], at_least=self.size), self.size)
            )
        except UnreadableImage as fault:
            return fault.reason
        if bool(plain_pictures(image.unsqueeze(0))[0]):
            return _PLAIN
        return image

    def marked(self, indices: Sequence[int], grid: tuple[int, int]) -> Tensor | None:
        """Foreground share of every patch `(n, h, w)`, NaN for pictures without a mask; None if no picture has one."""
        if self.masks is None:
            return None
        found = [self.masks.on_grid(self.names[index], grid) for index in indices]
        if all(mask is None for mask in found):
            return None
        return torch.stack([torch.full(grid, torch.nan) if mask is None else mask for mask in found])


def sample_shard(
    state: DiscoveryState,
    shard: int,
    chosen: Sequence[int],
    reader: PictureReader,
    source: FeatureSource,
    batch_size: int,
) -> None:
    """Pass 1: store the features of the chosen pictures of a shard."""
    skipped: Skipped = []
    found = list(_described(chosen, reader, source, batch_size, skipped))
    _check_still_there(reader, len(chosen), skipped)
    state.write_sample(shard, _joined_sample(found) if found else None, skipped)


def views_of_sample(found: SampleShard, reader: PictureReader, source: FeatureSource, seed: int) -> SampleViews | None:
    """Second views of some pictures of a sample; if some pictures have masks, of those only and numbered among them."""
    index = found.index if found.marked is None else found.index[~found.marked.flatten(1).isnan().any(1)]
    read = ((row, reader.read(int(index[row]))) for row in viewed_pictures(len(index)))
    # pictures that can no longer be read are reported in pass 2
    return look_again(((row, image) for row, image in read if isinstance(image, Tensor)), source, seed=seed)


def describe_shard(
    state: DiscoveryState,
    shard: int,
    reader: PictureReader,
    source: FeatureSource,
    codebook: PartCodebook,
    batch_size: int,
) -> float:
    """Pass 2: store part labels and part means of every picture of a shard; returns the seconds spent on labels."""
    skipped: Skipped = []
    sampled, unreadable = state.read_sample(shard)
    # pictures that pass 1 has already read or failed to read
    settled = set() if sampled is None else {reader.names[index] for index in sampled.index.tolist()}
    settled |= {name for name, _ in unreadable}
    left = [index for index in state.images_of(shard) if reader.names[index] not in settled]
    # features of the sample are reused; `_joined_parts` restores the order afterwards
    pieces = [] if sampled is None else list(_in_batches(sampled, batch_size))
    labelled, seconds = [], 0.0
    for piece in itertools.chain(pieces, _described(left, reader, source, batch_size, skipped)):
        begun = time.monotonic()
        labelled.append(_part_piece(piece, codebook))
        seconds += time.monotonic() - begun
    _check_still_there(reader, len(left), skipped)
    state.write_parts(shard, _joined_parts(labelled) if labelled else None, sorted([*unreadable, *skipped]))
    return seconds


def joined_sample(state: DiscoveryState) -> SampleShard:
    """All stored samples, in the order of the pictures.

    Raises:
        BestiaryError: no chosen picture could be read; the message gives the first reasons.
    """
    pieces, unreadable = [], []
    for shard in range(state.num_shards):
        found, skipped = state.read_sample(shard)
        pieces += [] if found is None else [found]
        unreadable += skipped
    # nothing to fit: report the first reasons
    if not pieces:
        if all(reason == _PLAIN for _, reason in unreadable):
            raise BestiaryError(
                f"no foreground found: all {len(unreadable)} pictures are one plain colour; give pictures that show an object"
            )
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unreadable[:3])
        raise BestiaryError(f"none of {len(unreadable)} pictures could be read ({reasons}): give a folder of pictures")
    return _joined_sample(pieces)


def check_features(grid: PatchGrid, names: Sequence[str]) -> None:
    """Refuse features `(n, h, w, D)` that are not finite numbers.

    Raises:
        BestiaryError: the message names the first picture concerned.
    """
    finite = torch.isfinite(grid.features).flatten(1).all(1)  # (n,)
    if not bool(finite.all()):
        name = names[int((~finite).nonzero()[0])]
        raise BestiaryError(
            f"the features of {name} are not finite numbers: choose another --dtype (fp32), or --source"
        )


def _check_still_there(reader: PictureReader, count: int, skipped: Skipped) -> None:
    """Stop before a shard is written without its pictures: the result would look complete although pictures are missing.

    Raises:
        BestiaryError: the folder, or most of `count` pictures that were to be read, has vanished.
    """
    gone = [name for name, reason in skipped if reason == GONE]
    if not reader.root.is_dir() or 2 * len(gone) > count:
        cause = f"{len(gone)} of {count} pictures no longer exist, first {gone[0]}" if gone else "it no longer exists"
        raise BestiaryError(
            f"the picture folder {reader.root} disappeared while it was read ({cause}): restore it and run the same command "
            "again to continue"
        )


def _described(
    indices: Sequence[int], reader: PictureReader, source: FeatureSource, batch_size: int, skipped: Skipped
) -> Iterator[SampleShard]:
    for places, images in reader.batches(indices, batch_size, skipped):
        grid = source(images)
        check_features(grid, [reader.names[place] for place in places])
        marked = reader.marked(places, (grid.features.shape[1], grid.features.shape[2]))  # (n, h, w)
        # rounded like stored samples, so that a picture gets the same labels whether it was sampled or not
        yield SampleShard(torch.tensor(places), grid.rounded(), marked)


def _in_batches(sampled: SampleShard, batch_size: int) -> Iterator[SampleShard]:
    for start in range(0, len(sampled.index), batch_size):
        rows = slice(start, start + batch_size)
        marked = None if sampled.marked is None else sampled.marked[rows]
        yield SampleShard(sampled.index[rows], sampled.grid.rows(rows), marked)


def _part_piece(piece: SampleShard, codebook: PartCodebook) -> PartShard:
    labels = codebook.label(piece.grid, piece.marked)  # (n, h, w)
    means, counts = codebook.part_means(piece.grid, labels)  # (n, M, D), (n, M)
    confidence = codebook.confidence(piece.grid, labels)  # (n, h, w)
    if piece.marked is not None:
        confidence = torch.where(piece.marked.isnan(), confidence, torch.ones(()))  # masks are certain
    sure = part_sureness(confidence, labels, codebook.num_parts)  # (n, M)
    return PartShard(piece.index.int(), labels.cpu(), counts.int(), means.half(), sure.half())


def _joined_sample(pieces: Sequence[SampleShard]) -> SampleShard:
    grid = PatchGrid.joined([piece.grid for piece in pieces])
    shapes = [piece.grid.features.shape[:3] for piece in pieces]
    marked = None
    if any(piece.marked is not None for piece in pieces):
        unknown = (
            torch.full(shape, torch.nan) if piece.marked is None else piece.marked
            for piece, shape in zip(pieces, shapes, strict=True)
        )  # fmt: skip
        marked = torch.cat(list(unknown))  # (n, h, w)
    return SampleShard(torch.cat([piece.index for piece in pieces]), grid, marked)


def _joined_parts(pieces: Sequence[PartShard]) -> PartShard:
    """All pictures of a shard, labels `(n, h, w)` and means `(n, M, D)`, in the order of the list of files."""
    index = torch.cat([piece.index for piece in pieces])  # (n,)
    order = index.argsort()
    names = ("labels", "counts", "means", "sure")
    labels, counts, means, sure = (torch.cat([getattr(piece, name) for piece in pieces])[order] for name in names)
    return PartShard(index[order], labels, counts, means, sure)
