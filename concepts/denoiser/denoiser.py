"""What a diffusion model can do, cut into five capabilities that every method is written against.

`TextSide` turns prompts with learned vectors into a `Conditioning`; `ImageSide` turns pictures into what is denoised, and back; `Process` mixes
in noise, takes the loss and steps back; `Network` predicts, and shows where it looked; `Conditioning` is what it looks at. A `Denoiser` holds
one of each, over diffusers' modules (trainer/model) or ComfyUI's (nodes/denoiser). `backbone.py` says in which numbers models differ.
Letters: B batch, P learned vectors of a prompt, K places of one vector, C chunks of text, L positions of a chunk, T places of a stream, E its
width, W width of a text encoder, h and w the grid of what is denoised.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from .adapters import Adapters
from .backbone import Backbone

AttentionMethod = Literal["lse", "one_hot"]
ColumnForm = Literal["text", "joint", "output"]
"""What a map of joint attention shows; see `joint_columns.py`."""
CONTEXT = "context"
"""Name of the stream of text that the image attends to, and whose places learned vectors have."""

# --- text -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptPiece:
    """A run of plain text, or one learned vector to be inserted."""

    text: str | None
    """Plain text; None for a learned vector."""
    weight: float = 1.0
    """Prompt weight, 1 is neutral."""
    joined: bool = False
    """For a vector: it continues the word of the vector before it, and the end of a chunk treats both as one word."""

    @classmethod
    def word(cls, vectors: int, weight: float = 1.0) -> "list[PromptPiece]":
        """One learned word of so many vectors, such as an embedding of several vectors."""
        return [cls(None, weight, joined=number > 0) for number in range(vectors)]


@dataclass(frozen=True)
class EncoderLayout:
    """One prompt laid out for one text encoder."""

    ids: Tensor
    """`(C, L)` long; a filler id stands where a learned vector goes."""
    slots: Tensor
    """`(P,)` long: place of each learned vector in the concatenated chunks, chunk * L + position; -1 where cut off."""
    weights: Tensor
    """`(C, L)` float: prompt weight of every position, 1 on start, end and padding."""
    tokens: int | None = None
    """Positions that hold tokens, for encoders that mask their padding; None masks nothing."""


PromptLayout = Mapping[str, EncoderLayout]
"""One prompt laid out for every text encoder, by the encoder's name; each has its own length and places."""


def chunks_of(layout: PromptLayout) -> int:
    """C, the most chunks that a text encoder needs."""
    return max(len(own.ids) for own in layout.values())


def vectors_of(layout: PromptLayout) -> int:
    """P, the learned vectors a prompt has places for."""
    return max((len(own.slots) for own in layout.values()), default=0)


def placed(layout: PromptLayout) -> Tensor:
    """`(P,)` bool: which learned vectors have a place in a text encoder; the others were cut off."""
    return torch.stack([own.slots >= 0 for own in layout.values()]).any(0)


def reordered(layout: PromptLayout, vectors: Sequence[int], count: int) -> PromptLayout:
    """The prompt with vector i of its own as number `vectors[i]` of `count`; numbers not named have no place."""
    changed = {}
    for name, own in layout.items():
        slots = torch.full((count,), -1, dtype=torch.long)  # (count,)
        slots[list(vectors)] = own.slots
        changed[name] = replace(own, slots=slots)
    return changed


