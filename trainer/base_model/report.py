"""Measures a trained base model and writes its model card: `python -m bestiary.trainer.base_model.report --model FOLDER`."""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from ...concepts.files.atomic_file import write_text
from ...demo.attribute_judge import AttributeJudge, AttributeScores
from ...demo.captions import caption_of
from ...demo.creatures import draw_creature
from ...demo.species import HELD_OUT_SPECIES, Species, random_scene, random_species
from .autoencoder import reconstruction_psnr, to_tensor
from .denoiser import predict, sample_pictures, save_sheet
from .denoiser_shapes import ShapeName
from .model_parts import BaseModel, encode, encode_captions, load_base_model
from .train_base import TrainBaseSettings
from .train_judge import draw_lessons, judge_accuracy

logger = logging.getLogger(__name__)

SAMPLING_STEPS, GUIDANCE = 25, 3.0
"""Sampling settings of the judged pictures."""
FRESH_SEED = 90_210
"""Seed of the drawings that the report is measured on; never used for training drawings."""


@dataclass
class BaseModelFigures:
    """All measured figures of the model card."""

    pictures: int
    """Number of fresh drawings, and of generated pictures of each kind."""
    reconstruction_psnr: float
    """Mean dB over fresh drawings."""
    held_out_loss: float
    """Mean error of the prediction on fresh drawings with full captions; the UNet's is weighted by min-SNR."""
    generated: dict[str, dict[str, float]]
    """random / held_out -> attribute -> share of correct parts, by the judge."""
    drawings: dict[str, float]
    """The judge's accuracy on fresh drawings of the same kind: the upper bound."""
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    """part -> attribute -> share of correct parts, on the random captions."""


def fresh_drawings(count: int, seed: int = FRESH_SEED) -> tuple[Tensor, list[str]]:
    """Drawings never trained on -> images (N, 3, 128, 128) in -1..1 and their full captions."""
    rng = np.random.default_rng(seed)
    drawings = [draw_creature(random_species(rng), rng) for _ in range(count)]
    return to_tensor(np.stack([d.image for d in drawings])), [d.caption for d in drawings]


def latent_scale_of(model: BaseModel) -> float:
    """The scaling factor to unit standard deviation stored in the autoencoder's configuration."""
    return float(model.autoencoder.config["scaling_factor"])


@torch.no_grad()
def held_out_loss(model: BaseModel, images: Tensor, captions: list[str], *, seed: int = 0) -> float:
    """Weighted error of the prediction at 8 times spread over the process; images (N, 3, 128, 128) in -1..1."""
    scale, shape = latent_scale_of(model), model.shape
    # in portions: the autoencoder's activations of all pictures at once would fill the memory
    latents = torch.cat([encode(model.autoencoder, some) for some in images.split(32)]) * scale
    ids = encode_captions(model.tokenizer, captions)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    # a fixed seed: every measured model sees the same noise at every time
    for time_ in shape.measured_times():
        noise = torch.randn(latents.shape, generator=generator)
        times = time_.repeat(len(latents))  # (N,)
        noisy = shape.noised(latents, noise, times)
        pairs = zip(noisy.split(64), times.split(64), ids.split(64), strict=True)
        predicted = torch.cat([predict(model, *some) for some in pairs])  # (N, C, 16, 16)
        error = (predicted - shape.target(latents, noise)).square().mean()
        losses.append(float(error * shape.weights(time_, plain=True)))
    return float(np.mean(losses))


def generated_scores(
    model: BaseModel, judge: AttributeJudge, species: list[Species], *, steps: int, guidance: float, seed: int
) -> tuple[AttributeScores, np.ndarray]:
    """Pictures generated from the full captions of `species`, and the judge's share of correct attributes."""
    rng = np.random.default_rng(seed)
    captions = [caption_of(kind, random_scene(rng)) for kind in species]
    scale = latent_scale_of(model)
    pictures = sample_pictures(model, captions, scale, steps=steps, guidance=guidance, seed=seed)  # (N, 128, 128, 3)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255  # (N, 3, 128, 128)
    return judge.score_against_species(images, species), pictures


def measure_base_model(
    folder: Path, judge: AttributeJudge, *, pictures: int = 200, steps: int = SAMPLING_STEPS, guidance: float = GUIDANCE
) -> tuple[BaseModelFigures, np.ndarray]:
    """All figures of the model in `folder`, and the pictures generated for random captions (N, 128, 128, 3)."""
    model = load_base_model(folder)
    for module in (model.autoencoder, model.denoiser, model.text_encoder):
        module.eval().requires_grad_(False)
    # on drawings unseen in training: reconstruction, then the denoiser's loss
    images, captions = fresh_drawings(pictures)
    psnr = float(np.mean([reconstruction_psnr(model.autoencoder, some) for some in images.split(25)]))
    loss = held_out_loss(model, images, captions)
    # on generated pictures: random looks, then pairs of shape and pattern that were held out
    rng = np.random.default_rng(FRESH_SEED + 1)
    species = [random_species(rng) for _ in range(pictures)]
    free, shown = generated_scores(model, judge, species, steps=steps, guidance=guidance, seed=FRESH_SEED + 2)
    rare = [HELD_OUT_SPECIES[i % len(HELD_OUT_SPECIES)] for i in range(pictures)]
    held, _ = generated_scores(model, judge, rare, steps=steps, guidance=guidance, seed=FRESH_SEED + 3)
    figures = BaseModelFigures(
        pictures=pictures,
        reconstruction_psnr=round(psnr, 2),
        held_out_loss=round(loss, 4),
        generated={"random": _shares(free), "held_out": _shares(held)},
        drawings=judge_accuracy(judge, draw_lessons(5 * pictures, FRESH_SEED)),
        parts={part: {k: round(v, 3) for k, v in shares.items()} for part, shares in free.by_part.items()},
    )
    return figures, shown


