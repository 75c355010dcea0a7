"""IS-Net in a graph: the files of models/bestiary/segmentation as a menu, and the network that was used last."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths
import numpy as np
from numpy.typing import NDArray

from ...concepts.errors import BestiaryError
from ...concepts.name_search import choices_text, shown_name
from ..host.concept_folders import FOLDER, SEGMENTATION, register_folder

if TYPE_CHECKING:
    from ...scenes.isnet import IsNet

AUTOMATIC = "automatic"
"""In the menu: the file that reads fastest."""
PLAIN_GROUND = "plain ground (no weights)"
"""In the menu: drawings and studio pictures, by the colour of their border."""
ENDINGS = (".safetensors", ".pth", ".onnx")

Segment = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def weights_files() -> dict[str, Path]:
    """Files of weights by name, those that read fastest first."""
    if FOLDER not in folder_paths.folder_names_and_paths:
        register_folder()
    found: dict[str, Path] = {}
    for folder in folder_paths.get_folder_paths(FOLDER):
        place = Path(folder) / SEGMENTATION
        for entry in sorted(place.iterdir()) if place.is_dir() else ():
            if entry.suffix.lower() in ENDINGS and entry.is_file():
                found.setdefault(entry.name, entry)
    return dict(sorted(found.items(), key=lambda entry: (ENDINGS.index(entry[1].suffix.lower()), entry[0])))


def weights_menu() -> list[str]:
    """What the menu offers."""
    return [AUTOMATIC, *weights_files(), PLAIN_GROUND]


def find_segment(choice: str) -> Segment | None:
    """What masks pictures by a choice of the menu; None where it is automatic and there is no file.

    Raises:
        BestiaryError: no such file, or it holds no weights of IS-Net.
    """
    if choice == PLAIN_GROUND:
        from ...scenes.plain_ground import segment_plain

        return segment_plain
    files = weights_files()
    if choice == AUTOMATIC:
        if not files:
            return None
        choice = next(iter(files))
    if choice not in files:
        raise BestiaryError(
            f"no weights {shown_name(choice)} in models/{FOLDER}/{SEGMENTATION}; choose {choices_text(choice, weights_menu())}"
        )
    facts = files[choice].stat()
    return functools.partial(_segment, _network(files[choice], facts.st_mtime_ns, facts.st_size))


def needed_segment(choice: str) -> Segment:
    """As `find_segment`, where something must mask.

    Raises:
        BestiaryError: as there, or there are no weights.
    """
    found = find_segment(choice)
    if found is None:
        raise BestiaryError(
            f"no weights in models/{FOLDER}/{SEGMENTATION}: write them there with `bestiary import isnet` (its help says where they can "
            "be had), give pictures with alpha, or connect a MASK (white = subject) of any other node to Subject"
        )
    return found


@functools.lru_cache(maxsize=1)
def _network(path: Path, changed: int, size: int) -> IsNet:
    """The network of a file, kept as long as the file stays."""
    import torch

    from ...scenes.isnet_weights import load_isnet

    # kept longer than this run, whose tensors belong to inference alone
    with torch.inference_mode(False):
        return load_isnet(path)


def _segment(network: IsNet, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Opacity `(H, W)` of the thing in a picture `(H, W, 3)`."""
    import comfy.model_management as management

    from ...scenes.isnet import segment

    # not among the models that ComfyUI moves by itself: there only while it runs
    network.to(management.get_torch_device())
    try:
        return segment(network, picture)
    finally:
        network.to("cpu")
