"""Discovers the parts of objects in a folder of pictures of any size: `bestiary discover FOLDER --out OUT`.

Two passes over shards that are written once, so that a stopped run continues and several processes (`accelerate
launch`) can share the work. Pass 1 reads a bounded random sample of the pictures and fits foreground and parts;
pass 2 streams all pictures (the sampled ones from their stored features) and stores only part labels and part means,
from which the kinds are fitted. Peak memory does not depend on the number of pictures.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ...concepts.denoiser.denoiser import Denoiser, ProgressCallback
from ...concepts.errors import BestiaryError
from ...concepts.features.patch_features import FeatureSource, PatchGrid
from ...concepts.part_map.looks_foreground import LooksForeground
from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_map.part_discovery import fit_parts
from ...concepts.part_map.sample_checks import refuse_copies, refuse_few
from ..learning.discovery.discovery_folder import REPORT, Discovery, read_report
from ..learning.discovery.discovery_report import DiscoveryReport, RunFacts, SecondsEntry
from ..learning.discovery.part_names import NamesFile, read_names
from ..learning.pictures.companion_files import masks_among
from ..learning.pictures.image_files import ImageScan, look_like_photographs, scan_images
from .feature_sources import SourceChoice, Spec, build_feature_source, choose_source
from .foreground_masks import open_masks
from .passes import PictureReader, describe_shard, joined_sample, sample_shard, views_of_sample
from .processes import WorkGroup, join_work_group
from .result import PassesDone, finish_discovery
from .state import DiscoveryPlan, DiscoveryState, SampleShard, files_digest, open_plan

logger = logging.getLogger("bestiary.discover")


class DiscoverSettings(BaseModel):
    """Settings of `bestiary discover`."""

    model_config = ConfigDict(extra="forbid")

    images: Path
    """Folder of pictures, including subfolders."""
    out: Path
    """Folder for the result; a stopped discovery there is continued."""
    source: SourceChoice = "auto"
    """Feature source; `auto` uses dinov2 if its weights are on disk, else imagenet."""
    base: str | None = None
    """Base model for the source diffusion: a diffusers folder, or `demo`."""
    weights: Path | None = None
    """Checkpoint on disk for the source dinov2 or imagenet; None uses the published one."""
    model: str | None = None
    """timm name of a vision transformer for the source dinov2; None uses DINOv2 ViT-B/14."""
    masks: Path | None = None
    """Folder of masks named like their pictures, object in white; None uses the alpha channel of pictures that have one."""
    num_parts: int | None = Field(default=None, ge=2, le=64)
    """Foreground parts, 2 to 64; None estimates the number if the source provides details, else uses 5."""
    kinds: int | None = Field(default=None, ge=1, le=4096)
    """Kinds of each part, 1 to 4096; None uses a quarter of the number of pictures, at most 256."""
    names: Path | None = None
    """TOML file with names of parts and kinds."""
    flip_foreground: bool = False
    """Swap foreground and background."""
    min_margin: float = Field(default=0.05, ge=-1, le=1)
    """Minimum by which the foreground must cover more of the centre than of the borders, -1 to 1; -1 accepts any."""
    batch_size: int = Field(default=16, ge=1)
    """Pictures per batch of the feature source."""
    sample_patches: int = Field(default=65_536, ge=256)
    """Number of patches to fit foreground and parts on; bounds memory and time of pass 1."""
    kind_images: int = Field(default=16_384, ge=16)
    """Number of pictures to fit kinds on; bounds memory."""
    shard_images: int = Field(default=128, ge=1)
    """Pictures per shard, the unit of work that is never repeated."""
    seed: int = 0
    """Seed of all random choices."""
    device: str = "auto"
    """Device of the feature source: auto, cpu, cuda, cuda:1, mps."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the base model."""
    restart: bool = False
    """Discard the results of an earlier discovery in `out`."""


@dataclass(frozen=True)
class DiscoveryResult:
    """Result of a discovery."""

    folder: Path
    images: int
    """Number of pictures with part labels."""
    skipped: int
    """Number of skipped files, listed in `skipped.csv`."""
    part_names: tuple[str, ...]
    report: DiscoveryReport
    """Content of `report.json`."""

    def load(self) -> Discovery:
        """Labels, codes and codebook."""
        return Discovery.load(self.folder)


