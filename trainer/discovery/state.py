"""Resumable state of a discovery: a plan that must not change, and shards that are written once.

`OUT/state/plan.json` contains the settings and a digest of the picture files. `sample-*.safetensors` contain the patch
features of a bounded random sample of the pictures, `parts-*.safetensors` the part labels and part means of all of them.
Letters: n pictures of a shard, (h, w) patch grid, M parts, D channels.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.features.patch_features import PatchGrid
from ...concepts.files.atomic_file import replacing, write_text

Skipped = list[tuple[str, str]]
"""Relative path and reason of skipped files."""
PLAN_FORMAT = 1


@dataclass(frozen=True)
class SampleShard:
    """Patch features of sampled pictures."""

    index: Tensor
    """`(n,)` long: index of each picture in the list of files."""
    grid: PatchGrid
    """Features `(n, h, w, D)` and details, rounded to half precision."""
    marked: Tensor | None = None
    """`(n, h, w)` 0..1: foreground share of every patch from masks, NaN in pictures without a mask."""


@dataclass(frozen=True)
class PartShard:
    """Stored results per picture."""

    index: Tensor
    """`(n,)` int32: index of each picture in the list of files."""
    labels: Tensor
    """`(n, h, w)` uint8."""
    counts: Tensor
    """`(n, M)` int32: patches per part."""
    means: Tensor
    """`(n, M, D)` float16: mean feature per part, 0 where absent."""
    sure: Tensor | None = None
    """`(n, M)` float16 0..1: certainty of the labels of the part's patches; None in files of earlier versions."""

    @property
    def bytes_per_image(self) -> float:
        """Stored bytes per picture."""
        tensors = (self.index, self.labels, self.counts, self.means, self.sure)
        sizes = (tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
        return sum(sizes) / max(len(self.index), 1)


class FilesFact(TypedDict):
    """Picture files of a plan: their number and digest."""

    count: int
    digest: str


class _EveryPlan(TypedDict):
    images: str
    source: str
    num_parts: int | None
    kinds: int | None
    flip_foreground: bool
    min_margin: float
    sample_patches: int
    kind_images: int
    shard_images: int
    seed: int
    files: FilesFact


class DiscoveryPlan(_EveryPlan, total=False):
    """All settings that the stored state depends on, named as in `DiscoverSettings`."""

    format: int
    base: str | None
    dtype: str
    weights: str
    model: str
    masks: str


class DiscoveryState:
    """The folder `OUT/state`; shard `s` covers the pictures `s * shard_images` up to `(s + 1) * shard_images`."""

    def __init__(self, folder: Path, num_images: int, shard_images: int) -> None:
        self.folder = Path(folder)
        self.num_images = num_images
        self.shard_images = shard_images
        self.coarse_path = self.folder / "coarse.parts.safetensors"

    @property
    def num_shards(self) -> int:
        """Number of shards that cover all pictures."""
        return -(-self.num_images // self.shard_images)

    def images_of(self, shard: int) -> range:
        """Indices into the list of files that a shard covers."""
        return range(shard * self.shard_images, min((shard + 1) * self.shard_images, self.num_images))

    def sample_path(self, shard: int) -> Path:
        """File of a shard's sampled pictures."""
        return self.folder / f"sample-{shard:06d}.safetensors"

    def part_path(self, shard: int) -> Path:
        """File of a shard's labels and part means."""
        return self.folder / f"parts-{shard:06d}.safetensors"

    def write_sample(self, shard: int, found: SampleShard | None, skipped: Skipped) -> None:
        """Store sampled features; None if none of the chosen pictures could be read."""
        tensors = {} if found is None else {"index": found.index, "features": found.grid.features.half()}
        if found is not None and found.grid.saliency is not None:
            tensors["saliency"] = found.grid.saliency.float()
        if found is not None and found.grid.detail is not None:
            tensors["detail"] = found.grid.detail.half()
        if found is not None and found.marked is not None:
            tensors["marked"] = found.marked.float()
        _write(self.sample_path(shard), tensors, skipped)

    def read_sample(self, shard: int) -> tuple[SampleShard | None, Skipped]:
        """Sampled features of a shard (None if there are none), and the chosen files that could not be read."""
        if not self.sample_path(shard).exists():
            return None, []
        with _opened(self.sample_path(shard)) as file:
            names, skipped = set(file.keys()), _skipped(file)
            # none of the chosen pictures of this shard could be read
            if "features" not in names:
                return None, skipped
            saliency = file.get_tensor("saliency") if "saliency" in names else None
            detail = file.get_tensor("detail").float() if "detail" in names else None
            grid = PatchGrid(file.get_tensor("features").float(), saliency, detail)
            marked = file.get_tensor("marked") if "marked" in names else None
            return SampleShard(file.get_tensor("index"), grid, marked), skipped

    def write_parts(self, shard: int, found: PartShard | None, skipped: Skipped) -> None:
        """Store the results of a shard; None if none of its pictures could be read."""
        tensors = (
            {} if found is None else {name: getattr(found, name) for name in ("index", "labels", "counts", "means")}
        )
        if found is not None and found.sure is not None:
            tensors["sure"] = found.sure
        _write(self.part_path(shard), tensors, skipped)

    def count_parts(self) -> int:
        """Pictures in all shards."""
        total = 0
        for shard in range(self.num_shards):
            with _opened(self.part_path(shard)) as file:
                total += file.get_slice("index").get_shape()[0] if "index" in set(file.keys()) else 0
        return total

    def read_parts(self) -> Iterator[PartShard]:
        """All shards in order, one at a time, without those that have no readable picture."""
        for shard in range(self.num_shards):
            with _opened(self.part_path(shard)) as file:
                names = set(file.keys())
                if "labels" in names:
                    yield PartShard(
                        index=file.get_tensor("index"),
                        labels=file.get_tensor("labels"),
                        counts=file.get_tensor("counts"),
                        means=file.get_tensor("means"),
                        sure=file.get_tensor("sure") if "sure" in names else None,
                    )

    def read_skipped(self) -> Iterator[tuple[str, str]]:
        """Files skipped in pass 2, in order."""
        for shard in range(self.num_shards):
            with _opened(self.part_path(shard)) as file:
                yield from _skipped(file)

    def remove_samples(self) -> None:
        """Delete the sampled features, which are needed only for fitting and pass 2."""
        for path in self.folder.glob("sample-*.safetensors"):
            path.unlink(missing_ok=True)


def files_digest(root: Path, names: Sequence[str]) -> str:
    """Digest of relative paths and sizes: changes if files are added, removed, renamed or resized."""
    digest = hashlib.sha256()
    # sizes instead of contents: reading every file would cost as much as a pass
    for name in names:
        size = -1
        with suppress(OSError):
            size = (root / name).stat().st_size
        digest.update(f"{name}\0{size}\n".encode())
    return digest.hexdigest()


def open_plan(folder: Path, plan: DiscoveryPlan, restart: bool = False) -> None:
    """Write the plan of a new discovery, or check that the existing plan in this folder is the same.

    Args:
        restart: discard the results of an earlier discovery in this folder.

    Raises:
        BestiaryError: the earlier plan differs; the message names every setting that does.
    """
    state = folder / "state"
    path = state / "plan.json"
    # partial files of a killed process
    _remove(state.glob(".*.part"))
    if restart:
        # the report first: it marks a discovery as finished
        _remove([folder / "report.json", *state.glob("*.safetensors"), path])
    if not path.exists():
        # shards without a plan cannot be trusted
        _remove(state.glob("*.safetensors"))
        write_text(path, json.dumps({"format": PLAN_FORMAT, **plan}, indent=1, ensure_ascii=False))
        return
    # differing settings would mix shards of two discoveries
    differences = _differences(read_plan(folder), {"format": PLAN_FORMAT, **plan})
    if differences:
        raise BestiaryError(
            f"{folder} contains a discovery with other settings ({'; '.join(differences)}): "
            "choose another --out, or give --restart to discard it"
        )


def read_plan(folder: Path) -> DiscoveryPlan:
    """The plan of the discovery in a folder.

    Raises:
        BestiaryError: the file is damaged.
    """
    path = folder / "state" / "plan.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise BestiaryError(f"{path} cannot be read ({fault}): start over with --restart") from fault


def _differences(earlier: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    names = [name for name in {**earlier, **now} if earlier.get(name) != now.get(name)]
    return [_difference(name, earlier.get(name), now.get(name)) for name in names]


def _difference(name: str, before: object, after: object) -> str:
    if name == "files":
        return "the picture files have changed since"
    return f"{name} was {'auto' if before is None else before}, now {'auto' if after is None else after}"


def _remove(paths: Iterator[Path] | Sequence[Path]) -> None:
    for path in list(paths):
        try:
            path.unlink(missing_ok=True)
        except OSError as fault:
            raise BestiaryError(f"{path} cannot be removed: {fault.strerror}; choose another --out folder") from fault


def _write(path: Path, tensors: Mapping[str, Tensor], skipped: Skipped) -> None:
    # an empty shard also needs a file, which marks it as done; shapes as in the records, such as (n, h, w)
    content = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()} or {"none": torch.zeros(0)}
    with replacing(path) as temporary:
        try:
            save_file(content, temporary, {"skipped": json.dumps(skipped, ensure_ascii=False)})
        except SafetensorError as fault:  # it reports a full disk this way
            raise OSError(0, str(fault)) from fault


def _skipped(file: safe_open) -> Skipped:
    return [(path, reason) for path, reason in json.loads((file.metadata() or {}).get("skipped", "[]"))]


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as fault:
        raise BestiaryError(f"{path} cannot be read ({fault}): delete this file and run the command again") from fault
