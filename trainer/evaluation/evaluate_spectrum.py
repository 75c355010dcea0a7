"""Judge a prompt spectrum: how well each stage predicts the noise of its own pictures, and on demand what CLIP sees.

The same noised pictures are given to the base model with the spectrum, with its mean (plain textual inversion), with the words it
started from, and with stages shuffled. A stage that has learned something beats the words; stages that differ beat the mean and the
shuffle. With a CLIP model also CLIP-I, CLIP-T and leakage (spectrum_likeness.py). Letters: S stages, V vectors of a stage, D width.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypedDict

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import write_text
from ...concepts.files.concept_names import name_of_file
from ...concepts.spectrum.prompt_spectrum import PromptSpectrum, check_spectrum_backbone
from ...concepts.spectrum.spectrum_file import load_spectrum
from ...concepts.spectrum.stage_mention import find_staged_mentions
from ...concepts.spectrum.stage_table import StageTable
from ...concepts.spectrum.staged_prompt import PromptSources, resolve_staged_prompt
from ..composing.compose import base_of
from ..composing.picture_making import SamplingChoice
from ..learning.pictures.image_files import read_image
from ..learning.spectrum.spectrum_settings import load_spectrum_recipe
from ..model.backbones import choose_device
from ..pages.pages import data_uri, figure, paragraph, section, strip, table, write_page
from ..training.train_spectrum import SpectrumTask
from ..training.training_setup import TrainingSetup, prepare
from .clip_judge import ClipJudge
from .spectrum_likeness import LikenessOrder, LikenessRecord, judge_likeness

ProgressReport = Callable[[int, int], None]


class EvaluateSpectrumSettings(BaseModel):
    """Settings of `bestiary evaluate spectrum`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    spectrum: Path
    """The spectrum file."""
    images: Path
    """A picture, or a folder of pictures, of the concept; best such that were not learned from."""
    base: str | None = None
    """Base model folder or `demo`; None takes the one the spectrum was trained on."""
    out: Path | None = None
    """Folder of the result; None makes one named after the spectrum."""
    count: int = Field(default=8, ge=1, le=1000)
    """Noised pictures for every stage."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of noise and timesteps, and of the first picture that CLIP judges."""
    clip: str | None = None
    """Folder of a CLIP model, or its name in the Hugging Face cache; None leaves out what CLIP sees."""
    prompts: tuple[str, ...] = ()
    """Prompts that CLIP judges, which call the spectrum by its file's name; none takes "a photo of a <name>"."""
    pictures: int = Field(default=8, ge=1, le=1000)
    """Pictures of each prompt, and of each stage alone, that CLIP judges."""
    steps: int = Field(default=50, ge=1, le=1000)
    """Denoising steps of these pictures."""
    guidance: float = Field(default=5.0, ge=0, le=100)
    """Guidance of these pictures."""
    size: int | None = Field(default=None, ge=64, le=2048, multiple_of=8)
    """Edge of these pictures and of the noised ones in pixels; None takes the model's own."""
    device: str = "auto"
    """Where to run."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision."""
    text_encoder: Path | None = None
    """SD3 and Flux.1: folder or safetensors file of the T5 encoder; None takes the model folder's own."""
    tokenizer: Path | None = None
    """Likewise folder of T5's tokenizer."""

    @field_validator("prompts")
    @classmethod
    def _prompts_are_judged(cls, prompts: tuple[str, ...], known: ValidationInfo) -> tuple[str, ...]:
        if prompts and not known.data.get("clip"):
            raise ValueError("prompts are judged by CLIP: give --clip a model too")
        return prompts


class ClipRecord(LikenessRecord):
    """What `evaluation.json` says of CLIP's view."""

    model: str | None
    steps: int
    guidance: float
    sampler: str


class _EveryRecord(TypedDict):
    spectrum: str
    pictures: list[str]
    seed: int
    count: int
    noise_loss: dict[str, list[float]]
    mean: dict[str, float]


class SpectrumRecord(_EveryRecord, total=False):
    """Content of `evaluation.json`."""

    clip: ClipRecord


