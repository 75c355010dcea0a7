"""NeTI's mapper: a small network from (timestep, cross-attention layer) to a word vector, evaluated on a grid and stored as vectors.

Alaluf et al., arXiv 2305.15391; NeuralTextualInversion/NeTI, models/neti_mapper.py and positional_encoding.py, rewritten for
evaluation. Letters: N points of the grid, H width of the hidden layers (128), D width of the output.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BestiaryError

LAYERS = 16
"""Cross-attention layers of Stable Diffusion 1 and 2, in the order in which they run."""
TIMESTEPS = 1000
_LINEAR_KEYS = (
    "net.1.weight",
    "net.1.bias",
    "net.4.weight",
    "net.4.bias",
    "output_layer.0.weight",
    "output_layer.0.bias",
)
_NORM_KEYS = ("net.2.weight", "net.2.bias", "net.5.weight", "net.5.bias")


@dataclass(frozen=True)
class NetiMapper:
    """The weights of a trained mapper."""

    tensors: Mapping[str, Tensor]
    """By their published names."""
    frequencies: Tensor | None
    """`(n, 2)`: Fourier frequencies of timestep and layer; None for mappers that use the two numbers directly."""
    norm: float | None = None
    """Norm of every output; None leaves outputs unchanged."""

    def __post_init__(self) -> None:
        """Raises BestiaryError if weights are missing or inconsistent."""
        # the first layer belongs to mappers with Fourier features
        wanted = [*_LINEAR_KEYS, *_NORM_KEYS, *(("net.0.weight", "net.0.bias") if self.frequencies is not None else ())]
        missing = [name for name in wanted if name not in self.tensors]
        if missing:
            raise BestiaryError(f"the mapper lacks {', '.join(missing)}: not a NeTI mapper, or truncated")
        # the width of the first layer, or of the two numbers, must match the second layer
        width = self.tensors["net.1.weight"].shape[-1]
        given = 2
        if self.frequencies is not None:
            shape = tuple(self.frequencies.shape)
            if len(shape) != 2 or shape[1] != 2 or self.tensors["net.0.weight"].shape[-1] != 2 * shape[0]:
                raise BestiaryError(
                    f"frequencies {shape} do not match the first layer {tuple(self.tensors['net.0.weight'].shape)}"
                )
            given = self.tensors["net.0.weight"].shape[0]
        if width != given:
            raise BestiaryError(
                f"the second layer of the mapper has {width} inputs, but its first one has {given} outputs"
            )

    @property
    def hidden(self) -> int:
        """H, the maximum of `truncation`."""
        return self.tensors["net.4.weight"].shape[0]

    @torch.no_grad()
    def at(self, timesteps: Tensor, layers: Tensor, truncation: int | None = None) -> Tensor:
        """Outputs `(N, D)` at N points.

        Args:
            timesteps: `(N,)`, 0 to 999.
            layers: `(N,)`, 0 to 15.
            truncation: number of hidden values to keep (0 to H), most important first; fewer are easier to edit. None keeps all.

        Raises:
            BestiaryError: the truncation is out of range.
        """
        if truncation is not None and not 0 <= truncation <= self.hidden:
            raise BestiaryError(f"truncation {truncation}: choose 0 (most editable) to {self.hidden} (as trained)")
        t = self.tensors
        hidden = self._encoded(timesteps, layers)  # (N, 160) or (N, 2)
        hidden = F.linear(hidden, t["net.1.weight"].float(), t["net.1.bias"].float())
        hidden = self._normed(hidden, "net.2")
        hidden = F.linear(hidden, t["net.4.weight"].float(), t["net.4.bias"].float())
        hidden = self._normed(hidden, "net.5")  # (N, H)
        # nested dropout: numbers were learned in order of importance, so the rest can go
        if truncation is not None:
            hidden = hidden * (torch.arange(self.hidden) < truncation)
        output = F.linear(hidden, t["output_layer.0.weight"].float(), t["output_layer.0.bias"].float())  # (N, D)
        return output if self.norm is None else F.normalize(output, dim=-1) * self.norm

    def _normed(self, hidden: Tensor, name: str) -> Tensor:
        """Layer norm and leaky rectifier on `(N, H)`."""
        weight, bias = self.tensors[f"{name}.weight"].float(), self.tensors[f"{name}.bias"].float()
        return F.leaky_relu(F.layer_norm(hidden, hidden.shape[-1:], weight, bias))

    def _encoded(self, timesteps: Tensor, layers: Tensor) -> Tensor:
        """The two numbers as Fourier features through the first layer, or scaled to -1..1."""
        if self.frequencies is None:
            return torch.stack([timesteps / (TIMESTEPS - 1), layers / (LAYERS - 1)], dim=1) * 2 - 1  # (N, 2)
        # sines and cosines of both numbers at learned frequencies, at unit length
        points = torch.stack([timesteps.float(), layers.float()])  # (2, N)
        angles = self.frequencies.float() @ points  # (n, N)
        features = torch.cat([angles.sin(), angles.cos()])  # (2 n, N)
        features = (features / features.norm(dim=0)).T  # (N, 2 n)
        return F.linear(features, self.tensors["net.0.weight"].float(), self.tensors["net.0.bias"].float())

    def grid(self, timesteps: Tensor, truncation: int | None = None) -> Tensor:
        """Outputs `(T, 16, D)` at T timesteps and all layers."""
        rows = timesteps.repeat_interleave(LAYERS).float()  # (T * 16,)
        layers = torch.arange(LAYERS).repeat(len(timesteps)).float()
        return self.at(rows, layers, truncation).view(len(timesteps), LAYERS, -1)
