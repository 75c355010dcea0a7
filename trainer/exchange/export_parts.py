"""A part dictionary as files for other programs: one embedding per token, and the LoRA.

Of a transformer (SD3, Flux.1) the embeddings hold every text encoder, as ComfyUI takes them, and the LoRA diffusers' names.

What loads where was measured on ComfyUI 0.3.64 and diffusers 0.42, and read in AUTOMATIC1111's textual_inversion.py: a file
with the one tensor `emb_params` (n, width) loads in all three for models with one text encoder; for two encoders ComfyUI and
AUTOMATIC1111 take `clip_l` and `clip_g`, diffusers takes them encoder by encoder. Any further tensor breaks one of them.
"""

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...concepts.denoiser.backbone import get_backbone
from ...concepts.denoiser.lora_forms import TRANSFORMER_PREFIX
from ...concepts.denoiser.lora_names import LoraLayer, lora_layers, module_path
from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import write_text
from ...concepts.files.concept_file import read_tensors, write_tensors
from ...concepts.part_dictionary.part_dictionary import PartDictionary

EMBEDDINGS_FOLDER = "embeddings"
LORA_FILE = "parts_lora.safetensors"
GUIDE_FILE = "README.txt"
SINGLE_KEY = "emb_params"
T5 = "t5xxl"

_ARCHITECTURES = {
    "sd15": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sd3": "stable-diffusion-3",
    "flux": "flux-1-dev",
    "bestiary-demo": "bestiary-demo",
    "bestiary-demo-dit": "bestiary-demo-dit",
}
_BASE_VERSIONS = {"sd15": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_RESERVED_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
_LONGEST_NAME = 80


def export_dictionary(dictionary: PartDictionary, folder: Path) -> list[Path]:
    """Write every token as an embedding file, the LoRA as a kohya file, and a guide; each is loaded back and compared.

    Args:
        dictionary: what to export.
        folder: made if missing; files of the same names are replaced.

    Returns:
        All files written: embeddings in the order of the rows, then the LoRA if there is one, then the guide. Vectors that enter behind the text
        encoders are no embeddings: of them there is the guide alone.

    Raises:
        BestiaryError: a file cannot be written, or does not come back as it was.
    """
    folder = Path(folder)
    names = token_names(dictionary)
    written: list[Path] = []
    # a file per token: other programs know embeddings by their file's name
    for row, name in enumerate(names if dictionary.insertion == "input" else ()):
        path = folder / EMBEDDINGS_FOLDER / f"{name}.safetensors"
        tensors = {
            encoder: table[row : row + 1].float() for encoder, table in dictionary.embeddings.items()
        }  # (1, width)
        # with one encoder the name of the tensor does not matter to any of the three, but it must be alone
        if len(tensors) == 1:
            tensors = {SINGLE_KEY: next(iter(tensors.values()))}
        write_tensors(path, tensors, model_spec(dictionary.backbone, "textual-inversion", name))
        check_embedding(path, {name: table[row].unsqueeze(0) for name, table in dictionary.embeddings.items()})
        written.append(path)
    if dictionary.lora:
        written.append(_write_lora(dictionary, folder / LORA_FILE))
    guide = folder / GUIDE_FILE
    write_text(guide, _guide(dictionary, names))
    return [*written, guide]


def token_names(dictionary: PartDictionary) -> list[str]:
    """File name, without suffix, of every row: part and kind in plain letters, `head-blue-jay`; all different."""
    names: list[str] = []
    used: set[str] = set()
    for part, kind in dictionary.rows.tolist():
        number = str(kind + dictionary.id_base)
        name = f"{_plain(dictionary.part_names[part]) or part}-{_plain(dictionary.kind_label(part, kind)) or number}"
        name = name[:_LONGEST_NAME]
        # two kinds may differ in signs only; Windows keeps some names for itself
        if name in used or name in _RESERVED_NAMES:
            name = f"{name}-{part}-{number}"
        while name in used:
            name += "x"
        used.add(name)
        names.append(name)
    return names


def _plain(text: str) -> str:
    """Lower-case ASCII letters and digits joined by hyphens; empty if nothing of the text is left."""
    # accents are taken off, other scripts fall away and leave the number
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")


def embedding_for_comfyui(tensors: Mapping[str, Tensor], encoder: str) -> Tensor:
    """What ComfyUI takes, `(n, width)`, for one text encoder (comfy/sd1_clip.py, load_embed): its key, else the first tensor."""
    return tensors[encoder] if encoder in tensors else next(iter(tensors.values()))


def embedding_for_a1111(tensors: Mapping[str, Tensor], encoder: str) -> Tensor:
    """What AUTOMATIC1111 takes, `(n, width)` (modules/textual_inversion/textual_inversion.py): both SDXL keys, else the only tensor.

    Raises:
        BestiaryError: it would refuse the file.
    """
    # two encoders: both keys must be there
    if "clip_g" in tensors and "clip_l" in tensors:
        return tensors[encoder]
    if len(tensors) != 1:
        raise BestiaryError(
            f"an embedding file with {sorted(tensors)} is refused by AUTOMATIC1111: one tensor is allowed"
        )
    return next(iter(tensors.values()))


def check_embedding(path: Path, vectors: Mapping[str, Tensor]) -> None:
    """Read a file back as ComfyUI and AUTOMATIC1111 would and compare with vectors `(n, width)` by text encoder.

    Raises:
        BestiaryError: they differ.
    """
    # exact: embeddings are written in float32
    loaded = read_tensors(path)
    # AUTOMATIC1111 has no models with T5
    readers = (embedding_for_comfyui,) if T5 in vectors else (embedding_for_comfyui, embedding_for_a1111)
    for encoder, vector in vectors.items():
        for take in readers:
            if not torch.equal(take(loaded, encoder), vector.float()):
                raise BestiaryError(
                    f"{path} reads back differently from what was written: check the disk and export again"
                )


def _write_lora(dictionary: PartDictionary, path: Path) -> Path:
    """The LoRA in half precision under kohya names, down `(r, in)`, up `(out, r)`, every layer with its alpha.

    A transformer's has diffusers' names, under which ComfyUI knows its layers too.
    """
    prefix = get_backbone(dictionary.backbone).lora_prefix
    layers = lora_layers(dictionary.lora, prefix)
    tensors: dict[str, Tensor] = {}
    for module, layer in layers.items():
        tensors |= _transformer_layer(module, layer) if prefix == TRANSFORMER_PREFIX else _kohya_layer(module, layer)
    # half precision ends at 65,504
    lost = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if lost:
        raise BestiaryError(f"{lost[0]} does not fit half precision; the training has diverged")
    # kohya's own fields, from which other programs show rank and base model
    ranks = {layer.down.shape[0] for layer in layers.values()}
    metadata = {
        **model_spec(dictionary.backbone, "lora", "Bestiary parts"),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(ranks)) if len(ranks) == 1 else "Dynamic",
        "ss_base_model_version": _BASE_VERSIONS.get(dictionary.backbone, dictionary.backbone),
    }
    write_tensors(path, tensors, metadata)
    loaded = read_tensors(path)
    if loaded.keys() != tensors.keys() or not all(torch.equal(loaded[name], tensors[name]) for name in tensors):
        raise BestiaryError(f"{path} reads back differently from what was written: check the disk and export again")
    return path


