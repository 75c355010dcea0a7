"""LoRA files of trainings in the graph, written into models/loras under names that are free."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...concepts.errors import BestiaryError
from ...concepts.files.concept_names import checked_file_name
from ...concepts.name_search import shown_name
from ...trainer.learning.dreambooth.dreambooth_setup import IDENTIFIER_ENDING, DreamBoothAdapter, save_adapter

SUFFIX = ".safetensors"
LORAS, EMBEDDINGS = "loras", "embeddings"


def save_lora(adapter: DreamBoothAdapter, name: str) -> str:
    """Write a LoRA into models/loras, and a learned identifier's vectors into models/embeddings; the LoRA's file name.

    No file is replaced: where a name is taken, both get the next free number.

    Raises:
        BestiaryError: a folder cannot be written to.
    """
    loras, embeddings = Path(folder_paths.models_dir) / LORAS, Path(folder_paths.models_dir) / EMBEDDINGS
    wanted, number = checked_file_name(name, "the file name"), 1
    stem = wanted
    try:
        loras.mkdir(parents=True, exist_ok=True)
        embeddings.mkdir(parents=True, exist_ok=True)
        # Windows and macOS know no capital letters
        taken = {path.name.casefold() for folder in (loras, embeddings) for path in folder.iterdir()}
    except OSError as fault:
        raise BestiaryError(
            f"cannot write {shown_name(name)} into {loras}: {fault.strerror or fault}; free the disk or check who may write"
        ) from fault
    while {f"{stem}{SUFFIX}".casefold(), f"{stem}{IDENTIFIER_ENDING}{SUFFIX}".casefold()} & taken:
        number += 1
        stem = f"{wanted}_{number}"
    save_adapter(adapter, loras / f"{stem}{SUFFIX}", embeddings)
    return f"{stem}{SUFFIX}"
