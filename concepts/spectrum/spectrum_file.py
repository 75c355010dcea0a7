"""Prompt spectra as files: one safetensors file that programs without stages load as a plain embedding.

Keys: `clip_l` (and `clip_g`, or `clip_h`) `(V, W)`, the mean over stages, is what ComfyUI's `embedding:name` takes;
`prospect.<encoder>` `(S, [L,] V, W)` are the stages in generation order; `neutral.<encoder>` `(V, W)` and
`bypass.<encoder>` if there are any. Everything else is metadata; `shift` is that of the flow model whose noise the stages are.
"""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..denoiser.backbone import get_backbone
from ..errors import BestiaryError
from ..files.concept_file import SPECTRUM_KIND, ConceptFile, read_concept_file, write_concept_file
from ..files.file_schema import (
    broken,
    checked_json,
    checked_list,
    checked_number,
    checked_numbered,
    checked_table,
    checked_tensor,
    checked_text,
    checked_whole,
)
from .attribute_presets import checked_presets
from .prompt_spectrum import PromptSpectrum
from .stage_bounds import MOST_STAGES, StageBounds

STAGES_PREFIX, NEUTRAL_PREFIX, BYPASS_PREFIX = "prospect.", "neutral.", "bypass."
LARGEST_FLOAT32 = 96 * 1024
"""Bytes of vectors above which files are written in half precision by default."""

LARGEST_SHIFT = 1e6
"""Of a flow model in a file, and one over the smallest."""

FileDtype = Literal["auto", "fp32", "fp16"]