def _kohya_layer(module: str, layer: LoraLayer) -> dict[str, Tensor]:
    """Down `(r, in)` and up `(out, r)` under kohya names."""
    # an alpha is always written: some programs take a missing one for 1, others for the rank
    alpha = torch.tensor(layer.scale * layer.down.shape[0])
    return {
        f"{module}.lora_down.weight": layer.down.half(),
        f"{module}.lora_up.weight": layer.up.half(),
        f"{module}.alpha": alpha,
    }


def _transformer_layer(module: str, layer: LoraLayer) -> dict[str, Tensor]:
    """Down `(r, in)` and up `(out, r)` under diffusers' names.

    The scale goes into the up matrix and alpha is the rank, since diffusers' loader reads no alphas of SD3.
    """
    stem = f"transformer.{module_path(module)}"
    return {
        f"{stem}.lora_A.weight": layer.down.half(),
        f"{stem}.lora_B.weight": (layer.up.float() * layer.scale).half(),
        f"{stem}.alpha": torch.tensor(float(layer.down.shape[0])),
    }


def model_spec(backbone: str, kind: str, title: str) -> dict[str, str]:
    """ModelSpec 1.0.0 metadata (kohya-ss/sd-scripts, library/sai_model_spec.py)."""
    size = get_backbone(backbone).image_size
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{_ARCHITECTURES[backbone]}/{kind}",
        "modelspec.implementation": "https://github.com/bestiary/ComfyUI-Bestiary",
        "modelspec.title": title,
        "modelspec.resolution": f"{size}x{size}",
    }


def _guide(dictionary: PartDictionary, names: list[str]) -> str:
    """How to use the files, and which file is which kind."""
    if dictionary.insertion == "output":
        lora = [f"{LORA_FILE} was trained together with the tokens."] if dictionary.lora else []
        text = "These part tokens enter behind the text encoders, where only Bestiary's own nodes and commands put them: there are no embeddings."
        return "\n".join([f"Part tokens for {dictionary.backbone}.", "", text, *lora]) + "\n"
    lines = [
        f"Part tokens for {dictionary.backbone}.",
        "",
        f"ComfyUI: copy {EMBEDDINGS_FOLDER}/ into models/embeddings, write embedding:{names[0]} in a prompt.",
    ]
    is_transformer = get_backbone(dictionary.backbone).lora_prefix == TRANSFORMER_PREFIX
    if not is_transformer:
        lines.append(f"AUTOMATIC1111: copy {EMBEDDINGS_FOLDER}/ into embeddings, write {names[0]} in a prompt.")
        lines += _diffusers_lines(list(dictionary.embeddings), names[0])
    if dictionary.lora and is_transformer:
        lines.append(
            f"{LORA_FILE} (diffusers' names) was trained together with the tokens: load it at strength 1 in ComfyUI (Load LoRA) and in diffusers "
            f'(pipe.load_lora_weights("{LORA_FILE}")).'
        )
    elif dictionary.lora:
        lines.append(
            f"{LORA_FILE} (kohya names) was trained together with the tokens: load it at strength 1 in all of them."
        )
    lines += ["", "file, part, kind"]
    for (part, kind), name in zip(dictionary.rows.tolist(), names, strict=True):
        label = " ".join(dictionary.kind_label(part, kind).split())
        lines.append(f"{name}, {' '.join(dictionary.part_names[part].split())}, {label}")
    return "\n".join(lines) + "\n"


def _diffusers_lines(encoders: list[str], name: str) -> list[str]:
    path = f"{EMBEDDINGS_FOLDER}/{name}.safetensors"
    if len(encoders) == 1:
        return [f'diffusers: pipe.load_textual_inversion("{path}", token="<{name}>")']
    # diffusers takes one encoder at a time
    calls = [
        f'pipe.load_textual_inversion(t["{encoder}"], token="<{name}>", text_encoder=pipe.text_encoder{end}, '
        f"tokenizer=pipe.tokenizer{end})"
        for encoder, end in zip(encoders, ("", "_2"), strict=True)
    ]
    return [f'diffusers: t = safetensors.torch.load_file("{path}")', *(f"  {call}" for call in calls)]