def discover(
    settings: DiscoverSettings,
    on_progress: ProgressCallback | None = None,
    *,
    denoiser: Denoiser | None = None,
) -> DiscoveryResult:
    """Find parts and kinds and write them, with a page, to `settings.out`; a finished discovery is returned unchanged.

    Args:
        on_progress: called with (pictures done, pictures to do in both passes).
        denoiser: an already loaded model, instead of `settings.base`.

    Raises:
        BestiaryError: no pictures, none readable, no foreground, fewer pictures than kinds, settings that differ from
            those of the discovery in `out`, or a folder that cannot be written to.
    """
    started = time.monotonic()
    # cheap checks first: user errors must surface before anything is computed or written
    group = join_work_group(settings.device)
    names = read_names(settings.names) if settings.names else NamesFile()
    scan = _scan(settings)
    spec = _source_spec(settings, denoiser)
    masks = open_masks(settings.masks, settings.images, scan.names, flipped=settings.flip_foreground)
    warnings = _source_warnings(settings, spec, scan)
    for warning in warnings:
        logger.warning("%s", warning)
    # one process writes or checks the plan; the others must not read the folder before that
    if group.is_first:
        open_plan(settings.out, _plan(settings, spec, scan), settings.restart)
    group.meet()
    if not (settings.out / REPORT).exists():
        source = _build_source(settings, spec, denoiser, group)
        state = DiscoveryState(settings.out / "state", len(scan.names), settings.shard_images)
        reader = PictureReader(settings.images, scan.names, source.image_size, masks=masks)
        watch = _Watch(started)
        _run_passes(settings, state, reader, source, group, on_progress, watch)
        if group.is_first:
            _finish(settings, state, scan, source, names, watch, warnings)
    elif settings.names is not None:
        logger.warning("%s is finished: --names is ignored; change names with `bestiary parts`", settings.out)
    group.meet()
    return _result(settings.out)


def _run_passes(
    settings: DiscoverSettings,
    state: DiscoveryState,
    reader: PictureReader,
    source: FeatureSource,
    group: WorkGroup,
    on_progress: ProgressCallback | None,
    watch: "_Watch",
) -> None:
    """This process's share of both passes; the first process fits the parts in between."""
    sampled = _choose_sample(settings, state.num_images, source)
    shards = [shard for shard in range(state.num_shards) if group.owns(shard)]
    total = state.num_images + len(sampled)
    # pass 1: features of the sampled pictures
    done = 0
    for shard in shards:
        chosen = [index for index in state.images_of(shard) if index in sampled]
        if chosen and not state.sample_path(shard).exists():
            with watch.features():
                sample_shard(state, shard, chosen, reader, source, settings.batch_size)
        done += len(chosen)
        _report(on_progress, group, done, total)
    # the first process fits the codebook that all processes need in pass 2
    group.meet()
    if group.is_first and not state.coarse_path.exists():
        _fit_parts(settings, state, source, reader, watch)
    group.meet()
    # pass 2: labels and part means of every picture
    codebook = PartCodebook.load(state.coarse_path)
    for shard in shards:
        if not state.part_path(shard).exists():
            with watch.features():
                labelling = describe_shard(state, shard, reader, source, codebook, settings.batch_size)
            watch.described -= labelling
        done += len(state.images_of(shard))
        _report(on_progress, group, done, total)
    group.meet()
    if group.is_first and on_progress is not None:
        on_progress(total, total)