def _fixed_vectors(matrix: Tensor) -> StageTable:
    """A table that gives vectors `(S, V, D)` as they are."""
    vectors = StageTable(matrix[0], len(matrix), norm="free")
    vectors.load_state_dict({f"rows.{stage}": row for stage, row in enumerate(matrix)})
    return vectors.requires_grad_(False)


def evaluate_spectrum(settings: EvaluateSpectrumSettings, on_progress: ProgressReport | None = None) -> Path:
    """Write `evaluation.json` and `index.html`; the path of the page.

    Raises:
        BestiaryError: the spectrum has layers, words or silent stages, fits another model, or pictures cannot be read.
    """
    spectrum = load_spectrum(settings.spectrum)
    if spectrum.layers or spectrum.words or spectrum.counts:
        raise BestiaryError(
            f"{settings.spectrum} has vectors per layer, words or silent stages; only spectra as they were trained can be judged"
        )
    # cheap faults first
    order = _order(settings, spectrum) if settings.clip else None
    judge = ClipJudge.load(settings.clip, choose_device(settings.device)) if settings.clip else None
    setup = _setup(settings, spectrum)
    check_spectrum_backbone(settings.spectrum.name, spectrum, setup.denoiser.backbone)
    losses = stage_losses(setup, spectrum, settings.count, on_progress)
    folder = settings.out or Path(f"{name_of_file(settings.spectrum.name)}-evaluation")
    record: SpectrumRecord = {
        "spectrum": settings.spectrum.name,
        "pictures": list(setup.pictures.names),
        "seed": settings.seed,
        "count": settings.count,
        "noise_loss": losses,
        "mean": {name: sum(values) / len(values) for name, values in losses.items()},
    }
    shown: list[Image.Image] = []
    if judge is not None and order is not None:
        given = [read_image(path) for path in setup.pictures.paths]
        likeness, shown = judge_likeness(setup.denoiser, spectrum, given, judge, order, on_progress)
        record["clip"] = {
            "model": settings.clip,
            "steps": settings.steps,
            "guidance": settings.guidance,
            "sampler": "ddim",
            **likeness.record(),
        }
    write_text(folder / "evaluation.json", json.dumps(record, indent=1) + "\n")
    return _write_page(folder, spectrum, record, shown)


def _order(settings: EvaluateSpectrumSettings, spectrum: PromptSpectrum) -> LikenessOrder:
    """What CLIP judges.

    Raises:
        BestiaryError: a prompt does not name the spectrum, or not as prompts can.
    """
    name = name_of_file(settings.spectrum.name)
    prompts = settings.prompts or (f"a photo of a <{name}>",)
    for prompt in prompts:
        resolve_staged_prompt(prompt, PromptSources({name: spectrum}, presets=spectrum.presets))
        if not find_staged_mentions(prompt):
            raise BestiaryError(f"the prompt {prompt!r} does not name the spectrum: write <{name}> where it belongs")
    choice = SamplingChoice(settings.steps, settings.guidance, settings.size)
    return LikenessOrder(name, prompts, settings.pictures, settings.seed, choice)


def _setup(settings: EvaluateSpectrumSettings, spectrum: PromptSpectrum) -> TrainingSetup:
    folder = settings.out or Path(f"{settings.spectrum.name.split('.')[0]}-evaluation")
    values = {
        "images.source": settings.images, "images.cache": folder / "latents", "base.path": settings.base or base_of(spectrum),
        "method.boundaries": spectrum.bounds.fractions[1:-1], "method.vectors": spectrum.vectors,
        "run.seed": settings.seed, "run.device": settings.device, "run.dtype": settings.dtype,
        "optimizer.batch_size": 1, "run.out": folder, "images.size": settings.size,
        "base.text_encoder": settings.text_encoder, "base.tokenizer": settings.tokenizer,
        "method.insertion": spectrum.insertion,
    }  # fmt: skip
    if spectrum.stages == 1:
        values |= {"method.boundaries": (), "method.stages": 1}
    return prepare(SpectrumTask(load_spectrum_recipe(None, values)), keep_decoder=settings.clip is not None)


