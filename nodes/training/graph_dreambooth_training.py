"""DreamBooth on the MODEL, CLIP and VAE of a graph: the command line's objective and settings on ComfyUI's weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...trainer.learning.dreambooth.dreambooth_settings import TrainDreamBoothSettings
from ...trainer.learning.dreambooth.dreambooth_setup import DreamBoothAdapter, DreamBoothTraining, set_up_dreambooth
from ...trainer.learning.pictures.latent_cache import LatentCache
from ..denoiser.comfy_autoencoder import ComfyAutoencoder
from ..denoiser.comfy_denoiser import ComfyDenoiser
from ..host.comfy_objects import Vae
from .graph_fit import GraphTask
from .graph_spectrum_training import check_vae
from .lora_files import save_lora
from .spectrum_pictures import SpectrumPictures


@dataclass(frozen=True)
class DreamBoothPictures:
    """Pictures of the thing, and those of its class where there are any."""

    instance: SpectrumPictures
    of_class: SpectrumPictures | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What messages call them, the thing's first."""
        kind = () if self.of_class is None else self.of_class.names
        return (*self.instance.names, *(f"class {name}" for name in kind))

    def moments(self) -> np.ndarray:
        """`(N+K, V, 2, C, h, w)` float16 of both."""
        if self.of_class is None:
            return self.instance.moments
        return np.concatenate([self.instance.moments, self.of_class.moments])

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the pictures, the masks or the way they were encoded."""
        both = [self.instance.fingerprint(), "" if self.of_class is None else self.of_class.fingerprint()]
        return hashlib.sha256(" ".join(both).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class DreamBoothInGraph(GraphTask[DreamBoothAdapter]):
    """A LoRA of one thing from a few pictures."""

    pictures: DreamBoothPictures
    settings: TrainDreamBoothSettings
    vae: Vae
    what = "a subject"
    made_by = "Bestiary Train DreamBooth in ComfyUI"

    @property
    def autoencoder(self) -> str:
        """Fingerprint of the VAE of the graph."""
        return ComfyAutoencoder(self.vae).fingerprint()

    def check(self, denoiser: ComfyDenoiser, vae: Vae) -> None:
        """VAE and model must belong together."""
        check_vae(denoiser, vae)

    def set_up(self, denoiser: ComfyDenoiser) -> DreamBoothTraining:
        """Adapters, perhaps an identifier, and batches of the thing and its class."""
        denoiser.network.adapters.unload()  # of a set-up that Cancel cut short
        pictures = self.pictures
        return set_up_dreambooth(
            self.settings,
            denoiser,
            pictures.names,
            len(pictures.instance.names),
            LatentCache(pictures.moments()),
            pictures.instance.masks,
            notes={"data": pictures.fingerprint()},
        )

    def square(self, row: int) -> Image.Image:
        """The cached square of a picture of the thing."""
        return self.pictures.instance.picture(row)

    def keep(self, concept: DreamBoothAdapter, name: str) -> str:
        """Save it as a LoRA."""
        return save_lora(concept, name)
