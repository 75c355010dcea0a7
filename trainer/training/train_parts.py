"""PartCraft training: `bestiary train parts RECIPE.toml`. Paper: arXiv 2407.04604."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...concepts.denoiser.denoiser import ProgressCallback
from ...concepts.errors import BestiaryError
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ..exchange.export_parts import export_dictionary
from ..learning.discovery.discovery_folder import Discovery
from ..learning.parts.finished_parts import THUMBNAIL_EDGE
from ..learning.parts.objective_setup import PartTraining, check_layers, set_up_parts
from ..learning.parts.settings import TrainPartsSettings
from ..learning.parts.training_kinds import TrainingKinds, class_kinds, discovered_kinds, read_classes, whole_kinds
from ..learning.pictures.image_files import fit_square, read_image
from ..learning.pictures.latent_cache import LatentCache
from ..learning.run.processes import Parallel
from ..model.sampling import SamplingDenoiser
from .doctor import MIB
from .train import Trained, train
from .training_setup import Task, TrainingSetup, load_base

logger = logging.getLogger("bestiary")
RARE = 3
"""A kind shown by fewer pictures than this is hard to learn."""


@dataclass(frozen=True)
class PartPictures:
    """The pictures of a part training, those without any part left out."""

    folder: Path
    names: tuple[str, ...]
    kinds: TrainingKinds
    left_out: int
    """Pictures of the discovery that show no part."""

    @property
    def paths(self) -> list[Path]:
        """The picture files."""
        return [self.folder / name for name in self.names]


class PartTask(Task[TrainPartsSettings, PartPictures]):
    """Part tokens and adapters from the pictures of a discovery."""

    kind = "parts"
    sheets = 2

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
        kept = tuple(names[row] for row in rows)
        return PartPictures(discovery.images_folder, kept, kinds.subset(rows), len(names) - len(rows))

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

    def set_up(self, denoiser: SamplingDenoiser, caches: Sequence[LatentCache], parallel: Parallel) -> PartTraining:
        """Projector, adapters and captioned batches."""
        pictures, folder = self.pictures, self.run_folder
        return set_up_parts(self.settings, denoiser, pictures.names, pictures.kinds, caches[0], parallel, folder)

    def thumbnail_square(self, row: int) -> Image.Image:
        """A square of at most 512 pixels, large enough to cut parts from it."""
        least = 4 * THUMBNAIL_EDGE
        picture = read_image(self.pictures.paths[row], least)
        return fit_square(picture, min(512, max(least, min(picture.size))))

    def findings(self, setup: TrainingSetup) -> Iterator[str]:
        """Pictures by part and kind, sizes, and passes over all pictures."""
        pictures, kinds, steps = self.pictures, self.pictures.kinds, self.settings.optimizer.steps
        yield f"pictures: {len(pictures.names)} in {pictures.folder}, {pictures.left_out} without parts left out"
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
        grid = setup.image_size // setup.denoiser.backbone.attention_divisor
        yield (
            f"sizes: trained at {setup.image_size} px, cached at {setup.spec.image_size} px "
            f"({setup.spec.byte_count / MIB:.0f} MiB of latents), attention read at {grid} x {grid}"
        )
        # how often every picture is seen in all
        size = setup.batches.step_size
        yield f"work: {steps} steps of {size} pictures, {steps * size / len(pictures.names):.1f} passes over all pictures"

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
