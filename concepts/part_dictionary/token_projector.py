"""From (part, kind) to a learned vector: a table of rows, one positional vector per part and a small projector.

PartCraft, arXiv 2407.04604; kamwoh/partcraft @ dfe64e1, dreamcreature/mapper.py: y = f(E[part * (K + 1) + kind] +
pe[part]), f being `depth` linear layers with ReLU between them. Parameter names are the published ones, so that released
checkpoints load as they are. Letters: M parts, K kinds per part, D width; kind K of every part means "absent".
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import BestiaryError

MAX_DEPTH = 8
"""Maximum linear layers in a state dict; more of them indicate another kind of file."""


@dataclass(frozen=True)
class ProjectorShape:
    """Dimensions of a projector, inferred from its tensor shapes."""

    num_parts: int
    num_kinds: int
    width: int
    depth: int
    positional: bool


class TokenProjector(nn.Module):
    """Table, positional vectors and projector; `forward` returns vectors for use in a prompt."""

    def __init__(
        self,
        num_parts: int,
        num_kinds: int,
        width: int,
        depth: int = 1,
        positional: bool = True,
        init_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Rows and positional vectors start as N(0, init_scale^2); 1.0 is the published start.

        Raises:
            BestiaryError: a count is not positive or the depth is not in 0..3.
        """
        super().__init__()
        if min(num_parts, num_kinds, width) < 1:
            raise BestiaryError(
                f"num_parts {num_parts}, num_kinds {num_kinds} and width {width} must all be at least 1"
            )
        if not 0 <= depth <= 3:
            raise BestiaryError(f"projector depth is {depth}: choose 0 (no projector), 1, 2 or 3")
        self.num_parts, self.num_kinds, self.width, self.depth = num_parts, num_kinds, width, depth
        self.embedding = nn.Embedding(num_parts * (num_kinds + 1), width)  # row part * (K + 1) + kind
        self.pe = nn.Parameter(torch.empty(num_parts, width)) if positional else None  # (M, D)
        # linear layers at even places, ReLU at odd ones: projection.0, .2, .4 as in the published files
        layers: list[nn.Module] = []
        for level in range(depth):
            layers += [nn.ReLU()] if level else []
            layers.append(nn.Linear(width, width))
        self.projection = nn.Sequential(*layers)
        with torch.no_grad():
            self.embedding.weight.normal_(0, init_scale, generator=generator)
            if self.pe is not None:
                self.pe.normal_(0, init_scale, generator=generator)

    def forward(self, parts: Tensor, kinds: Tensor) -> Tensor:
        """Vectors `(..., D)` of parts `(...)` in 0..M-1 and kinds `(...)` in 0..K-1; a negative kind means absent."""
        # absent parts get the last row of their block; it is never inserted, so it receives no gradient
        kinds = torch.where(kinds < 0, self.num_kinds, kinds)
        rows = self.embedding(parts * (self.num_kinds + 1) + kinds)  # (..., D)
        if self.pe is not None:
            rows = rows + self.pe[parts]
        return self.projection(rows)

    @torch.no_grad()
    def collapse(self) -> Tensor:
        """Every vector, `(M, K + 1, D)`: the dictionary that makes the projector unnecessary at inference."""
        device = self.embedding.weight.device
        parts = torch.arange(self.num_parts, device=device).unsqueeze(1)  # (M, 1)
        kinds = torch.arange(self.num_kinds + 1, device=device).unsqueeze(0)  # (1, K + 1)
        return self(*torch.broadcast_tensors(parts, kinds))

    @torch.no_grad()
    def start_from(self, vectors: Tensor, noise: float = 0.0, generator: torch.Generator | None = None) -> None:
        """Begin at given vectors: afterwards every kind of part m yields `vectors[m]` plus N(0, noise^2).

        Rows take the vectors, positional vectors become zero, and the projector becomes the identity near them: its
        first layer shifts all channels above the ReLUs' zero and its last one shifts them back.

        Args:
            vectors: `(M, D)`, for instance the word embedding of each part's name.

        Raises:
            BestiaryError: the shape is not (M, D).
        """
        expected = (self.num_parts, self.width)
        if tuple(vectors.shape) != expected:
            raise BestiaryError(f"vectors have shape {tuple(vectors.shape)}, expected {expected}: one row per part")
        weight = self.embedding.weight
        rows = vectors.to(weight).repeat_interleave(self.num_kinds + 1, dim=0)  # (M * (K + 1), D)
        # drawn on the CPU, so that a seed means the same start on every device
        drawn = torch.randn(rows.shape, generator=generator).to(weight)
        weight.copy_(rows + noise * drawn)
        if self.pe is not None:
            self.pe.zero_()
        linears = [layer for layer in self.projection if isinstance(layer, nn.Linear)]
        for linear in linears:
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)
        # ReLU would remove negative values: shift all channels by twice the largest value, and back at the end
        if len(linears) > 1:
            shift = 2 * weight.abs().max()
            linears[0].bias.fill_(shift)
            linears[-1].bias.fill_(-shift)

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, Tensor], num_parts: int | None = None) -> "TokenProjector":
        """Rebuild a projector of any published shape from its tensors (fp32).

        Args:
            tensors: `embedding.weight`, optionally `pe`, and `projection.N.weight` and `.bias`.
            num_parts: needed only where there is no `pe` to count.

        Raises:
            BestiaryError: keys are missing, shapes contradict each other or a value is not finite.
        """
        from ..part_map.part_file_schemas import check_projector

        # validate the shapes first: the module is built from them
        if "embedding.weight" in tensors:
            check_projector(
                {n: t for n, t in tensors.items() if n.startswith(("embedding.weight", "pe", "projection."))}
            )
        # depths above 3 occur in files, although the constructor refuses them
        shape = infer_shape(tensors, num_parts)
        projector = cls(shape.num_parts, shape.num_kinds, shape.width, 0, shape.positional)
        layers: list[nn.Module] = []
        for level in range(shape.depth):
            layers += [nn.ReLU()] if level else []
            layers.append(nn.Linear(shape.width, shape.width))
        projector.projection, projector.depth = nn.Sequential(*layers), shape.depth
        wanted = projector.state_dict()
        missing = sorted(wanted.keys() - tensors.keys())
        if missing:
            raise BestiaryError(f"the projector lacks {', '.join(missing)}; the file is incomplete")
        # every tensor must have the right shape and finite values
        loaded = {name: tensors[name].float() for name in wanted}
        for name, tensor in loaded.items():
            if tensor.shape != wanted[name].shape:
                raise BestiaryError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(wanted[name].shape)}")
            if not torch.isfinite(tensor).all():
                raise BestiaryError(f"{name} contains values that are not finite; the training diverged")
        projector.load_state_dict(loaded)
        return projector


