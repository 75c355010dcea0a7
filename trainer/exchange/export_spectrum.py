"""A prompt spectrum as plain textual inversion for ComfyUI, AUTOMATIC1111 and diffusers: its mean, and every stage by itself.

Formats and what loads where: export_parts.py. A mean over stages is what these programs can use as it is; a stage's own file
serves those that change prompts on the way, such as `[name-stage-01:name-stage-02:0.1]`.
"""

import re
import unicodedata
from pathlib import Path

from torch import Tensor

from ...concepts.files.atomic_file import write_text
from ...concepts.files.concept_file import write_tensors
from ...concepts.files.concept_names import RESERVED_NAMES
from ...concepts.spectrum.prompt_spectrum import PromptSpectrum
from .export_parts import (
    EMBEDDINGS_FOLDER,
    GUIDE_FILE,
    SINGLE_KEY,
    T5,
    check_embedding,
    model_spec,
)


def export_spectrum(spectrum: PromptSpectrum, folder: Path, name: str) -> list[Path]:
    """Write the mean as `name.safetensors`, each stage as `name-stage-NN.safetensors`, and a guide; each is read back.

    Args:
        spectrum: layers, where it has some, are averaged: none of these programs knows them.
        folder: made if missing; files of the same names are replaced.
        name: what prompts call it.

    Returns:
        All files written: the mean, the stages that have vectors, the guide.

    Raises:
        BestiaryError: a file cannot be written, or does not come back as it was.
    """
    folder, plain = Path(folder), _plain(name)
    written = [_write_embedding(folder / EMBEDDINGS_FOLDER, plain, spectrum.mean_embedding(), spectrum)]
    for stage in range(spectrum.stages):
        # stages of words have no vectors, and a single stage is the mean itself
        if stage in spectrum.words or not spectrum.count(stage) or spectrum.stages == 1:
            continue
        count = spectrum.count(stage)
        rows = {encoder: tensor[stage][..., :count, :] for encoder, tensor in spectrum.embeddings.items()}
        rows = {encoder: row if row.ndim == 2 else row.mean(0) for encoder, row in rows.items()}  # (n, W)
        written.append(_write_embedding(folder / EMBEDDINGS_FOLDER, f"{plain}-stage-{stage + 1:02d}", rows, spectrum))
    guide = folder / GUIDE_FILE
    write_text(guide, _guide(spectrum, plain))
    return [*written, guide]


def _write_embedding(folder: Path, name: str, tensors: dict[str, Tensor], spectrum: PromptSpectrum) -> Path:
    """One embedding `(n, W)` per text encoder in a file all three programs take."""
    path = folder / f"{name}.safetensors"
    tensors = {encoder: tensor.float().contiguous() for encoder, tensor in tensors.items()}
    stored = {SINGLE_KEY: next(iter(tensors.values()))} if len(tensors) == 1 else tensors
    write_tensors(path, stored, model_spec(spectrum.backbone, "textual-inversion", name))
    check_embedding(path, tensors)
    return path


def _plain(name: str) -> str:
    """The name as all three programs can type it: in small letters, with hyphens for spaces and signs; dots stay."""
    plain = re.sub(r"[^\w.]+|_+", "-", unicodedata.normalize("NFC", name).lower()).strip("-.") or "spectrum"
    # Windows keeps some names for devices
    return f"{plain}-spectrum" if plain.split(".")[0] in RESERVED_NAMES else plain


def _guide(spectrum: PromptSpectrum, name: str) -> str:
    shares = [f"{share:.4g}" for share in spectrum.bounds.fractions]
    lines = [
        f"A concept of {spectrum.stages} stages for {spectrum.backbone}, as plain embeddings.",
        "",
        f"ComfyUI: copy {EMBEDDINGS_FOLDER}/ into models/embeddings, write embedding:{name} in a prompt.",
        *([] if T5 in spectrum.embeddings else _other_programs(name)),
        "",
        f"{name} is the mean over all stages; {name}-stage-NN holds what was learned for one of them, in the order of generation.",
        f"Stages begin at these shares of the way: {', '.join(shares[:-1])}.",
    ]
    return "\n".join(lines) + "\n"


def _other_programs(name: str) -> list[str]:
    """How programs use it whose models have no T5."""
    return [
        f"AUTOMATIC1111: copy {EMBEDDINGS_FOLDER}/ into embeddings, write {name} in a prompt.",
        f'diffusers: pipe.load_textual_inversion("{EMBEDDINGS_FOLDER}/{name}.safetensors", token="<{name}>")',
    ]
