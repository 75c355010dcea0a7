"""One DreamBooth micro-step: ours against diffusers' script, and on the demo model against our own training of parts.

Both work on the same random weights (a fifth of Stable Diffusion 1.5's width), one picture of the thing and one of its class, with
equal adapters and random numbers; times are process time on one thread, in pairs, and peak bytes are those of all new tensors. Then
both adapters are saved and loaded by diffusers' loader into a fresh UNet.

    python benchmarks/bench_dreambooth_step.py [--resolution 256] [--pairs 3]
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bestiary.concepts.denoiser.denoiser import EncoderLayout
from bestiary.concepts.denoiser.low_rank import LoraSpec
from bestiary.trainer.exchange.export_dreambooth import DIFFUSERS_FILE, export_adapter
from bestiary.trainer.learning.dreambooth.dreambooth_objective import (
    CLASS,
    INSTANCE,
    DreamBoothBatch,
    DreamBoothObjective,
)
from bestiary.trainer.learning.dreambooth.dreambooth_settings import load_dreambooth_recipe
from bestiary.trainer.learning.dreambooth.dreambooth_setup import DreamBoothAdapter, save_adapter, set_up_dreambooth
from bestiary.trainer.learning.parts.objective_setup import set_up_parts
from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.learning.parts.training_kinds import TrainingKinds
from bestiary.trainer.learning.pictures.latent_cache import LatentCache
from bestiary.trainer.learning.run.training import Training
from bestiary.trainer.model.backbones import load_denoiser
from bestiary.trainer.model.diffusers_denoiser import DiffusersDenoiser
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from memory_meter import MemoryMeter
from peft.utils import get_peft_model_state_dict
from reference.dreambooth_step import DreamBoothReference, DreamBoothRows
from torch import Tensor, nn
from training_case import END, NARROW, SCHEDULE, START, _our_denoiser, clip_text_model, sd15_unet, sd15_vae

RANK = 4
PARTS = ("head", "body", "wing", "tail", "legs")


@dataclass
class Case:
    """Both steps over the same weights."""

    reference: DreamBoothReference
    rows: DreamBoothRows
    objective: DreamBoothObjective
    batch: DreamBoothBatch
    denoiser: DiffusersDenoiser
    bare: UNet2DConditionModel
    """The UNet before anything was added."""

    def theirs(self) -> Tensor:
        """Forward and backward; the loss."""
        return _step(self.reference.loss(self.rows), self.reference.parameters().values())

    def ours(self) -> Tensor:
        """Forward and backward; the loss."""
        return _step(self.objective(self.batch).total, self.objective.parameters())


def build_case(resolution: int) -> Case:
    """Random weights, two pictures `(2, 3, H, W)`, and adapters that are equal in both."""
    torch.manual_seed(0)
    unet = sd15_unet(NARROW["unet_channels"], resolution).eval().requires_grad_(False)
    vae = sd15_vae(NARROW["vae_channels"]).eval().requires_grad_(False)
    text = clip_text_model(2).eval().requires_grad_(False)
    bare, theirs = copy.deepcopy(unet), copy.deepcopy(unet)
    denoiser = _our_denoiser(unet, vae, text)
    adapters = dict(denoiser.network.adapters.add(LoraSpec(RANK, float(RANK))))
    for parameter in adapters.values():
        parameter.data.normal_(std=0.05)
    reference = DreamBoothReference(theirs, vae, text, DDPMScheduler(**SCHEDULE), RANK)
    _copy_adapters(reference, denoiser)
    rows = _rows(resolution)
    objective = DreamBoothObjective(denoiser, adapters)
    return Case(reference, rows, objective, _batch(rows, vae), denoiser, bare)


def _rows(resolution: int) -> DreamBoothRows:
    edge = resolution // 8
    ids = torch.full((2, 77), END)
    ids[:, 0], ids[0, 1:5], ids[1, 1:4] = START, torch.tensor([320, 1125, 48136, 1929]), torch.tensor([320, 1125, 1929])
    noise = torch.randn(2, 2, 4, edge, edge)
    return DreamBoothRows(
        torch.rand(2, 3, resolution, resolution) * 2 - 1, ids, noise[0], noise[1], torch.randint(0, 1000, (2,))
    )


def _batch(rows: DreamBoothRows, vae: nn.Module) -> DreamBoothBatch:
    """The same step as our cache would hand it over: moments are known."""
    with torch.no_grad():
        posterior = vae.encode(rows.pixels).latent_dist
    told = [
        {"clip_l": EncoderLayout(row[None], torch.zeros(0, dtype=torch.long), torch.ones(1, 77))} for row in rows.ids
    ]
    return DreamBoothBatch(
        names=("thing", "class"),
        moments=torch.stack([posterior.mean, posterior.logvar], dim=1),
        noise=torch.stack([rows.posterior_noise, rows.noise], dim=1),
        times=(rows.timesteps + 1) / 1000,
        texts=(INSTANCE, CLASS),
        prompts=(told[0], told[1], told[1]),
        of_class=torch.tensor([False, True]),
    )


def _copy_adapters(reference: DreamBoothReference, denoiser: DiffusersDenoiser) -> None:
    """Gives the reference our adapters, layer by layer."""
    for name, update in denoiser.network.adapters.trained().items():
        layer = reference.unet.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(update.down.data)
        layer.lora_B["default"].weight.data.copy_(update.up.data)


def reloaded(case: Case, folder: Path) -> dict[str, list[int]]:
    """Of our adapters at alpha 2 x rank and of theirs: how many change a fresh UNet as they should, of how many."""
    trained = case.denoiser.network.adapters.trained()
    tensors = case.denoiser.network.adapters.tensors()
    # alpha other than rank, which the script cannot have
    doubled = {name: tensor * 2 if name.endswith(".alpha") else tensor for name, tensor in tensors.items()}
    notes = {"rank": RANK, "alpha": 2.0 * RANK, "backbone": "sd15"}
    save_adapter(DreamBoothAdapter(doubled, {}, notes), folder / "ours.safetensors")
    export_adapter(folder / "ours.safetensors", folder)
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(case.reference.unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=state, weight_name="theirs.safetensors")
    counts = {}
    for name, file, scale in (("ours", DIFFUSERS_FILE, 2.0), ("theirs", "theirs.safetensors", 1.0)):
        unet = copy.deepcopy(case.bare)
        told, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
            folder, weight_name=file, return_lora_metadata=True
        )
        StableDiffusionPipeline.load_lora_into_unet(told, alphas, unet, metadata=metadata)
        unet.fuse_lora()
        right = 0
        for layer, update in trained.items():
            wanted = case.bare.get_submodule(layer).weight + scale * update.scale * update.up @ update.down
            found = unet.get_submodule(layer)
            right += bool(torch.allclose(getattr(found, "base_layer", found).weight, wanted, atol=1e-5))
        counts[name] = [right, len(trained)]
    return counts


def demo_steps(pairs: int, rows: int) -> dict[str, object]:
    """Seconds of micro-steps of equally many rows on the demo model: parts without attention loss, and DreamBooth."""
    moments = np.random.default_rng(0).standard_normal((8, 1, 2, 8, 16, 16)).astype(np.float16)
    names = tuple(f"{n}.png" for n in range(8))
    parts = _part_training(moments, names, rows)
    trainings = {
        "dreambooth": _dreambooth(moments, names, rows, "off"),
        "with_class": _dreambooth(moments, names, rows // 2, "pictures"),
    }
    result: dict[str, object] = {"rows": rows}
    for name, training in trainings.items():
        ours, theirs = _stepper(training), _stepper(parts)
        ours(), theirs()
        timed = [(seconds(theirs), seconds(ours)) for _ in range(pairs)]
        result[f"seconds_parts_{name}"] = [[round(value, 4) for value in pair] for pair in timed]
        result[f"parts_over_{name}"] = round(statistics.median(one / other for one, other in timed), 3)
    return result


def _part_training(moments: np.ndarray, names: Sequence[str], rows: int) -> Training:
    kinds = TrainingKinds(
        PARTS,
        tuple({0: "one"} for _ in PARTS),
        None,
        np.zeros((8, 16, 16), np.uint8),
        np.zeros((8, len(PARTS)), np.int64),
        {},
    )
    values = {
        "attention_loss.weight": 0.0,
        "optimizer.batch_size": rows,
        "discovery.folder": Path("none"),
        "method.part_words": "",
    }
    return set_up_parts(
        load_recipe("demo", values), load_denoiser("demo", device="cpu"), names, kinds, LatentCache(moments)
    )


def _dreambooth(moments: np.ndarray, names: Sequence[str], rows: int, prior: str) -> Training:
    settings = load_dreambooth_recipe("dreambooth_demo", {"method.prior": prior, "optimizer.batch_size": rows})
    instances = 4 if prior == "pictures" else 8
    return set_up_dreambooth(settings, load_denoiser("demo", device="cpu"), names, instances, LatentCache(moments))


def _stepper(training: Training) -> Callable[[], object]:
    batch = training.batches.draw(0, 0)
    return lambda: _step(training.objective(batch).total, training.objective.parameters())


def _step(loss: Tensor, parameters: object) -> Tensor:
    loss.backward()
    for parameter in parameters:
        parameter.grad = None
    return loss.detach()


def seconds(step: Callable[[], object]) -> float:
    """Process CPU seconds of one call."""
    start = time.process_time()
    step()
    return time.process_time() - start


def peak_bytes(step: Callable[[], object], known: Sequence[object]) -> int:
    """Largest sum of new storages that live at once; tensors in `known` are not counted."""
    meter = MemoryMeter()
    meter.ignore(known)
    with meter:
        step()
    return meter.peak


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--demo-pairs", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    case = build_case(arguments.resolution)
    losses = float(case.theirs()), float(case.ours())  # also warms both up
    timed = [(seconds(case.theirs), seconds(case.ours)) for _ in range(arguments.pairs)]
    frozen = [case.reference.unet, case.reference.vae, case.reference.text, case.denoiser.unet]
    known = [list(module.state_dict().values()) for module in frozen]
    peaks = peak_bytes(case.theirs, known), peak_bytes(case.ours, known)
    with tempfile.TemporaryDirectory() as folder:
        alive = reloaded(case, Path(folder))
    report = {
        "loss_reference_ours": losses,
        "seconds_reference_ours": [[round(value, 3) for value in pair] for pair in timed],
        "time_ratio": round(statistics.median(theirs / ours for theirs, ours in timed), 3),
        "peak_bytes_reference_ours": peaks,
        "peak_ratio": round(peaks[0] / peaks[1], 3),
        "adapters_reloaded": alive,
        "demo": demo_steps(arguments.demo_pairs, 4),
    }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
