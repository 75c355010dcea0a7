"""Final step of a discovery: fits the kinds to the stored part means and writes all files, one shard in memory at a time.

Letters: N pictures, n pictures of a shard, (h, w) patch grid, M parts, d channels of part means.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_map.part_discovery import fit_kinds
from ...concepts.part_map.part_map import PartMaps
from ...concepts.part_map.sample_checks import foreground_doubts
from ...concepts.part_prompt.caption_file import format_caption
from ..learning.discovery.discovery_doubts import Doubt, UsualPictures, most_doubtful
from ..learning.discovery.discovery_folder import (
    CAPTIONS,
    CODEBOOK,
    IMAGES,
    PAGE,
    PART_MAPS,
    SKIPPED,
    read_labels,
    write_lines,
    write_maps,
    write_report,
    write_skipped,
)
from ..learning.discovery.discovery_report import DiscoveryReport, RunFacts
from ..learning.discovery.part_names import NamesFile, PartPlaces, apply_names, propose_names
from .counts import PartCounts, TypicalPictures
from .page import EXAMPLES, page_content, write_discovery_page
from .state import DiscoveryState, PartShard, Skipped

REPORT_FORMAT = 1


@dataclass(frozen=True)
class PassesDone:
    """Results of the passes, and facts for the report."""

    folder: Path
    images_folder: Path
    names: list[str]
    """Picture files relative to their folder, in the order of the passes."""
    unreadable: Skipped
    """Entries of the folder that were skipped before the passes."""
    state: DiscoveryState
    about: RunFacts
    """Settings, source and files, for the report."""
    warnings: Sequence[str] = ()
    """Warnings shown at the top of the page."""


def finish_discovery(
    done: PassesDone, names: NamesFile, *, num_kinds: int | None, kind_images: int, seed: int
) -> DiscoveryReport:
    """Fit the kinds and write all files of the result, the report last; returns the report.

    Args:
        kind_images: maximum number of pictures to fit the kinds on.

    Raises:
        BestiaryError: fewer pictures than kinds, names of parts that do not exist, or a folder that cannot be written to.
    """
    state, folder = done.state, done.folder
    total = state.count_parts()
    # a bounded sample of the part means: memory must not grow with the folder
    coarse = PartCodebook.load(state.coarse_path)
    means, counts = _kind_sample(state, total, kind_images, seed)  # (n, M, d), (n, M)
    codebook = fit_kinds(coarse, means.float(), counts, num_kinds=num_kinds, seed=seed)
    # `stream` collects sizes, positions and typical pictures while the maps are written; names derive from positions
    stream = _ResultStream(state, codebook)
    write_maps(folder / PART_MAPS, stream.maps(), total, codebook.grid, codebook.num_parts)
    codebook = apply_names(codebook.with_names(propose_names(stream.places), codebook.kind_names), names)
    codebook.save(folder / CODEBOOK)
    write_lines(folder / IMAGES, (done.names[index] for shard in state.read_parts() for index in shard.index.tolist()))
    write_lines(
        folder / CAPTIONS, (format_caption(row) for _, codes in _coded(state, codebook) for row in codes.tolist())
    )
    skipped = sorted([*done.unreadable, *state.read_skipped()])
    write_skipped(folder / SKIPPED, skipped)
    doubts, areas = _doubtful_pictures(state, stream.usual)
    report: DiscoveryReport = {
        "format": REPORT_FORMAT,
        "images": total,
        "skipped": len(skipped),
        "images_folder": str(done.images_folder.resolve()),
        "images_folder_relative": os.path.relpath(done.images_folder.resolve(), folder.resolve()),
        **done.about,
        "statistics": codebook.statistics,
        "bytes_per_image": stream.bytes_per_image,
        "parts": stream.counts.report(codebook.part_names),
        "part_of": list(range(codebook.num_parts)),
        "confidence": [round(share, 4) for share in stream.usual.confidence()],
        "warnings": [*done.warnings, *foreground_doubts(codebook.statistics, areas)],
        "doubts": [{"row": doubt.row, "part": doubt.part, "what": doubt.what} for doubt in doubts],
        "examples": torch.linspace(0, total - 1, min(EXAMPLES, total)).round().int().tolist(),
        "typical": stream.typical.rows(),
    }
    # the report comes last: it marks the discovery as finished, and without it the next run repeats this step
    labels = read_labels(folder / PART_MAPS)
    write_discovery_page(folder / PAGE, page_content(folder, done.images_folder, codebook, report, labels))
    write_report(folder, report)
    state.remove_samples()
    return report


class _ResultStream:
    """Codes every shard once and collects statistics on the way."""

    def __init__(self, state: DiscoveryState, codebook: PartCodebook) -> None:
        self._state, self._codebook = state, codebook
        self.counts = PartCounts(codebook.num_parts)
        self.places = PartPlaces(codebook.num_parts, codebook.background)
        self.typical = TypicalPictures(codebook)
        self.usual = UsualPictures(codebook.num_parts, codebook.background)
        self.bytes_per_image = 0.0

    def maps(self) -> Iterator[PartMaps]:
        """Labels and codes of each shard."""
        # one pass over the shards feeds the map file and all statistics
        for shard, codes in _coded(self._state, self._codebook):
            piece = PartMaps(shard.labels, codes)
            self.typical.add(self.counts.images, codes, shard.means)
            self.counts.add(piece)
            self.places.add(shard.labels)
            self.usual.add(shard.counts, _sure(shard))
            self.bytes_per_image = max(self.bytes_per_image, shard.bytes_per_image)
            yield piece


def _doubtful_pictures(state: DiscoveryState, usual: UsualPictures) -> tuple[list[Doubt], list[float]]:
    """The pictures that differ most from the others, and the foreground share of every picture."""
    worst: list[Doubt] = []
    areas: list[float] = []
    for shard in state.read_parts():
        worst = most_doubtful([*worst, *usual.doubts(len(areas), shard.counts, _sure(shard))])
        shown = shard.labels != usual.background  # (n, h, w)
        areas += shown.flatten(1).float().mean(1).tolist()
    return worst, areas


def _sure(shard: PartShard) -> Tensor:
    """Certainty of the labels of every part (n, M); 1 in files of earlier versions, which do not store it."""
    return (shard.counts > 0).float() if shard.sure is None else shard.sure.float()


def _coded(state: DiscoveryState, codebook: PartCodebook) -> Iterator[tuple[PartShard, Tensor]]:
    """Each shard with its kind codes `(n, M)`."""
    for shard in state.read_parts():
        yield shard, codebook.kind_of(shard.means.float(), shard.counts)


def _kind_sample(state: DiscoveryState, total: int, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Part means `(n, M, d)` and counts `(n, M)` of randomly chosen pictures, at most `most`."""
    generator = torch.Generator().manual_seed(seed)
    # sorted, so that every shard is opened once
    chosen = torch.randperm(total, generator=generator)[:most].sort().values
    means, counts, first = [], [], 0
    for shard in state.read_parts():
        size = len(shard.index)
        # indices among all pictures -> rows of this shard
        rows = chosen[(chosen >= first) & (chosen < first + size)] - first
        means.append(shard.means[rows])
        counts.append(shard.counts[rows])
        first += size
    return torch.cat(means), torch.cat(counts)