def save_spectrum(spectrum: PromptSpectrum, path: Path, dtype: FileDtype = "auto") -> None:
    """Write one safetensors file, whole or not at all.

    Args:
        spectrum: what to write.
        path: of the file; missing folders are created.
        dtype: of the vectors, such as `(S, V, W)`; "auto" keeps float32 as long as the file stays below 100 KB.

    Raises:
        BestiaryError: a value exceeds half precision, or the file cannot be written.
    """
    tensors: dict[str, Tensor] = dict(spectrum.mean_embedding())
    tensors |= {STAGES_PREFIX + name: tensor for name, tensor in spectrum.embeddings.items()}
    tensors |= {NEUTRAL_PREFIX + name: tensor for name, tensor in spectrum.neutral.items()}
    tensors |= {BYPASS_PREFIX + name: tensor for name, tensor in spectrum.bypass.items()}
    # small files keep full precision, large ones use float16
    size = sum(4 * tensor.numel() for tensor in tensors.values())
    half = dtype == "fp16" or (dtype == "auto" and size > LARGEST_FLOAT32)
    cast = {name: tensor.to(torch.float16 if half else torch.float32) for name, tensor in tensors.items()}
    # float16 ends at 65,504
    broken = [name for name, tensor in cast.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise BestiaryError(f"{broken[0]} contains values outside the range of half precision: write fp32")
    metadata = {
        "kind": SPECTRUM_KIND,
        "backbone": spectrum.backbone,
        "stages": spectrum.stages,
        "edges": spectrum.bounds.edges,
        "counts": spectrum.counts,
        "words": {str(stage): text for stage, text in spectrum.words.items()},
        "initial_words": spectrum.initial_words,
        "presets": spectrum.presets,
        "provenance": spectrum.provenance,
    }
    # files of models without a shift stay as they were
    if spectrum.shift is not None:
        metadata["shift"] = spectrum.shift
    write_concept_file(path, cast, metadata)


def load_spectrum(path: Path) -> PromptSpectrum:
    """Read a spectrum (float32, on the CPU; vectors `(S, [L,] V, W)` per text encoder).

    Raises:
        BestiaryError: the file is missing, broken, of another kind or contradicts itself.
    """
    content = read_concept_file(path, SPECTRUM_KIND)
    try:
        return _spectrum(content)
    except BestiaryError as fault:
        raise BestiaryError(f"{path} is not a valid prompt spectrum: {fault}") from fault


def _spectrum(content: ConceptFile) -> PromptSpectrum:
    metadata = content.metadata
    encoders = [encoder.name for encoder in get_backbone(str(metadata.get("backbone"))).text_encoders]
    missing = [STAGES_PREFIX + name for name in encoders if STAGES_PREFIX + name not in content.tensors]
    if missing:
        raise BestiaryError(f"it lacks {', '.join(missing)}")
    _check(content, encoders)
    # JSON knows no tuples and no numbers as keys: both are made again
    edges = tuple(checked_list(metadata["edges"], "edges"))
    counts = tuple(checked_list(metadata.get("counts") or [], "counts"))
    words = {int(stage): text for stage, text in checked_table(metadata.get("words") or {}, "words").items()}
    provenance = metadata.get("provenance")
    # the mean for other programs is not read back: it follows from the stages
    return PromptSpectrum(
        backbone=str(metadata["backbone"]),
        embeddings={name: content.tensors[STAGES_PREFIX + name].float() for name in encoders},
        bounds=StageBounds(edges),
        counts=counts,
        words=words,
        neutral=_group(content, NEUTRAL_PREFIX),
        initial_words=str(metadata.get("initial_words") or ""),
        bypass=_group(content, BYPASS_PREFIX),
        presets=checked_presets(metadata.get("presets") or {}),
        provenance=provenance if isinstance(provenance, dict) else {},
        shift=None if metadata.get("shift") is None else checked_number(metadata["shift"], "the shift"),
    )


def _check(content: ConceptFile, encoders: list[str]) -> None:
    """Types, shapes and relations of all entries: vectors `(S, [L,] V, W)`, neutral ones and means `(V, W)`."""
    metadata, tensors = content.metadata, content.tensors
    edges = checked_list(metadata.get("edges"), "edges", 2, MOST_STAGES + 1)
    for edge in edges:
        checked_whole(edge, "a stage's edge", 0, 1 << 20)
    sizes = {"S": len(edges) - 1}
    if metadata.get("stages") is not None and metadata["stages"] != sizes["S"]:
        raise broken("stages", metadata["stages"], f"{sizes['S']}, as there are {len(edges)} edges")
    for count in checked_list(metadata.get("counts") or [], "counts"):
        checked_whole(count, "a stage's count", 0, 1 << 20)
    for text in checked_numbered(metadata.get("words") or {}, "words", sizes["S"]).values():
        checked_text(text, "the words of a stage", empty=True)
    checked_text(metadata.get("initial_words") or "", "initial_words", empty=True)
    for name, ranges in checked_table(metadata.get("presets") or {}, "presets").items():
        checked_text(name, "a preset's name")
        for pair in checked_list(ranges, f"the preset {name[:40]!r}", 0, MOST_STAGES):
            for share in checked_list(pair, f"a range of the preset {name[:40]!r}", 2, 2):
                checked_number(share, f"a range of the preset {name[:40]!r}", 0, 1)
    checked_json(checked_table(metadata.get("provenance") or {}, "provenance"), "provenance")
    if metadata.get("shift") is not None:
        checked_number(metadata["shift"], "the shift", 1 / LARGEST_SHIFT, LARGEST_SHIFT)
    # every encoder has its own width, everything else they share
    layered = tensors[STAGES_PREFIX + encoders[0]].ndim == 4
    for encoder in encoders:
        own = dict(sizes)
        checked_tensor(tensors, STAGES_PREFIX + encoder, "S L V W" if layered else "S V W", own)
        for prefix, shape in ((NEUTRAL_PREFIX, "V W"), (BYPASS_PREFIX, "S L V W" if layered else "S V W"), ("", "V W")):
            if prefix + encoder in tensors:
                checked_tensor(tensors, prefix + encoder, shape, dict(own))
        sizes |= {letter: size for letter, size in own.items() if letter != "W"}


def _group(content: ConceptFile, prefix: str) -> dict[str, Tensor]:
    """Tensors of any shape under a prefix, without it, as float32."""
    return {n.removeprefix(prefix): t.float() for n, t in content.tensors.items() if n.startswith(prefix)}
