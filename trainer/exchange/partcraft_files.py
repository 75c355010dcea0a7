"""The files that kamwoh/partcraft @ dfe64e1 publishes and writes, recognised by their content, not by their names.

Mapper: `embedding.weight`, `pe`, `projection.N.*` (pytorch_model_1.bin, model_1.safetensors, hash_mapper.pth). LoRA: adapter
matrices (pytorch_model.bin, model.safetensors, lora_layers.pth, pytorch_lora_weights.safetensors). K-means: three levels of
centroids (pretrained_kmeans.pth, pickled objects of torchpq, of which only the centroids are taken).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ...concepts.denoiser.lora_forms import check_forms
from ...concepts.denoiser.lora_names import kohya_name, with_told_alphas
from ...concepts.errors import BestiaryError
from ...concepts.files.concept_file import read_header, read_tensors
from ...concepts.files.safe_pickle import load_inert, load_tensors, tensors_in

Found = TypeVar("Found")
PartCraftKind = Literal["mapper", "lora", "kmeans"]

FOREGROUND, COARSE, FINE = "fg.centroids", "coarse.centroids", "fine.{}.centroids"
"""Names of centroids `(k, D)` as we keep them."""


@dataclass(frozen=True)
class PartCraftFile:
    """One recognised file."""

    path: Path
    kind: PartCraftKind
    tensors: dict[str, Tensor]
    """Mapper and LoRA as in the file; k-means as `fg.centroids (2, D)`, `coarse.centroids (M, D)`, `fine.M.centroids`."""


def read_partcraft_file(path: Path) -> PartCraftFile:
    """Read one file and say what it is.

    Raises:
        BestiaryError: unreadable, unsafe, or none of the three.
    """
    content = _read(path)
    if isinstance(content, Mapping) and "coarse_kmeans" in content:
        return PartCraftFile(path, "kmeans", _centroids(path, content))
    # data-parallel training leaves its wrapper in the names
    tensors = {
        re.sub(r"^module\.", "", str(name)): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)
    }
    # by what the tensors are called, whatever the file is called
    if COARSE in tensors:
        return PartCraftFile(path, "kmeans", tensors)
    if "embedding.weight" in tensors:
        return PartCraftFile(path, "mapper", tensors)
    if any(kohya_name(name) for name in tensors):
        # scales that only the header contains
        metadata = read_header(path).metadata if holds_safetensors(path) else {}
        return PartCraftFile(path, "lora", _told(path, lambda: with_told_alphas(tensors, metadata)))
    _told(path, lambda: check_forms(tensors))
    found = ", ".join(list(tensors)[:3])
    raise BestiaryError(
        f"{path} is not a PartCraft file: it holds {found}; expected a mapper (embedding.weight, pe, projection...), "
        "a LoRA (...to_q_lora.up.weight) or a k-means (coarse_kmeans)"
    )


def _told(path: Path, work: Callable[[], Found]) -> Found:
    """What `work` returns; its faults name the file."""
    try:
        return work()
    except BestiaryError as fault:
        raise BestiaryError(f"{path}: {fault}") from fault


def holds_safetensors(path: Path) -> bool:
    """True if a file's first bytes look like safetensors, whatever its name."""
    try:
        with Path(path).open("rb") as stream:
            return stream.read(9)[8:] == b"{"
    except OSError as fault:
        raise BestiaryError(f"could not read {path}: {fault.strerror or fault}") from fault


def _read(path: Path) -> Mapping[str, object]:
    if holds_safetensors(path):
        read_header(path)
        return read_tensors(path)
    try:
        return load_tensors(path)
    except BestiaryError as refused:
        # k-means objects need the shells; a bomb is refused here too, with all its names
        content = load_inert(path)
        if isinstance(content, Mapping) and "coarse_kmeans" in content:
            return content
        raise refused


def _centroids(path: Path, content: Mapping[str, object]) -> dict[str, Tensor]:
    """Centroids `(k, D)` of all levels; in the file each is the buffer `centroids`, `(D, k)`."""
    found = {name.replace("._buffers.", "."): tensor for name, tensor in tensors_in(content)}
    named = {FOREGROUND: "foreground_background.centroids", COARSE: "coarse_kmeans.centroids"}
    count = sum(name.startswith("fine_kmeans.") and name.endswith(".centroids") for name in found)
    named |= {FINE.format(part): f"fine_kmeans.{part}.centroids" for part in range(count)}
    missing = [theirs for theirs in named.values() if theirs not in found]
    if missing or not count:
        raise BestiaryError(f"{path} is an incomplete k-means file: it lacks {', '.join(missing) or 'fine_kmeans'}")
    # columns are centroids there, rows here
    tensors = {ours: found[theirs].float().T.contiguous() for ours, theirs in named.items()}
    # one width throughout, no nan: a codebook of broken centroids would label everything alike
    widths = {tensor.shape[1] for tensor in tensors.values() if tensor.ndim == 2}
    if len(widths) != 1 or any(tensor.ndim != 2 or not torch.isfinite(tensor).all() for tensor in tensors.values()):
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        raise BestiaryError(f"{path} holds centroids that do not fit together or are not finite: {shapes}")
    return tensors
