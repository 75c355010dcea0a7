"""A denoiser as trainings see it."""

from typing import Protocol

from ....concepts.denoiser.denoiser import Denoiser


class TrainableDenoiser(Denoiser, Protocol):
    """A denoiser that can save memory while it is trained."""

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass, or keep them."""
        ...
