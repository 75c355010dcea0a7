"""Part training on the MODEL, CLIP and VAE of a graph: the command line's objective and settings on ComfyUI's weights."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from ...concepts.errors import BestiaryError
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ...trainer.learning.parts.objective_setup import PartTraining, check_layers, set_up_parts
from ...trainer.learning.parts.settings import TrainPartsSettings
from ...trainer.learning.pictures.latent_cache import LatentCache
from ..denoiser.comfy_autoencoder import ComfyAutoencoder
from ..denoiser.comfy_denoiser import ComfyDenoiser
from ..host.comfy_objects import Vae
from ..part_dictionary.dictionary_loading import save_dictionary
from .graph_fit import GraphTask
from .training_set import TrainingSet


@dataclass(frozen=True)
class PartsInGraph(GraphTask[PartDictionary]):
    """Part tokens and a LoRA from a training set."""

    training_set: TrainingSet
    settings: TrainPartsSettings
    what = "parts"
    made_by = "Bestiary Train Parts in ComfyUI"

    @property
    def autoencoder(self) -> str:
        """That of the set."""
        return self.training_set.autoencoder

    def check(self, denoiser: ComfyDenoiser, vae: Vae) -> None:
        """The set must have been encoded with this VAE, at a size that the model takes."""
        made, backbone = self.training_set, denoiser.backbone
        channels = made.moments.shape[3]  # of (N, V, 2, C, h, w)
        if channels != backbone.latent_channels:
            raise BestiaryError(
                f"the training set holds latents of {channels} channels, this MODEL ({backbone.name}) takes "
                f"{backbone.latent_channels}: connect the VAE of this model to Training Images"
            )
        if made.image_size % backbone.attention_divisor:
            raise BestiaryError(
                f"image_size {made.image_size} of Training Images: {backbone.name} needs a multiple of "
                f"{backbone.attention_divisor}, such as {backbone.image_size}"
            )
        if ComfyAutoencoder(vae).fingerprint() != made.autoencoder:
            raise BestiaryError("the training set was encoded with another VAE: connect the same VAE to both nodes")

    def set_up(self, denoiser: ComfyDenoiser) -> PartTraining:
        """Projector, adapters and captioned batches.

        Raises:
            BestiaryError: attention layers that this model does not have.
        """
        check_layers(self.settings, denoiser)
        denoiser.network.adapters.unload()  # of a set-up that Cancel cut short
        made = self.training_set
        return set_up_parts(self.settings, denoiser, made.names, made.kinds, LatentCache(made.moments))

    def square(self, row: int) -> Image.Image:
        """That of the set."""
        return self.training_set.picture(row)

    def keep(self, concept: PartDictionary, name: str) -> str:
        """Save it as a dictionary."""
        return save_dictionary(concept, name)
