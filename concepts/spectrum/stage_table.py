"""Trainable vectors of all stages: as a table, or through ProSpect's network.

Both return the vectors of any stages in generation order, and are saved as a matrix. Letters: S stages, U asked
stages, V vectors of a stage, D width of a vector over all text encoders.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ..errors import BestiaryError

NormRule = Literal["keep", "clamp", "free"]
"""Vectors keep their initial norm ("keep"), have it as an upper limit ("clamp"), or are unconstrained ("free")."""
HEADS, HEAD_WIDTH, DROPOUT = 8, 64, 0.1
"""Of ProSpect's network (embedding_manager.py of zyxElsa/ProSpect @ 31314f1)."""


class StageVectors(Protocol):
    """Interface of a table for training objectives."""

    def stages_of(self, stages: Sequence[int]) -> Tensor:
        """Vectors `(U, V, D)` of U stages counted from 0, with gradients."""
        ...

    def matrix(self) -> Tensor:
        """Vectors `(S, V, D)` of all stages, in the form for use and for files."""
        ...


class StageTable(nn.Module):
    """One trainable vector per stage and position; every stage is a separate parameter.

    So a stage that is not sampled in a step has no gradient, and the optimiser changes neither it nor its moments.
    """

    norms: Tensor
    """`(V, 1)`, of the initial vectors."""

    def __init__(self, start: Tensor, stages: int, *, norm: NormRule = "keep") -> None:
        """All stages start at `start` `(V, D)`."""
        super().__init__()
        self.rows = nn.ParameterList(nn.Parameter(start.detach().float().clone()) for _ in range(stages))
        self.norm = norm
        self.register_buffer("norms", start.detach().float().norm(dim=-1, keepdim=True), persistent=False)  # (V, 1)

    @torch.no_grad()
    def perturb(self, spread: float, generator: torch.Generator) -> None:
        """Add a small perturbation to every stage, normal noise of standard deviation `spread`, drawn on the CPU."""
        for row in self.rows:
            noise = torch.randn(row.shape, generator=generator)  # (V, D)
            row += spread * noise.to(row.device)

    def stages_of(self, stages: Sequence[int]) -> Tensor:
        """Vectors `(U, V, D)`; see StageVectors."""
        return self._limited(torch.stack([self.rows[stage] for stage in stages]))

    def matrix(self) -> Tensor:
        """Vectors `(S, V, D)`; see StageVectors."""
        return self.stages_of(range(len(self.rows)))

    def _limited(self, vectors: Tensor) -> Tensor:
        """`(U, V, D)` with the norms that the rule allows: text encoders read far longer or shorter words badly."""
        if self.norm == "free":
            return vectors
        scale = self.norms / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)  # (U, V, 1)
        return vectors * (scale if self.norm == "keep" else scale.clamp(max=1))


class _SingleTokenAttention(nn.Module):
    """Attention of one token to one token: the softmax of a single score is 1, so queries and keys do nothing.

    They are kept, with their published names, so that published weights fit and parameters count the same.
    """

    def __init__(self, width: int) -> None:
        """For tokens `(1, 1, width)`: 8 heads of 64, and an output layer back to `width`."""
        super().__init__()
        inner = HEADS * HEAD_WIDTH
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(width, inner, bias=False)
        self.to_v = nn.Linear(width, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width), nn.Dropout(DROPOUT))

    def forward(self, context: Tensor) -> Tensor:
        """What a token takes from `context` `(1, 1, D)`."""
        return self.to_out(self.to_v(context))


class _GatedLinear(nn.Module):
    """GEGLU (arXiv 2002.05202)."""

    def __init__(self, width: int, inner: int) -> None:
        """From `(1, 1, width)` to `(1, 1, inner)`: values and gates come from one layer."""
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, values: Tensor) -> Tensor:
        """`(1, 1, D)` -> `(1, 1, inner)`."""
        kept, gate = self.proj(values).chunk(2, dim=-1)
        return kept * nn.functional.gelu(gate)


class _FeedForward(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        """From `(1, 1, width)` to `(1, 1, outputs)` through a hidden layer of four times the width."""
        super().__init__()
        self.net = nn.Sequential(_GatedLinear(width, 4 * width), nn.Dropout(DROPOUT), nn.Linear(4 * width, outputs))

    def forward(self, values: Tensor) -> Tensor:
        """`(1, 1, D)` -> `(1, 1, S * D)`."""
        return self.net(values)


class ProspectNetwork(nn.Module):
    """ProSpect's parameterisation, one transformer block over the embedding of the initial word (space P*, arXiv 2305.16225).

    zyxElsa/ProSpect @ 31314f1, ldm/modules/embedding_manager.py, rewritten. The last layer has no residual connection, as there.
    The output lists the last stage first, as there; `stages_of` and `matrix` turn it round.
    """

    def __init__(self, word: Tensor, stages: int) -> None:
        """`word` `(1, D)`: the embedding of the initial word, which stays as it is."""
        super().__init__()
        width = word.shape[-1]
        self.stages = stages
        self.register_buffer("word", word.detach().float().view(1, 1, width), persistent=False)
        self.attn1 = _SingleTokenAttention(width)
        self.ff = _FeedForward(width, stages * width)
        self.attn2 = _SingleTokenAttention(width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self) -> Tensor:
        """Vectors `(S, D)`, the last stage first; with dropout while training."""
        word = self.word  # (1, 1, D)
        hidden = self.attn1(self.norm1(word)) + word
        hidden = self.attn2(word) + hidden
        return self.ff(self.norm3(hidden)).view(self.stages, -1)  # (S, D)

    def stages_of(self, stages: Sequence[int]) -> Tensor:
        """Vectors `(U, 1, D)`; see StageVectors."""
        return self().flip(0)[list(stages)].unsqueeze(1)

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """Vectors `(S, 1, D)` without dropout; see StageVectors."""
        training = self.training
        self.eval()
        vectors = self.stages_of(range(self.stages))
        self.train(training)
        return vectors

    @classmethod
    def from_published(cls, word: Tensor, tensors: dict[str, Tensor]) -> "ProspectNetwork":
        """The network of a published file, in evaluation mode; `word` `(1, D)`, `tensors` by their published names.

        Raises:
            BestiaryError: tensors are missing or have shapes that do not fit the word.
        """
        # the number of stages stands nowhere but in the last layer's shape
        width = word.shape[-1]
        last = tensors.get("ff.net.2.weight")
        if last is None or last.ndim != 2 or not last.shape[0] or last.shape[0] % width:
            shown = "missing" if last is None else tuple(last.shape)
            raise BestiaryError(f"its last layer ff.net.2.weight is {shown}: (stages * {width}, {4 * width}) is needed")
        # shapes first, on no memory at all: a file may claim anything
        with torch.device("meta"):
            network = cls(torch.empty(1, width), last.shape[0] // width)
        wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        strange = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if strange:
            name = strange[0]
            raise BestiaryError(
                f"its tensor {name} has shape {found.get(name, 'none')}, {wanted.get(name, 'none')} is needed: "
                "not ProSpect's network, or one for another text encoder"
            )
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        network.word = word.detach().float().view(1, 1, width)
        return network.eval().requires_grad_(False)
