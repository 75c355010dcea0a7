"""PartCraft training: `bestiary train parts RECIPE.toml`. Paper: arXiv 2407.04604."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ...concepts.denoiser.backbone import Backbone
from ...concepts.denoiser.denoiser import ProgressCallback
from ...concepts.errors import BestiaryError
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ..exchange.export_parts import export_dictionary
from ..learning.discovery.discovery_folder import Discovery
from ..learning.parts.concept_images import PartBucket
from ..learning.parts.finished_parts import THUMBNAIL_EDGE
from ..learning.parts.objective_setup import PartTraining, check_layers, set_up_parts
from ..learning.parts.scene_kinds import SubjectKinds, TrainingScenes, labels_in_shape, read_scenes
from ..learning.parts.settings import TrainPartsSettings
from ..learning.parts.training_kinds import TrainingKinds, class_kinds, discovered_kinds, read_classes, whole_kinds
from ..learning.pictures.aspect_buckets import BUCKET_CELLS, AspectBucket, aspect_buckets
from ..learning.pictures.image_files import fit_square, picture_size, read_image
from ..learning.pictures.latent_cache import CacheSpec, LatentCache
from ..learning.run.processes import Parallel
from ..model.sampling import SamplingDenoiser
from .doctor import MIB
from .train import Trained, train
from .training_setup import CachePart, Task, TrainingSetup, load_base

logger = logging.getLogger("bestiary")
RARE = 3
"""A kind shown by fewer pictures than this is hard to learn."""


@dataclass(frozen=True)
class PartPictures:
    """The pictures of a part training, those without any part left out."""

    folder: Path
    names: tuple[str, ...]
    """Of single pictures, then of scenes, relative to the folder."""
    kinds: TrainingKinds
    """Of the single pictures."""
    left_out: int
    """Pictures of the discovery that show no part."""
    scenes: TrainingScenes | None = None
    """Scenes that are learned from too."""

    @property
    def singles(self) -> int:
        """N, the pictures of the discovery; those of scenes follow them."""
        return len(self.kinds.codes)

    @property
    def paths(self) -> list[Path]:
        """The picture files."""
        return [self.folder / name for name in self.names]


class PartTask(Task[TrainPartsSettings, PartPictures]):
    """Part tokens and adapters from the pictures of a discovery."""

    kind = "parts"
    sheets = 2
    shapes: tuple[AspectBucket, ...] = ()
    """In which pictures are trained, once the model is known; each shape has single pictures or scenes."""

    def read_pictures(self) -> PartPictures:
        """Pictures and kinds of a discovery, as `method` wants them.

        Raises:
            BestiaryError: no discovery, missing classes, or no picture with parts.
        """
        settings = self.settings
        discovery = Discovery.load(settings.discovery.folder, settings.images.folder)
        # names are relative, so that a moved folder gives the same cache and the same messages
        names = [path.relative_to(discovery.images_folder).as_posix() for path in discovery.image_paths]
        labels = settings.images.labels
        classes = read_classes(labels, names) if labels is not None else None
        kinds = discovered_kinds(discovery.codebook, discovery.maps)
        if settings.method.kind == "textual_inversion":
            given = classes if settings.method.ids == "class" else None
            kinds = whole_kinds(kinds, discovery.codebook, given, settings.run.seed)
        elif settings.method.ids == "class":
            kinds = class_kinds(kinds, classes or {})
        if not settings.method.background:
            kinds = kinds.without_background()
        # codes are (N, M): pictures without any part have nothing to caption
        rows = np.flatnonzero((kinds.codes >= 0).any(1))
        if not len(rows):
            raise BestiaryError(
                f"no picture of {settings.discovery.folder} shows a part: look at its index.html, then discover again "
                "with other settings or merge fewer parts away"
            )
        if len(rows) < len(names):
            logger.info("%d of %d pictures show no part and are left out", len(names) - len(rows), len(names))
        kept, own, scenes = tuple(names[row] for row in rows), kinds.subset(rows), None
        if settings.images.scenes is not None:
            known = SubjectKinds(settings.discovery.folder, discovery.image_paths, kinds, discovery.codebook)
            scenes = read_scenes(settings.images.scenes, known, own)
            shown = scenes.kinds(own, range(len(scenes.names)), own.labels).rows()
            if unknown := sorted(set(shown) - set(own.rows())):
                part, kind = unknown[0]
                raise BestiaryError(
                    f"images.scenes {scenes.folder} shows kind {kind} of {own.part_names[part]!r}, which no picture of "
                    f"{settings.discovery.folder} shows: build the set from pictures of this discovery"
                )
            own = own.only(shown) if settings.images.scene_share == 1 else own
            place = Path(os.path.relpath(scenes.folder.absolute(), discovery.images_folder.absolute()))
            kept += tuple((place / name).as_posix() for name in scenes.names)
        return PartPictures(discovery.images_folder, kept, own, len(names) - len(rows), scenes)

    def load_denoiser(self) -> SamplingDenoiser:
        """Stable Diffusion."""
        return load_base(self.settings)

    @property
    def cache_folder(self) -> Path:
        """Beside the discovery."""
        return self.settings.discovery.folder / "latents"

    def check(self, denoiser: SamplingDenoiser) -> None:
        """Attention layers that are asked for must exist."""
        check_layers(self.settings, denoiser)
        self.shapes = self._shapes(denoiser.backbone)

    def _shapes(self, backbone: Backbone) -> tuple[AspectBucket, ...]:
        images, pictures = self.settings.images, self.pictures
        size, step = images.training_size(backbone), BUCKET_CELLS * backbone.latent_factor
        height, width = images.training_shape(backbone)
        shapes = (AspectBucket(height, width, tuple(range(pictures.singles))),)
        if images.buckets:
            shapes = aspect_buckets([picture_size(path) for path in pictures.paths[: pictures.singles]], size, step)
        if pictures.scenes is None:
            return shapes
        # scenes of one size are cut alike; of several sizes each has a shape
        found: dict[tuple[int, int], list[int]] = {}
        for row, canvas in enumerate(pictures.scenes.sizes):
            found.setdefault(canvas, []).append(pictures.singles + row)
        cut = [(*self._scene_shape(canvas, min(height, width), size, step), rows) for canvas, rows in found.items()]
        return (*shapes, *(AspectBucket(high, wide, tuple(rows)) for high, wide, rows in cut))

    def _scene_shape(self, canvas: tuple[int, int], shorter: int, size: int, step: int) -> tuple[int, int]:
        """Height and width in pixels of scenes on a canvas of this width and height."""
        images = self.settings.images
        if images.scene_size is not None:
            given = images.scene_size
            return (given[1], given[0]) if isinstance(given, tuple) else (given, given)
        if images.buckets:
            (bucket,) = aspect_buckets([canvas], size, step)
            return bucket.height, bucket.width
        longer = max(shorter, round(shorter * max(canvas) / min(canvas) / step) * step)
        return (shorter, longer) if canvas[0] >= canvas[1] else (longer, shorter)

    @property
    def _all_alike(self) -> bool:
        return len(self.shapes) == 1 and self.shapes[0].height == self.shapes[0].width

    def cache_parts(self, spec: CacheSpec) -> tuple[CachePart, ...]:
        """One part for every shape."""
        if self._all_alike:
            return super().cache_parts(spec)
        factor, parts = spec.image_size // spec.latent_size, []
        for bucket in self.shapes:
            height, width = (self.settings.images.with_margin(edge, factor) for edge in (bucket.height, bucket.width))
            shape = None if height == width == spec.image_size else (height, width)
            pictures = tuple(spec.pictures[row] for row in bucket.rows)
            parts.append(CachePart(replace(spec, pictures=pictures, pixels=shape), bucket.rows))
        return tuple(parts)

    def set_up(self, denoiser: SamplingDenoiser, caches: Sequence[LatentCache], parallel: Parallel) -> PartTraining:
        """Projector, adapters and captioned batches."""
        pictures, folder, cached = self.pictures, self.run_folder, caches[0]
        if not self._all_alike:
            cached = [self._bucket(*given, denoiser.backbone) for given in zip(self.shapes, caches, strict=True)]
        return set_up_parts(self.settings, denoiser, pictures.names, pictures.kinds, cached, parallel, folder)

    def _bucket(self, shape: AspectBucket, cache: LatentCache, backbone: Backbone) -> PartBucket:
        """Pictures of one shape with the labels of what is left of them."""
        pictures, factor, divisor = self.pictures, backbone.latent_factor, backbone.attention_divisor
        scenes = pictures.scenes
        crop = (shape.height // factor, shape.width // factor)
        grid = (max(1, shape.height // divisor), max(1, shape.width // divisor))
        # margins are cut from labels as they are from pictures
        cached = (cache.moments.shape[-2] * factor, cache.moments.shape[-1] * factor)
        if scenes is not None and shape.rows[0] >= pictures.singles:
            rows = [row - pictures.singles for row in shape.rows]
            labels = [labels_in_shape(scenes.labels[row], scenes.sizes[row], cached, whole=True) for row in rows]
            kinds = scenes.kinds(pictures.kinds, rows, np.stack(labels))
            return PartBucket(shape.rows, cache, kinds, crop, grid, of_scenes=True)
        kinds = pictures.kinds.subset(np.array(shape.rows))
        if shape.height != shape.width and kinds.labels.shape[1:] != (1, 1):
            sizes = [picture_size(pictures.paths[row]) for row in shape.rows]
            pairs = zip(kinds.labels, sizes, strict=True)
            labels = [labels_in_shape(own, picture, cached, whole=False) for own, picture in pairs]
            kinds = replace(kinds, labels=np.stack(labels))
        return PartBucket(shape.rows, cache, kinds, crop, grid)

    def thumbnail_square(self, row: int) -> Image.Image:
        """A square of at most 512 pixels, large enough to cut parts from it."""
        least = 4 * THUMBNAIL_EDGE
        picture = read_image(self.pictures.paths[row], least)
        return fit_square(picture, min(512, max(least, min(picture.size))))

    def findings(self, setup: TrainingSetup) -> Iterator[str]:
        """Pictures by part and kind, sizes, and passes over all pictures."""
        pictures, kinds, steps = self.pictures, self.pictures.kinds, self.settings.optimizer.steps
        yield f"pictures: {pictures.singles} in {pictures.folder}, {pictures.left_out} without parts left out"
        if pictures.scenes is not None:
            scenes, share = pictures.scenes, self.settings.images.scene_share
            yield (
                f"scenes: {len(scenes.names)} in {scenes.folder}, {scenes.left_out} without part labels left out, up to "
                f"{scenes.slots} subjects each, in {share:.0%} of the batches"
            )
        counts = (kinds.codes >= 0).sum(0)  # (N, M) -> (M,)
        shown = [f"{name} {count}" for name, count in zip(kinds.part_names, counts, strict=True) if count]
        yield f"parts and the pictures that show them: {', '.join(shown)}"
        # rare kinds have too few pictures to be learned from
        sizes = [int((kinds.codes[:, part] == kind).sum()) for part, kind in kinds.rows()]
        rare = sum(size < RARE for size in sizes)
        yield (
            f"tokens: {len(sizes)}, each in {min(sizes)} to {max(sizes)} pictures (median {int(np.median(sizes))}), "
            f"{rare} in fewer than {RARE}"
        )
        yield from self._size_findings(setup)
        # how often every picture is seen in all
        size = setup.batches.step_size
        yield f"work: {steps} steps of {size} pictures, {steps * size / len(pictures.names):.1f} passes over all pictures"

    def _size_findings(self, setup: TrainingSetup) -> Iterator[str]:
        divisor = setup.denoiser.backbone.attention_divisor
        if not self._all_alike:
            shapes = ", ".join(f"{len(one.rows)} at {one.width} x {one.height}" for one in self.shapes)
            grids = ", ".join(f"{one.width // divisor} x {one.height // divisor}" for one in self.shapes)
            yield f"sizes: trained in {len(self.shapes)} shapes ({shapes} px), attention read at {grids}"
            return
        grid = setup.image_size // divisor
        yield (
            f"sizes: trained at {setup.image_size} px, cached at {setup.spec.image_size} px "
            f"({setup.spec.byte_count / MIB:.0f} MiB of latents), attention read at {grid} x {grid}"
        )

    def export(self, path: Path, folder: Path) -> list[Path]:
        """Every token as an embedding, the LoRA, and a guide."""
        return export_dictionary(PartDictionary.load(path), folder)


def train_parts(settings: TrainPartsSettings, *, on_progress: ProgressCallback | None = None) -> Trained:
    """Learn part tokens and adapters in a new run folder.

    Raises:
        BestiaryError: settings, pictures, discovery and base model do not fit together, or the loss is not finite.
        TrainingStopped: Ctrl-C; the state is saved.
    """
    return train(PartTask(settings), on_progress=on_progress)
