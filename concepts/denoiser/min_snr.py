"""Min-SNR loss weights (Hang et al. 2023, arXiv 2303.09556, equation 8 and appendix)."""

import torch
from torch import Tensor

from ..errors import BestiaryError
from .denoiser import Prediction


def min_snr_weights(snr: Tensor, gamma: float, prediction: Prediction = "epsilon") -> Tensor:
    """Weight of each sample's squared error `(B,)`.

    min(snr, gamma) / snr when the model predicts noise, min(snr, gamma) / (snr + 1) when it predicts velocity.

    Args:
        snr: signal-to-noise ratio `(B,)`, 0 or more; 0 (a zero-terminal schedule) gives the limits 1 and 0.
        gamma: usually 5; 0 turns the weighting off (all ones).

    Raises:
        BestiaryError: gamma is negative or the prediction has another name.
    """
    if gamma < 0:
        raise BestiaryError(f"min-SNR gamma is {gamma}: give 0 (off) or a positive number, usually 5")
    if prediction not in ("epsilon", "v_prediction"):
        raise BestiaryError(f"unknown prediction {prediction!r}: choose epsilon or v_prediction")
    if gamma == 0:
        return torch.ones_like(snr)
    if prediction == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)  # (B,)
    # min(snr, gamma) / snr, written so that snr = 0 gives its limit 1 and not 0 / 0
    return (gamma / snr).clamp(max=1)  # (B,)