def _fit_parts(
    settings: DiscoverSettings, state: DiscoveryState, source: FeatureSource, reader: PictureReader, watch: "_Watch"
) -> None:
    """Foreground and parts from the stored sample.

    Raises:
        BestiaryError: no picture of the sample could be read, or no foreground stands out.
    """
    found = joined_sample(state)
    where = f"of {settings.images}"
    refuse_few(len(found.index), f"{where} could be read")
    refuse_copies(found.grid, where)
    sample, marked = _marked_sample(found, where)
    views = None
    if sample.detail is not None:
        with watch.features():
            views = views_of_sample(found, reader, source, settings.seed)
    codebook = fit_parts(
        sample,
        spec=source.spec,
        num_parts=settings.num_parts,
        seed=settings.seed,
        flip_foreground=settings.flip_foreground and marked is None,
        foreground_masks=marked,
        views=views,
    )
    # a low margin means that the clusters separate something else, for example light from dark scenes
    margin = codebook.foreground.margin
    # appearance alone may find an object that fills the picture: then a low margin is only a warning on the page
    bound = "min_margin" in settings.model_fields_set or not isinstance(codebook.foreground, LooksForeground)
    if bound and margin < settings.min_margin and not settings.flip_foreground and marked is None:
        raise BestiaryError(
            f"no foreground found in {settings.images}: the best candidate covers the centre of the pictures only {margin:.2f} "
            f"more than their borders (at least {settings.min_margin:.2f} is required). Give pictures that show the whole "
            "object near the centre, try another --source or --flip-foreground, or lower --min-margin"
        )
    codebook.save(state.coarse_path)


def _marked_sample(found: SampleShard, where: str) -> tuple[PatchGrid, Tensor | None]:
    """The pictures to fit on and their masks `(n, h, w)`: only the pictures with masks if there are any, else all.

    Raises:
        BestiaryError: all masks are empty.
    """
    if found.marked is None:
        return found.grid, None
    known = ~found.marked.flatten(1).isnan().any(1)  # (N,)
    marked = found.marked[known]
    if not bool((marked > 0.5).any()):
        raise BestiaryError(f"all {len(marked)} masks of pictures {where} are empty: paint the object white")
    logger.info("the foreground is learned from the masks of %d of %d pictures", len(marked), len(known))
    return found.grid.rows(known), marked


def _finish(
    settings: DiscoverSettings,
    state: DiscoveryState,
    scan: ImageScan,
    source: FeatureSource,
    names: NamesFile,
    watch: "_Watch",
    warnings: Sequence[str],
) -> None:
    """Fit the kinds and write the result files."""
    # only settings that determine the result go into the report, not the device or paths
    kept = settings.model_dump(
        mode="json", exclude={"images", "out", "restart", "names", "device", "batch_size"}, exclude_none=True
    )
    seconds, seconds_of = watch.seconds()
    about: RunFacts = {
        "source": source.spec,
        "settings": kept,
        "other_files": scan.other_files,
        "seconds": seconds,
        "seconds_of": seconds_of,
    }
    done = PassesDone(settings.out, settings.images, scan.names, scan.unreadable, state, about, warnings)
    finish_discovery(done, names, num_kinds=settings.kinds, kind_images=settings.kind_images, seed=settings.seed)


@dataclass
class _Watch:
    """Run time, and the share of it spent on features."""

    started: float
    described: float = 0.0

    @contextmanager
    def features(self) -> Iterator[None]:
        """Context whose duration counts as feature time."""
        begun = time.monotonic()
        yield
        self.described += time.monotonic() - begun

    def seconds(self) -> tuple[float, SecondsEntry]:
        """Total seconds, and seconds by activity."""
        whole = time.monotonic() - self.started
        parts: SecondsEntry = {"features": round(self.described, 1), "clustering": round(whole - self.described, 1)}
        return round(whole, 1), parts


def _source_warnings(settings: DiscoverSettings, spec: Spec, scan: ImageScan) -> list[str]:
    """Warnings about the chosen source."""
    warnings = []
    if spec["name"] == "descriptor" and look_like_photographs(settings.images, scan.names):
        warnings.append(
            "The source descriptor uses only colour and texture: on photographs like these its parts are areas of colour, "
            "not parts of objects. Use --source imagenet or dinov2."
        )
    if settings.base is not None and spec["name"] != "diffusion":
        warnings.append(f"--base {settings.base} was ignored: only --source diffusion uses a base model.")
    return warnings


