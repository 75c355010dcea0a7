"""LoRA files of one stage of DeepFloyd IF are kept off the other, whose layers partly have the same names and shapes.

ComfyUI's loader gives a MODEL the tensors of a file, not its header, so the file is found again among models/loras.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...concepts.denoiser.adapters import kohya_name
from ...concepts.denoiser.lora_family import check_base
from ...concepts.denoiser.lora_names import DOWN
from ...concepts.errors import BestiaryError
from ...concepts.files.concept_file import Header, read_header, read_tensors
from ...concepts.name_search import shown_name

LORAS, SUFFIX = "loras", ".safetensors"
_LAYERS, _WEIGHT = "diffusion_model.", ".weight"


class StagePatcher(ModelPatcher):
    """A MODEL of one stage that takes no LoRA which a training of ours left for another model."""

    def add_patches(
        self, patches: Mapping[Any, Any], strength_patch: float = 1.0, strength_model: float = 1.0
    ) -> list[Any]:
        """As ComfyUI's.

        Raises:
            BestiaryError: the patches are those of a file that names another base model.
        """
        found = file_of(patches)
        if found is not None:
            name, notes = found
            check_base(notes, f"if-{self.model.stage.lower()}", f"the LoRA {shown_name(name)}")
        return super().add_patches(patches, strength_patch, strength_model)


def file_of(patches: Mapping[Any, Any]) -> tuple[str, dict[str, object]] | None:
    """The file of ours in models/loras that loaded patches come from: its name there, and what it says of its training."""
    known = next(_down_matrices(patches), None)
    if known is None:
        return None
    tensor, down = known
    for name in folder_paths.get_filename_list(LORAS):
        path = folder_paths.get_full_path(LORAS, name)
        if path is None or not name.endswith(SUFFIX):
            continue
        header = _header(Path(path))
        if header is None or tensor not in header.entries or header.entries[tensor].shape != tuple(down.shape):
            continue
        # the drawn halves of two trainings are never equal
        if torch.equal(read_tensors(Path(path))[tensor].to(down), down):
            return name, header.concept
    return None


def _down_matrices(patches: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensor name in a file of ours and down matrix `(r, in)` of layers with a LoRA."""
    for key, patch in patches.items():
        weights = getattr(patch, "weights", None)
        if isinstance(key, str) and isinstance(weights, tuple) and len(weights) > 1 and isinstance(weights[1], Tensor):
            yield kohya_name(key.removeprefix(_LAYERS).removesuffix(_WEIGHT)) + DOWN, weights[1]


def _header(path: Path) -> Header | None:
    """The header of a file of ours; None of any other, and of one that cannot be read."""
    try:
        header = read_header(path)
    except BestiaryError:
        return None
    return header if header.kind == "dreambooth" else None
