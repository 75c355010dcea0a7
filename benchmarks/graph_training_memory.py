"""Memory of a training in a graph against the standalone trainer: peak above the loaded model, same settings, same weights.

    COMFYUI_PATH=... python benchmarks/graph_training_memory.py [--learn parts|spectrum] [--model demo|sd15] [--width 64]
        [--size 256] [--batch 2]

Everything a training makes is counted while three steps of the shared loop run: adapters, vectors, optimizer, activations,
gradients, casts of weights (bytes of all storages alive at once, on fused attention, in float32). The demo model is the
embedded one; sd15 has Stable Diffusion 1.5's shape with random weights, --width 320 being its full size. "largest_loss_gap"
shows that both did the same work. Goal: a ratio of at most 1.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from bench_attention_capture import import_comfyui
from bestiary.concepts.denoiser.backbone import get_backbone
from bestiary.concepts.denoiser.process import DiscreteProcess
from bestiary.trainer.learning.parts.objective_setup import set_up_parts
from bestiary.trainer.learning.parts.settings import TrainPartsSettings, load_recipe
from bestiary.trainer.learning.parts.training_kinds import TrainingKinds
from bestiary.trainer.learning.pictures.latent_cache import LatentCache
from bestiary.trainer.learning.run.fit import fit
from bestiary.trainer.learning.run.run_folder import RunFolder
from bestiary.trainer.learning.run.run_settings import loop_settings
from bestiary.trainer.learning.spectrum.spectrum_objective_setup import set_up_spectrum
from bestiary.trainer.learning.spectrum.spectrum_settings import TrainSpectrumSettings, load_spectrum_recipe
from memory_meter import MemoryMeter
from torch import nn

STEPS, PICTURES, PARTS = 3, 8, 4
FILES = [f"{number}.png" for number in range(PICTURES)]
MIB = 2**20


def main() -> None:
    """Measure with and without recomputation and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learn", choices=("parts", "spectrum"), default="parts")
    parser.add_argument("--model", choices=("demo", "sd15"), default="demo")
    parser.add_argument("--width", type=int, default=64, help="channels of the first level of sd15")
    parser.add_argument("--size", type=int, default=None, help="edge of the pictures in pixels")
    parser.add_argument("--batch", type=int, default=2)
    options = parser.parse_args()
    size = options.size or {"demo": 128, "sd15": 256}[options.model]
    import_comfyui()
    # run folders are thrown away: only the figures count
    with tempfile.TemporaryDirectory() as place:
        figures = measure(options.learn, options.model, options.width, size, options.batch, Path(place))
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


def measure(learn: str, model: str, width: int, size: int, batch: int, place: Path) -> dict[str, object]:
    """Peaks in MiB of both, for activations kept and recomputed."""
    # one set of weights for both sides
    torch.manual_seed(0)
    reference = None if model == "demo" else sd15_modules(width)
    theirs = standalone_denoiser(reference)
    ours = graph_denoiser(reference)
    figures: dict[str, object] = {"learn": learn, "model": model, "size": size, "batch": batch, "steps": STEPS}
    figures["width"] = width if model == "sd15" else None
    # each side from fresh adapters or vectors, which come off again
    for recompute in (False, True):
        settings = training_settings(learn, size, batch, recompute)
        standalone, their_losses = peak_of_training(theirs, settings, place / f"standalone-{recompute}")
        with ours.training():
            graph, our_losses = peak_of_training(ours, settings, place / f"graph-{recompute}")
        figures["recomputed" if recompute else "kept"] = {
            "standalone_mib": round(standalone / MIB, 2),
            "graph_mib": round(graph / MIB, 2),
            "ratio": round(graph / standalone, 3),
            "largest_loss_gap": float(f"{np.abs(np.array(our_losses) - np.array(their_losses)).max():.2g}"),
        }
        theirs.network.set_gradient_checkpointing(False)
        theirs.network.adapters.unload()
        ours.network.adapters.unload()
    return figures


def training_settings(learn: str, size: int, batch: int, recompute: bool) -> TrainPartsSettings | TrainSpectrumSettings:
    """A short training, of parts with all losses on."""
    flags = {"images.size": size, "optimizer.steps": STEPS, "optimizer.batch_size": batch, "optimizer.accumulation": 1}
    flags |= {"base.checkpointing": recompute, "run.log_every": 1, "run.preview_every": 0, "run.tensorboard": False}
    return load_recipe(None, flags) if learn == "parts" else load_spectrum_recipe(None, flags)