def _report(on_progress: ProgressCallback | None, group: WorkGroup, done: int, total: int) -> None:
    """Progress of the whole group, extrapolated from the first process."""
    if on_progress is not None and group.is_first:
        on_progress(min(done * group.size, total - 1), total)


def _scan(settings: DiscoverSettings) -> ImageScan:
    if settings.images.resolve() == settings.out.resolve():
        raise BestiaryError(f"--out {settings.out} is the folder of pictures itself: choose another folder")
    together = settings.masks is not None and settings.masks.resolve() == settings.images.resolve()
    others = [] if settings.masks is None or together else [settings.masks]
    scan = scan_images(settings.images, [settings.out, *others])
    if together:  # masks beside their pictures must not be read as pictures of objects
        of_others = masks_among(scan.names)
        scan = replace(scan, names=[name for name in scan.names if name not in of_others])
    # fail before any model is loaded
    if not scan.names:
        others = ", ".join(f"{count} x {suffix}" for suffix, count in scan.other_files.items()) or "nothing else"
        raise BestiaryError(
            f"no pictures in {settings.images} (found {others}): give a folder with jpg, png, webp, tif, bmp or gif files"
        )
    refuse_few(len(scan.names), f"in {settings.images}")
    if settings.kinds is not None and settings.kinds > len(scan.names):
        raise BestiaryError(
            f"--kinds {settings.kinds} is more than the {len(scan.names)} pictures in {settings.images}: "
            "give more pictures or fewer kinds"
        )
    return scan


def _source_spec(settings: DiscoverSettings, denoiser: Denoiser | None) -> Spec:
    return choose_source(settings.source, weights=settings.weights, model=settings.model)


def _plan(settings: DiscoverSettings, spec: Spec, scan: ImageScan) -> DiscoveryPlan:
    """All settings that the stored state depends on; batch size, device and names may change between runs."""
    plan: DiscoveryPlan = {
        "images": str(settings.images.resolve()),
        "source": str(spec["name"]),
        "num_parts": settings.num_parts,
        "kinds": settings.kinds,
        "flip_foreground": settings.flip_foreground,
        "min_margin": settings.min_margin,
        "sample_patches": settings.sample_patches,
        "kind_images": settings.kind_images,
        "shard_images": settings.shard_images,
        "seed": settings.seed,
        "files": {"count": len(scan.names), "digest": files_digest(settings.images, scan.names)},
    }
    # the base model matters only if it provides the features
    if spec["name"] == "diffusion":
        plan["base"], plan["dtype"] = settings.base, settings.dtype
    if "weights" in spec:
        plan["weights"] = str(spec["weights"])
    if "model" in spec:
        plan["model"] = str(spec["model"])
    if settings.masks is not None:
        plan["masks"] = str(settings.masks.resolve())
    return plan


def _build_source(settings: DiscoverSettings, spec: Spec, denoiser: Denoiser | None, group: WorkGroup) -> FeatureSource:
    if spec["name"] == "diffusion" and denoiser is None and settings.base is not None:
        # imports diffusers and transformers, which takes seconds that other sources do not need
        from ..model.backbones import load_denoiser

        denoiser = load_denoiser(settings.base, device=group.device, dtype=settings.dtype)
    return build_feature_source(spec, denoiser, device=group.device)


def _choose_sample(settings: DiscoverSettings, num_images: int, source: FeatureSource) -> set[int]:
    """Indices of the randomly chosen pictures of pass 1."""
    # the grid size of a source is known only from its output
    blank = torch.full((1, 3, source.image_size, source.image_size), 0.5)
    patches = math.prod(source(blank).features.shape[1:3])  # of (1, h, w, D)
    count = min(num_images, max(1, settings.sample_patches // patches))
    generator = torch.Generator().manual_seed(settings.seed)
    return set(torch.randperm(num_images, generator=generator)[:count].tolist())


def _result(folder: Path) -> DiscoveryResult:
    report = read_report(folder, needs=("images", "skipped", "parts"))
    names = tuple(part["name"] for part in report["parts"])
    return DiscoveryResult(folder, report["images"], report["skipped"], names, report)
