"""The part dictionary of a training on the command line, with thumbnails of its pictures and a note of how it was made."""

from __future__ import annotations

from PIL import Image

from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ..learning.parts.finished_parts import THUMBNAIL_EDGE, cut_thumbnails, learned_dictionary
from ..learning.pictures.image_files import fit_square, read_image
from .training_setup import TrainingPictures, TrainingSetup

FORMAT_VERSION = 1


def build_dictionary(setup: TrainingSetup, steps: int) -> PartDictionary:
    """The dictionary of a training's present weights."""
    tiles = thumbnails(setup.pictures)
    return learned_dictionary(setup.objective, setup.pictures.kinds, tiles, _provenance(setup, steps))


def thumbnails(pictures: TrainingPictures) -> dict[tuple[int, int], Image.Image]:
    """For every (part, kind) the part cut from the picture that shows most of it; whole pictures for the background."""

    def square(row: int) -> Image.Image:
        picture = read_image(pictures.paths[row], 4 * THUMBNAIL_EDGE)
        return fit_square(picture, min(512, max(4 * THUMBNAIL_EDGE, min(picture.size))))

    return cut_thumbnails(pictures.kinds, square)


def _provenance(setup: TrainingSetup, steps: int) -> dict[str, object]:
    settings = setup.settings
    # what another training would need to be compared with this one
    return {
        "made_by": f"bestiary train parts, dictionary format {FORMAT_VERSION}",
        "base": settings.base.path,
        "prediction": setup.denoiser.process.prediction,
        "autoencoder": setup.spec.model,
        "method": settings.method.kind,
        "steps": steps,
        "pictures": len(setup.pictures.names),
        "image_size": setup.image_size,
        "batch": setup.batches.plan.step_size,
        "seed": settings.run.seed,
        "attention_loss": settings.attention_loss.weight,
        "lora_rank": settings.lora.rank,
        **setup.pictures.kinds.notes,
    }
