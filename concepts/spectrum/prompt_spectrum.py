"""PromptSpectrum: a learned concept with separate vectors for every denoising stage, in place of one word (space P*).

Paper: Zhang et al., ProSpect, ACM TOG 42(6), arXiv 2305.16225. With an axis of layers it also represents P+ and NeTI (arXiv
2303.09522, 2305.15391). Stages are in generation order. Letters: S stages, L cross-attention layers, V vectors of a stage,
D width of a vector over all text encoders, W width of one encoder.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..denoiser.backbone import Backbone, check_learned_for, get_backbone
from ..denoiser.token_insertion import Insertion
from ..errors import BestiaryError
from ..name_search import shown_name
from .attribute_presets import DEFAULT_PRESETS, Presets, select_stages
from .stage_bounds import StageBounds


@dataclass(frozen=True, eq=False)
class PromptSpectrum:
    """Learned vectors of one concept for every stage."""

    backbone: str
    """Name of the diffusion model family the vectors were learned for (concepts/denoiser/backbone.py)."""
    embeddings: Mapping[str, Tensor]
    """Text encoder name -> `(S, V, W)`, or `(S, L, V, W)` with a vector per cross-attention layer; float32."""
    bounds: StageBounds
    """Where the S stages begin and end."""
    counts: tuple[int, ...] = ()
    """Vectors used in each stage, at most V, the rest are zeros; empty: V everywhere. 0: no concept at this stage."""
    words: Mapping[int, str] = field(default_factory=dict)
    """Stage -> plain words used there instead of the vectors."""
    neutral: Mapping[str, Tensor] = field(default_factory=dict)
    """Text encoder name -> `(V, W)`: vectors of the initial words, used for strength 0; empty if unknown."""
    initial_words: str = ""
    """The initial words."""
    bypass: Mapping[str, Tensor] = field(default_factory=dict)
    """Like `embeddings`, added to the output of the text encoder for the attention values (NeTI); empty for other methods."""
    presets: Presets = field(default_factory=lambda: dict(DEFAULT_PRESETS))
    """Attribute -> stages."""
    provenance: Mapping[str, object] = field(default_factory=dict)
    """Origin of the spectrum: any JSON value of at most a few kilobytes."""
    shift: float | None = None
    """Shift of the flow model that the stages were learned with, above 0, which says at what noise they begin and end; None where stages are
    timesteps, or no shift is known."""

    def __post_init__(self) -> None:
        """Raises BestiaryError if vectors, stages and names are inconsistent."""
        if self.shift is not None and not 0 < self.shift < math.inf:
            raise BestiaryError(f"shift {self.shift:g} of a spectrum: a flow model's shift is a finite number above 0")
        encoders = {encoder.name for encoder in get_backbone(self.backbone).text_encoders}
        if self.embeddings.keys() != encoders:
            raise BestiaryError(
                f"a {self.backbone} spectrum needs vectors for {', '.join(sorted(encoders))}; "
                f"this one has {', '.join(sorted(self.embeddings)) or 'none'}"
            )
        # all encoders need the same stages, layers and vectors; their widths differ
        shapes = {tuple(tensor.shape[:-1]) for tensor in self.embeddings.values()}
        stages = self.bounds.stages
        if len(shapes) != 1 or len(shape := next(iter(shapes))) not in (2, 3) or shape[0] != stages or 0 in shape:
            shown = {name: tuple(tensor.shape) for name, tensor in self.embeddings.items()}
            raise BestiaryError(
                f"a spectrum of {stages} stages needs vectors (S, V, width) or (S, L, V, width) with S = {stages}, got {shown}"
            )
        # counts and words must refer to existing stages
        if self.counts and (len(self.counts) != stages or not all(0 <= n <= self.vectors for n in self.counts)):
            raise BestiaryError(f"vectors used per stage {self.counts}: give {stages} numbers of 0 to {self.vectors}")
        strange = [stage for stage in self.words if stage not in range(stages)]
        if strange:
            raise BestiaryError(f"words for stage {strange[0] + 1}: there are stages 1 to {stages}")
        self._check_companions()

    def _check_companions(self) -> None:
        """Check that neutral `(V, W)` and bypass vectors match the embeddings and all values are finite."""
        for name, tensor in self.neutral.items():
            if name not in self.embeddings or tensor.shape != self.embeddings[name].shape[-2:]:
                raise BestiaryError(
                    f"neutral vectors {shown_name(name)} {tuple(tensor.shape)} do not match the embeddings"
                )
        for name, tensor in self.bypass.items():
            if name not in self.embeddings or tensor.shape != self.embeddings[name].shape:
                raise BestiaryError(
                    f"bypass vectors {shown_name(name)} {tuple(tensor.shape)} do not match the embeddings"
                )
        # a single infinite number would spoil every picture it takes part in
        groups = {"": self.embeddings, "neutral ": self.neutral, "bypass ": self.bypass}
        for kind, tensors in groups.items():
            for name, tensor in tensors.items():
                if not torch.isfinite(tensor).all():
                    raise BestiaryError(f"the {kind}vectors {shown_name(name)} hold values that are not finite")

    @property
    def insertion(self) -> Insertion:
        """Where its vectors enter a prompt."""
        return "output" if self.provenance.get("insertion") == "output" else "input"

    @property
    def stages(self) -> int:
        """S."""
        return self.bounds.stages

    @property
    def vectors(self) -> int:
        """V, the maximum number of vectors of a stage."""
        return next(iter(self.embeddings.values())).shape[-2]  # of (S, [L,] V, W)

    @property
    def layers(self) -> int | None:
        """L, None if all cross-attention layers share the vectors."""
        tensor = next(iter(self.embeddings.values()))
        return tensor.shape[1] if tensor.ndim == 4 else None

    @property
    def vector_width(self) -> int:
        """D, all text encoders together."""
        return sum(tensor.shape[-1] for tensor in self.embeddings.values())

    def matrix(self) -> Tensor:
        """All vectors `(S, V, D)` or `(S, L, V, D)` float32, text encoders side by side in the backbone's order."""
        return self._joined(self.embeddings)

    def bypass_matrix(self) -> Tensor | None:
        """The bypass vectors, `(S, V, D)` or `(S, L, V, D)`; None if there are none."""
        return self._joined(self.bypass) if self.bypass else None

    def neutral_matrix(self) -> Tensor | None:
        """Vectors for strength 0, `(V, D)` float32; None if unknown."""
        return self._joined(self.neutral) if self.neutral else None

    def _joined(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Tensors `(..., W)` of the text encoders side by side in the backbone's order, `(..., D)` float32."""
        encoders = get_backbone(self.backbone).text_encoders
        return torch.cat([tensors[encoder.name].float() for encoder in encoders], dim=-1)

    def count(self, stage: int) -> int:
        """Vectors used at a stage; words that stand there instead do not count."""
        return self.counts[stage] if self.counts else self.vectors

    def stage_vectors(self, stage: int) -> Tensor:
        """The vectors used at a stage counted from 0: `(n, D)`, or `(L, n, D)`; n may be 0."""
        return self.matrix()[stage][..., : self.count(stage), :]

    def mean_embedding(self) -> dict[str, Tensor]:
        """One textual inversion for all stages, encoder -> `(V, W)`: the mean over stages and layers that use a vector.

        This is what programs without stages load.
        """
        # stages with words say nothing through their vectors
        counts = torch.tensor([0 if s in self.words else self.count(s) for s in range(self.stages)])
        # vectors beyond a stage's count are zeros and must not pull the mean down
        used = torch.arange(self.vectors) < counts.unsqueeze(1)  # (S, V)
        # a concept that is silent everywhere still needs a fallback
        weight = (used if used.any() else torch.ones_like(used)).float()
        weight = weight.clone()
        # a vector that no stage uses is averaged over all of them
        weight[:, ~weight.any(0)] = 1
        means = {}
        for name, tensor in self.embeddings.items():
            flat = tensor.float() if tensor.ndim == 3 else tensor.float().mean(1)  # (S, V, W)
            means[name] = (flat * weight.unsqueeze(-1)).sum(0) / weight.sum(0).unsqueeze(-1)  # (V, W)
        return means

    def select(self, stages: str) -> tuple[int, ...]:
        """Stages counted from 0 that a selection such as "layout, 4-6" names, by this spectrum's own presets."""
        return select_stages(stages, self.bounds, self.presets)

    @classmethod
    def from_matrix(
        cls,
        backbone: Backbone,
        matrix: Tensor,
        bounds: StageBounds,
        *,
        neutral: Tensor | None = None,
        **fields: Any,
    ) -> "PromptSpectrum":
        """A spectrum from vectors `(S, V, D)` or `(S, L, V, D)` and neutral ones `(V, D)`, text encoders side by side.

        `fields` are those of the record that are left.
        """
        # neutral vectors too are cut into one tensor per encoder
        pieces = {} if neutral is None else backbone.split_vector(neutral.detach().float().cpu())
        return cls(
            backbone=backbone.name,
            embeddings={n: t.contiguous() for n, t in backbone.split_vector(matrix.detach().float().cpu()).items()},
            bounds=bounds,
            neutral={name: tensor.contiguous() for name, tensor in pieces.items()},
            **fields,
        )


def from_reference_order(vectors: Tensor) -> Tensor:
    """Vectors `(S, ...)` between the order of ProSpect's lists (last stage first) and ours; the same both ways."""
    return vectors.flip(0)


def check_spectrum_backbone(name: str, spectrum: PromptSpectrum, backbone: Backbone) -> None:
    """Make sure that a spectrum was learned for the kind of model that is loaded.

    Raises:
        BestiaryError: it was learned for another backbone, or its vectors have another width.
    """
    check_learned_for("spectrum", name, spectrum.backbone, spectrum.embeddings, backbone)