def peak_of_training(
    denoiser: object, settings: TrainPartsSettings | TrainSpectrumSettings, folder: Path
) -> tuple[int, list[float]]:
    """Most bytes alive at once of what a whole training makes from moments `(N, 1, 2, C, h, w)`, and its losses."""
    backbone, rng = denoiser.backbone, np.random.default_rng(0)
    edge = settings.images.size // backbone.latent_factor
    moments = rng.standard_normal((PICTURES, 1, 2, backbone.latent_channels, edge, edge)).astype(np.float16)
    prepare = prepare_parts if isinstance(settings, TrainPartsSettings) else prepare_spectrum
    run = RunFolder.create(folder)
    # prompts without vectors are encoded before, so that neither side counts them
    denoiser.text.encode([denoiser.text.tokenize([], chunks=1)], None)
    with MemoryMeter() as meter:
        meter.ignore(
            [tensor for module in modules_of(denoiser) for tensor in (*module.parameters(), *module.buffers())]
        )
        objective, groups, batches = prepare(denoiser, settings, LatentCache(moments))
        fit(objective, groups, batches, loop_settings(settings.optimizer, settings.run, denoiser), run)
    return meter.peak, [record["loss"] for record in run.read_log()]


def prepare_parts(denoiser: object, settings: TrainPartsSettings, cache: LatentCache) -> tuple[object, ...]:
    """Objective, parameter groups and batches of a part training on random labels `(N, 8, 8)` and codes `(N, M)`."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, PARTS, (PICTURES, 8, 8)).astype(np.uint8)
    codes = rng.integers(0, 3, (PICTURES, PARTS))
    names = tuple(f"part{number}" for number in range(PARTS))
    kinds = TrainingKinds(names, ({},) * PARTS, PARTS - 1, labels, codes, {})
    training = set_up_parts(settings, denoiser, FILES, kinds, cache)
    return training.objective, training.groups, training.batches


def prepare_spectrum(denoiser: object, settings: TrainSpectrumSettings, cache: LatentCache) -> tuple[object, ...]:
    """The same of a spectrum training."""
    training = set_up_spectrum(settings, denoiser, FILES, cache)
    return training.objective, training.groups, training.batches


def modules_of(denoiser: object) -> list[nn.Module]:
    """The loaded model: denoiser and text encoders."""
    if hasattr(denoiser, "unet"):
        return [denoiser.unet, *denoiser.text.models.values()]
    return [denoiser._unet, denoiser._clip.cond_stage_model]


def sd15_modules(width: int) -> SimpleNamespace:
    """A UNet of SD1.5's shape and its text encoder, random weights, from diffusers and transformers."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=(width, 2 * width, 4 * width, 4 * width), cross_attention_dim=768
    )
    config = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, bos_token_id=49406, eos_token_id=49407
    )  # fmt: skip
    return SimpleNamespace(unet=unet.eval(), text=CLIPTextModel(config).eval())


def standalone_denoiser(reference: SimpleNamespace | None) -> object:
    """The denoiser of the command line."""
    from bestiary.trainer.model.backbones import load_denoiser
    from bestiary.trainer.model.diffusers_denoiser import DenoiserParts, DiffusersDenoiser
    from bestiary.trainer.model.text_conditioning import TextEncoders

    if reference is None:
        return load_denoiser("demo", device="cpu", dtype="fp32")
    import comfy.sd1_clip
    from diffusers import AutoencoderKL, DDIMScheduler
    from transformers import CLIPTokenizer

    # the tokenizer that comes with ComfyUI, since nothing is downloaded
    words = CLIPTokenizer.from_pretrained(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer")
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    backbone = get_backbone("sd15")
    text = TextEncoders(backbone, {"clip_l": words}, {"clip_l": reference.text})
    schedule = DiscreteProcess(scheduler.alphas_cumprod, "epsilon")
    parts = DenoiserParts(
        reference.unet, AutoencoderKL(), text, schedule, dict(scheduler.config), memory_format=torch.contiguous_format
    )
    denoiser = DiffusersDenoiser(backbone, parts)
    # latents are given: no autoencoder takes part on either side
    denoiser.drop_autoencoder()
    return denoiser


def graph_denoiser(reference: SimpleNamespace | None) -> object:
    """The denoiser of the graph, with the same weights in ComfyUI's classes."""
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    if reference is None:
        from bestiary.nodes.demo.demo_model import load_demo_model

        return ComfyDenoiser(*load_demo_model())
    import comfy.sd
    import comfy.utils
    from bench_attention_capture import build_model

    model = build_model(reference.unet.config.block_out_channels[0])
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    # the same numbers under ComfyUI's names
    weights = {names[name]: tensor for name, tensor in reference.unet.state_dict().items()}
    model.model.diffusion_model.load_state_dict(weights)
    # the text encoder, again with the same numbers
    target = model.model.model_config.clip_target()
    clip = comfy.sd.CLIP(target, embedding_directory=[], model_options={"dtype": torch.float32})
    own = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in reference.text.state_dict().items()}
    clip.cond_stage_model.clip_l.transformer.load_state_dict(own, strict=False)
    return ComfyDenoiser(model, clip)


if __name__ == "__main__":
    main()