def infer_shape(tensors: Mapping[str, Tensor], num_parts: int | None = None) -> ProjectorShape:
    """M, K, D and depth from the tensors of a projector: pe is `(M, D)`, the table `(M * (K + 1), D)`.

    Raises:
        BestiaryError: the tensors are not a projector, or their shapes are inconsistent.
    """
    table, pe = tensors.get("embedding.weight"), tensors.get("pe")
    if table is None or table.ndim != 2:
        found = ", ".join(list(tensors)[:4]) or "nothing"
        raise BestiaryError(f"not a token projector: expected a table 'embedding.weight' (rows, width), found {found}")
    # the number of parts is that of the positional vectors, or given by the caller
    rows, width = table.shape
    if pe is not None and pe.ndim != 2:
        raise BestiaryError(f"pe has shape {tuple(pe.shape)}, expected (parts, {width})")
    parts = num_parts if pe is None else pe.shape[0]
    if parts is None:
        raise BestiaryError("the projector has no positional vectors 'pe' to count its parts by: give num_parts")
    if pe is not None and tuple(pe.shape) != (parts, width):
        raise BestiaryError(f"pe has shape {tuple(pe.shape)}, the table has width {width}")
    if parts < 1 or rows % parts or rows // parts < 2:
        raise BestiaryError(f"a table of {rows} rows cannot be divided among {parts} parts of at least one kind each")
    # every linear layer has one weight; ReLUs have none and only leave a gap in the numbers
    depth = sum(name.startswith("projection.") and name.endswith(".weight") for name in tensors)
    if depth > MAX_DEPTH:
        raise BestiaryError(f"{depth} projection layers; a projector has at most {MAX_DEPTH}")
    return ProjectorShape(parts, rows // parts - 1, width, depth, pe is not None)