@dataclass(frozen=True)
class Conditioning:
    """What a network is conditioned on, for B pictures."""

    streams: Mapping[str, Tensor]
    """Name -> `(B, T, E)`: what is attended to."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """Name -> `(B, ...)`: `pooled` text `(B, E)`; `sizes` `(B, 6)`, original height and width, crop top and left, target height and width in
    pixels; `mask` `(B, T)`, `guidance` `(B,)`, a `guide` picture: whatever a backbone reads. What it does not read is ignored."""
    places: Mapping[str, Tensor] = field(default_factory=dict)
    """Stream -> `(B, P, K)` long: the columns of every learned vector in it, -1 where absent."""

    @classmethod
    def of(cls, context: Tensor, columns: Tensor | None = None, **extras: Tensor | None) -> "Conditioning":
        """A conditioning of one text `(B, T, E)`, with columns `(B, P, K)`; extras that are None are left out."""
        given = {name: value for name, value in extras.items() if value is not None}
        return cls({CONTEXT: context}, given, {} if columns is None else {CONTEXT: columns})

    def __len__(self) -> int:
        """B."""
        return len(next(iter(self.streams.values())))

    @property
    def context(self) -> Tensor:
        """The stream of text `(B, T, E)`."""
        return self.streams[CONTEXT]

    @property
    def columns(self) -> Tensor | None:
        """Columns `(B, P, K)` of the learned vectors in the text; None where it has no places for any."""
        return self.places.get(CONTEXT)

    @property
    def pooled(self) -> Tensor | None:
        """Pooled text `(B, E)`."""
        return self.extras.get("pooled")

    @property
    def sizes(self) -> Tensor | None:
        """Sizes in pixels `(B, 6)`; None means the whole picture at the size of the latent."""
        return self.extras.get("sizes")

    def with_extras(self, **extras: Tensor | None) -> "Conditioning":
        """The same with further extras `(B, ...)`; those that are None are left out."""
        given = {name: value for name, value in extras.items() if value is not None}
        return replace(self, extras={**self.extras, **given})

    def rows(self, chosen: "slice | Tensor") -> "Conditioning":
        """Some of its B rows, or rows in another order: streams of `(B, T, E)` each."""
        return self._each(lambda tensor: tensor[chosen])

    def expanded(self, count: int) -> "Conditioning":
        """One row seen `count` times, without a copy."""
        return self._each(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        groups = (
            {name: change(tensor) for name, tensor in own.items()} for own in (self.streams, self.extras, self.places)
        )
        return Conditioning(*groups)


class TextSide(Protocol):
    """The text encoders of a model with their tokenizers."""

    def tokenize(self, pieces: Sequence[PromptPiece], chunks: int | None = None) -> PromptLayout:
        """Lay out a prompt; `chunks` fixes C (longer prompts are cut, shorter ones filled), None takes what it needs."""
        ...

    def encode(self, prompts: Sequence[PromptLayout], vectors: Mapping[str, Tensor] | None) -> Conditioning:
        """Encode B prompts with learned vectors, encoder -> `(B, P, W)`, in their places; differentiable in the vectors."""
        ...

    def word_vectors(self, words: str) -> dict[str, Tensor]:
        """Embedding rows of plain words, encoder -> `(n, W)`; encoders may cut words into different numbers of tokens."""
        ...

    def unknown_words(self, words: str) -> list[str]:
        """Those of several words that a tokenizer does not know."""
        ...


# --- image ------------------------------------------------------------------------------------------------------------


class ImageSide(Protocol):
    """An autoencoder, or none at all: `image_side.PixelSpace`."""

    def to_cache(self, images: Tensor) -> Tensor:
        """What is worth keeping of images `(B, 3, H, W)` in 0..1: posterior mean and log-variance `(B, 2, C, h, w)` float32."""
        ...

    def from_cache(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """What is denoised `(B, C, h, w)`: a posterior draw by standard normal `noise` `(B, C, h, w)`, or the mean; scaled."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` float32 in 0..1 of what was denoised `(B, C, h, w)`."""
        ...

    def shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of what is denoised for images of (height, width) pixels."""
        ...


# --- process ----------------------------------------------------------------------------------------------------------


class Process(Protocol):
    """A forward process; `process.DiscreteProcess` and `process.FlowProcess` hold the formulas. Times are in (0, 1], 1 is pure noise."""

    @property
    def prediction(self) -> str:
        """What the network predicts: epsilon, v_prediction or flow."""
        ...

    @property
    def num_timesteps(self) -> int:
        """Timesteps into which files and settings divide time."""
        ...

    def time_of(self, timestep: float) -> float:
        """Time of such a timestep, counted from 0."""
        ...

    def times_of_shares(self, shares: np.ndarray) -> Tensor:
        """Training times `(B,)` float32 of uniform random shares `(B,)` in [0, 1)."""
        ...

    def draw_between(self, low: float, high: float, rng: np.random.Generator) -> float:
        """A training time of the stage (low, high]."""
        ...

    def noised(self, x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Noised `(B, C, h, w)` at times `(B,)`."""
        ...

    def loss(
        self,
        output: Tensor,
        x0: Tensor,
        noise: Tensor,
        times: Tensor,
        *,
        weights: Tensor | None = None,
        min_snr: float = 0.0,
    ) -> Tensor:
        """Loss `(B,)` of an output at times `(B,)`; places weighted by `(B, 1, h, w)`, times by min-SNR weights of that gamma."""
        ...

    def log_snr(self, time: float) -> float:
        """Natural logarithm of the signal-to-noise ratio at a time: the noise level, whatever the schedule."""
        ...

    def time_of_log_snr(self, level: float) -> float:
        """The time at which `log_snr` is `level`."""
        ...

    def step(self, x: Tensor, output: Tensor, time: float, next_time: float) -> Tensor:
        """From `x` `(B, C, h, w)` at a time to a less noisy one, 0 being clean."""
        ...

    def sampling_times(self, steps: int) -> tuple[float, ...]:
        """The times of so many steps, falling, and 0 at the end."""
        ...