@torch.no_grad()
def stage_losses(
    setup: TrainingSetup, spectrum: PromptSpectrum, count: int, on_progress: ProgressReport | None = None
) -> dict[str, list[float]]:
    """Mean noise loss of every stage, by what stands in the prompt: the spectrum, its mean, its words, shuffled stages."""
    matrix = spectrum.matrix()  # (S, V, D)
    variants = {"spectrum": matrix, "mean": matrix.mean(0, keepdim=True).expand_as(matrix)}
    if (neutral := spectrum.neutral_matrix()) is not None:
        variants["words"] = neutral.expand_as(matrix)
    # every stage gets the vectors of the one half the way round
    variants["shuffled"] = matrix.roll(max(1, spectrum.stages // 2), 0)
    losses: dict[str, list[float]] = {}
    total, done = len(variants) * count * spectrum.stages, 0
    for name, vectors in variants.items():
        setup.objective.table = _fixed_vectors(vectors).to(setup.denoiser.device)
        sums = torch.zeros(spectrum.stages, dtype=torch.float64)  # (S,)
        # stages take turns, so `count` rounds serve each of them equally often with the same noise for all
        for step in range(count * spectrum.stages):
            sums += (
                setup.objective(setup.batches.draw(step, 0)).curves["stage_loss"].nan_to_num(0).sum(0).double().cpu()
            )
            done += 1
            if on_progress:
                on_progress(done, total)
        losses[name] = [round(value, 6) for value in (sums / count).tolist()]
    return losses


def _write_page(folder: Path, spectrum: PromptSpectrum, record: SpectrumRecord, shown: Sequence[Image.Image]) -> Path:
    losses = record["noise_loss"]
    rows: list[list[object]] = [
        [stage + 1, f"{spectrum.bounds.fractions[stage]:.3g}", *(f"{values[stage]:.5f}" for values in losses.values())]
        for stage in range(spectrum.stages)
    ]
    rows.append(["all", "", *(f"{value:.5f}" for value in record["mean"].values())])
    text = (
        f"Mean squared error of the predicted noise, {record['count']} noised pictures for every stage, seed {record['seed']}; "
        "lower is better, all columns saw the same noise."
    )
    body = paragraph(text) + section("By stage", table(["stage", "begins at", *losses], rows))
    if clip := record.get("clip"):
        body += _likeness_section(clip, shown)
    return write_page(folder / "index.html", f"Spectrum {record['spectrum']}", body)


def _likeness_section(clip: ClipRecord, shown: Sequence[Image.Image]) -> str:
    """What CLIP saw: a table of prompts, a table of stages, and the first picture of each."""
    prompts = [[one["prompt"], f"{one['clip_i']:.3f}", f"{one['clip_t']:.3f}"] for one in clip["prompts"]]
    floors = {"the given pictures among themselves": clip["clip_i_given"], "the words alone": clip["clip_i_words"]}
    prompts += [[name, f"{value:.3f}", ""] for name, value in floors.items() if value is not None]
    shares: Sequence[float | None] = clip["leakage"] or [None] * len(clip["clip_i_stages"])
    stages = [
        [stage, f"{value:.3f}", "" if share is None else f"{share:.0%}"]
        for stage, (value, share) in enumerate(zip(clip["clip_i_stages"], shares, strict=True), start=1)
    ]
    names = ["all stages", "the words", *(f"stage {stage} alone" for stage, _, _ in stages)]
    pictures = strip([figure(data_uri(one), name) for one, name in zip(shown, names, strict=False)])
    text = (
        f"Mean cosines by {clip['model']}, {len(clip['seeds'])} pictures of each prompt and of each stage from seed {clip['seeds'][0]}, "
        f"{clip['steps']} steps, guidance {clip['guidance']:g}. Leakage: the share of the likeness that comes through when one "
        "stage alone says what was learned."
    )
    tables = table(["prompt", "CLIP-I", "CLIP-T"], prompts) + table(["stage alone", "CLIP-I", "leakage"], stages)
    return section("Likeness", paragraph(text), tables, pictures)
