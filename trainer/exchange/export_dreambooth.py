"""A DreamBooth LoRA for diffusers: PEFT names, with the scale in the header, and read back by its reader's rules.

The run's own file has kohya names and alphas, which ComfyUI and AUTOMATIC1111 load. diffusers takes alpha for the rank unless the
header holds an adapter config under `lora_adapter_metadata` (huggingface/diffusers @ 58eb52c080, src/diffusers/loaders).
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from ...concepts.denoiser.lora_names import lora_layers, module_path
from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import write_text
from ...concepts.files.concept_file import PREFIX, read_header, read_tensors, write_tensors

DIFFUSERS_FILE, GUIDE_FILE = "diffusers_lora.safetensors", "README.txt"
_KEY = "lora_adapter_metadata"


def export_adapter(path: Path, folder: Path) -> list[Path]:
    """Write the LoRA file `path` for diffusers, and a guide, into `folder`.

    Raises:
        BestiaryError: a file cannot be written, or does not come back as it was.
    """
    layers = lora_layers(read_tensors(path))
    tensors: dict[str, Tensor] = {}
    for module, layer in layers.items():
        stem = f"unet.{module_path(module)}"
        tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = layer.down, layer.up
    ranks = {layer.down.shape[0] for layer in layers.values()}
    alphas = {layer.scale * layer.down.shape[0] for layer in layers.values()}
    if len(ranks) != 1 or len(alphas) != 1:
        raise BestiaryError(f"{path} has layers of different ranks or alphas: train it again")
    rank, alpha = ranks.pop(), alphas.pop()
    targets = sorted({_target(module_path(module)) for module in layers})
    config = {"r": rank, "lora_alpha": alpha, "target_modules": targets, "bias": "none", "peft_type": "LORA"}
    header = {_KEY: json.dumps({f"unet.{name}": value for name, value in config.items()}, sort_keys=True)}
    target, own = folder / DIFFUSERS_FILE, read_header(path)
    provenance = {name: text for name, text in own.metadata.items() if name.startswith(PREFIX)}
    write_tensors(target, tensors, {"format": "pt", **provenance, **header})
    _check(target, layers, alpha / rank)
    guide = folder / GUIDE_FILE
    write_text(guide, _guide(path, own.concept))
    return [target, guide]


def _target(path: str) -> str:
    """The end of a layer's path by which PEFT finds it, such as attn2.to_q, or add_k_proj where nothing but numbers stands above it."""
    parts = path.split(".")
    depth = 3 if parts[-1].isdigit() else 2
    depth -= parts[-depth].isdigit()
    return ".".join(parts[-depth:])


def _check(path: Path, layers: dict, scale: float) -> None:
    """Read back as diffusers does: `scale * B A` of every layer must be the update that was trained."""
    again = read_tensors(path)
    for module, layer in layers.items():
        stem = f"unet.{module_path(module)}"
        theirs = scale * again[f"{stem}.lora_B.weight"] @ again[f"{stem}.lora_A.weight"]
        if not torch.equal(theirs, layer.scale * layer.up @ layer.down):
            raise BestiaryError(f"{path} reads back differently at {stem}: check the disk and export again")


def _guide(path: Path, notes: dict) -> str:
    prompt = notes.get("instance_prompt", "the instance prompt")
    stage, loader = notes.get("stage"), "Load LoRA"
    if stage is not None:
        loader = f"Load LoRA (Model) behind Load DeepFloyd IF of stage {stage}"
    lines = [
        f"LoRA of a DreamBooth training for {notes.get('backbone', 'its base model')}.",
        "",
        f"ComfyUI: copy {path.name} into models/loras, {loader} at strength 1, and write in the prompt: {prompt}",
        f'diffusers: pipeline.load_lora_weights("{DIFFUSERS_FILE}")',
    ]
    if notes.get("variance_type"):
        lines += [
            "The variance that DeepFloyd IF predicts was not trained. In diffusers take another one:",
            f'pipeline.scheduler = pipeline.scheduler.from_config(pipeline.scheduler.config, variance_type="{notes["variance_type"]}")',
            "and write prompts in lower case, with clean_caption=False.",
        ]
    if "{}" in str(prompt):
        lines.append(
            f"{{}} is the learned identifier: copy {path.stem}_identifier.safetensors into models/embeddings and write "
            f"embedding:{path.stem}_identifier in its place."
        )
    return "\n".join(lines) + "\n"