# --- network ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionRequest:
    """Which attention from places of the image to learned vectors to return with a prediction."""

    columns: Tensor
    """`(B, P, K)` long, as in `Conditioning.columns`; a vector's map is the sum over its columns, and zero where all are -1."""
    layers: tuple[str, ...] | None = None
    """Names of `Network.attention_grids`; None takes `Network.method_layers`."""
    method: AttentionMethod = "lse"
    form: ColumnForm = "text"
    """Of models whose attention is joint; where the image looks at text alone, all its attention is the text's share."""


@dataclass(frozen=True)
class NetworkOutput:
    """A prediction and what was asked for besides it."""

    prediction: Tensor
    """`(B, C, h, w)` float32, in the network's own parameterisation; `(B, 2 C, h, w)` with a learned variance."""
    attention: Mapping[str, Tensor] = field(default_factory=dict)
    """Layer -> probabilities `(B, P, h, w)` on the layer's grid, mean over heads."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """Block -> activations `(B, D, h, w)`."""


class Network(Protocol):
    """The network that denoises; frozen but for its adapters."""

    @property
    def adapters(self) -> Adapters:
        """Low-rank adapters on its layers, by name."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """In what it computes."""
        ...

    def predict(
        self,
        latents: Tensor,
        times: Tensor,
        conditioning: Conditioning,
        attention: AttentionRequest | None = None,
        features: Sequence[str] = (),
    ) -> NetworkOutput:
        """One evaluation at noised `(B, C, h, w)` and times `(B,)` in (0, 1]."""
        ...

    def attention_grids(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Layer -> (height, width) of the grid on which its attention can be read, for `size` = (h, w) of what is denoised."""
        ...

    def method_layers(self) -> tuple[str, ...]:
        """The layers that part training reads where none are named."""
        ...

    def feature_grids(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Block -> (height, width) of its activations, in running order."""
        ...

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass, or keep them."""
        ...


class Denoiser:
    """A diffusion model as the methods see it."""

    def __init__(
        self, backbone: Backbone, text: TextSide, images: ImageSide, process: Process, network: Network
    ) -> None:
        """`backbone`: the record of its numbers; the others: what it can do."""
        self.backbone, self.text, self.images, self.process, self.network = backbone, text, images, process, network

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """In what the network computes."""
        return self.network.dtype

    def attention_factors(self) -> dict[str, int]:
        """Layer -> how many times smaller its attention grid is than the grid of what is denoised: 1, 2, 4, ..."""
        return self._factors(self.network.attention_grids)

    def feature_factors(self) -> dict[str, int]:
        """Block -> how many times smaller the grid of its activations is than the grid of what is denoised."""
        return self._factors(self.network.feature_grids)

    def _factors(self, grids: Callable[[tuple[int, int]], Mapping[str, tuple[int, int]]]) -> dict[str, int]:
        edge = self.backbone.image_size
        _, height, width = self.images.shape((edge, edge))
        return {name: round(height / grid[0]) for name, grid in grids((height, width)).items()}

    def empty_conditioning(self) -> Conditioning:
        """What an empty prompt says, one row: its encoding, as in every graph of ComfyUI and in training captions.

        diffusers' own pipeline gives zeros for SDXL instead; pictures of a graph and of a command would then differ.
        """
        return self.text.encode([self.text.tokenize([], chunks=1)], None)


ProgressCallback = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""