def _shares(scores: AttributeScores) -> dict[str, float]:
    return {name: round(getattr(scores, name), 3) for name in ("color", "pattern", "shape", "all_three")}


class StageFacts(TypedDict):
    """Length of a training stage."""

    step: int
    minutes: float


class _EveryRun(TypedDict):
    settings: TrainBaseSettings
    history: list[str]
    hardware: str


class TrainingFacts(_EveryRun, total=False):
    """Facts about a training for the model card; unfinished stages are missing."""

    autoencoder: StageFacts
    export: StageFacts


def training_facts(work: Path) -> TrainingFacts:
    """Settings, steps and seconds of the run in the folder `work`, and its notes in history.md, if any."""
    lines = [json.loads(line) for line in (work / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    started = [line for line in lines if line["stage"] == "start"]
    history = work / "history.md"
    facts: TrainingFacts = {
        "settings": TrainBaseSettings.model_validate_json((work / "settings.json").read_text(encoding="utf-8")),
        "history": [*history.read_text(encoding="utf-8").splitlines(), ""] if history.exists() else [],
        "hardware": started[-1]["hardware"] if started else "not recorded",
    }
    if autoencoder := _stage_facts(lines, "autoencoder", "psnr"):
        facts["autoencoder"] = autoencoder
    if export := _stage_facts(lines, "export", "bytes"):
        facts["export"] = export
    return facts


def _stage_facts(lines: list[dict[str, Any]], stage: str, mark: str) -> StageFacts | None:
    """Steps and time of a stage, from its last log line with the entry `mark`."""
    timed = [line for line in lines if line["stage"] == stage and mark in line]
    return {"step": timed[-1]["step"], "minutes": round(timed[-1]["seconds"] / 60, 1)} if timed else None


@dataclass(frozen=True)
class CardTexts:
    """What the card of one shape says besides figures."""

    opening: tuple[str, ...]
    loading: str
    command: str
    loss: str
    sampler: str
    limits: tuple[str, ...]


_PURPOSE = (
    "from captions such as `a photo of a creature with red striped crested head , blue plain slim body , in a meadow`.",
    "It exists to try, teach and test the methods of this package where there is no GPU and no network.",
    "",
)
CARDS: dict[ShapeName, CardTexts] = {
    "unet": CardTexts(
        opening=(
            "# Bestiary's miniature base model",
            "",
            "A latent diffusion model in the topology of Stable Diffusion 1.5, small enough for a CPU, that draws creatures",
            *_PURPOSE,
            "- Autoencoder: `AutoencoderTiny` (the layout of TAESD), factor 8, 8 latent channels.",
            "- Denoiser: three levels with cross-attention at 16x16, 8x8 and 4x4; epsilon prediction.",
            "- Text encoder: CLIP text model, 128 wide, 3 layers, over a closed vocabulary of words (`demo/captions.py`).",
        ),
        loading="Loads with `StableDiffusionPipeline.from_pretrained`, 128x128 px.",
        command="`bestiary demo train-base --out FOLDER` from random weights, on drawings made by `demo/creatures.py` alone.",
        loss="min-SNR-weighted epsilon loss",
        sampler="DDIM",
        limits=(
            "Shapes are followed least, those of heads hardly; head and tail change places at times. The loss was still falling.",
        ),
    ),
    "dit": CardTexts(
        opening=(
            "# Bestiary's miniature diffusion transformer",
            "",
            "A latent diffusion model of the class of Stable Diffusion 3, small enough for a CPU, that draws creatures",
            *_PURPOSE,
            "- Autoencoder and tokenizer: those of the UNet miniature (`demo/base_model`), not stored again.",
            "- Denoiser: `SD3Transformer2DModel`, 6 blocks of joint attention with 3 heads, patch 2, 64 image tokens at 128x128 px; flow,",
            "  shift 3.",
            "- Text encoder: CLIP text model with projection, 128 wide, 3 layers; context and pooled vector. Its weights began as those of the",
            "  UNet miniature's, so that captions are read from the first step, and were trained with the denoiser.",
        ),
        loading="Loads as `demo-dit` in every command and in the node Demo Model (`shape` dit), 128x128 px.",
        command="`bestiary demo train-base --shape dit --out FOLDER`, the transformer from random weights, on drawings made by `demo/creatures.py` alone.",
        loss="flow loss (mean over eight times)",
        sampler="Euler",
        limits=("Its attention maps are 8x8. The loss was still falling.",),
    ),
}
"""Shape -> what its card says."""


def model_card(figures: BaseModelFigures, facts: TrainingFacts, size: int) -> str:
    """Text of the model card."""
    settings = facts["settings"]
    unknown: dict[str, None] = {"step": None, "minutes": None}
    vae, denoiser = facts.get("autoencoder", unknown), facts.get("export", unknown)
    rows = [
        f"| {name} | {figures.generated['random'][key]:.3f} | {figures.generated['held_out'][key]:.3f} | {chance} | {reach} |"
        for name, key, chance, reach in (
            ("colours", "color", "0.100", f"{figures.drawings['color']:.3f}"),
            ("patterns", "pattern", "0.200", f"{figures.drawings['pattern']:.3f}"),
            ("shapes", "shape", "0.200", f"{figures.drawings['shape']:.3f}"),
            ("all three at once", "all_three", "0.004", "-"),
        )
    ]
    aims = [
        f"Aim for {name}: {aim}, {'reached' if figures.generated['random'][key] >= aim else 'missed'}."
        for name, key, aim in (("colours", "color", 0.9), ("patterns", "pattern", 0.8))
    ]
    parts = [
        f"| {part} | {s['color']:.3f} | {s['pattern']:.3f} | {s['shape']:.3f} |" for part, s in figures.parts.items()
    ]
    texts = CARDS[settings.shape]
    rates = f"learning rate {settings.denoiser_learning_rate:g}, falling"
    if settings.shape == "unet":
        rates = (
            f"learning rates {settings.vae_learning_rate:g} and {settings.denoiser_learning_rate:g}, the latter falling"
        )
    return "\n".join([
        *texts.opening,
        f"- fp16 safetensors, {size / 1e6:.2f} MB in all files. {texts.loading}",
        "",
        "## How it was trained",
        "",
        texts.command,
        "",
        f"- seed {settings.seed}; drawings of random looks, none with a held-out (shape, pattern) of a part",
        *([] if settings.shape == "dit" else [
            f"- autoencoder: {vae['step']} steps of {settings.vae_batch} crops of 64 px from {settings.pictures} drawings, "
            f"{vae['minutes']} minutes",
        ]),
        f"- denoiser and text encoder: {denoiser['step']} steps of {settings.denoiser_batch} on the first "
        f"{settings.latent_pictures} drawings, {denoiser['minutes']} minutes",
        "- the loss counts small parts as much as large ones, and some captions hold a part's words merged into one vector,",
        "  as learned tokens are (`trainer/base_model/denoiser.py`, `trainer/base_model/caption_reading.py`)",
        f"- {rates} over the last {100 * (1 - settings.decay_from):.0f} % of {settings.denoiser_steps} steps; "
        f"moving average {settings.ema_decay:g}",
        f"- hardware: {facts['hardware']}; other programs ran beside the training",
        "",
        *facts["history"],
        "## Measured",
        "",
        f"- reconstruction of {figures.pictures} fresh drawings: {figures.reconstruction_psnr:.2f} dB PSNR",
        f"- {texts.loss} on fresh drawings with full captions: {figures.held_out_loss:.4f}",
        f"- attributes of {figures.pictures} generated pictures of each kind against their captions ({SAMPLING_STEPS} {texts.sampler} steps,",
        f"  guidance {GUIDANCE:g}), as the judge of `demo/attribute_judge.py` sees them; the last column is the judge's",
        "  own accuracy on the visible parts of fresh drawings:",
        "",
        "| share right | random captions | held-out species | by chance | judge on drawings |",
        "|---|---|---|---|---|",
        *rows,
        "",
        *aims,
        "",
        "| part, random captions | colours | patterns | shapes |",
        "|---|---|---|---|",
        *parts,
        "",
        "Measure again: `python -m bestiary.trainer.base_model.report --model FOLDER --work FOLDER.work`.",
        "",
        "## Limits",
        "",
        *texts.limits,
        "It knows drawn creatures in eight places and nothing else; words outside its vocabulary read as unknown.",
        "Parts hidden behind others or cut off by the picture's edge count as wrong when the judge cannot see them.",
        "Its latents have 8 channels, so it needs this pipeline or the loader node, not a stock checkpoint loader.",
        "",
    ])  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measures, writes README.md and figures.json beside the weights, and a sheet of pictures into the work folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=200)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    started = time.monotonic()
    figures, pictures = measure_base_model(
        given.model, AttributeJudge.load(), pictures=given.pictures, steps=SAMPLING_STEPS
    )
    # the model card states the size of the files beside it
    size = sum(path.stat().st_size for path in given.model.rglob("*.*") if path.name != "README.md")
    write_text(given.model / "README.md", model_card(figures, training_facts(given.work), size))
    write_text(given.work / "figures.json", json.dumps(asdict(figures), indent=2) + "\n")
    save_sheet(pictures[:40], 8, given.work / "report.png")
    logger.info("%s in %.0f s", json.dumps(asdict(figures)), time.monotonic() - started)


if __name__ == "__main__":
    main()
