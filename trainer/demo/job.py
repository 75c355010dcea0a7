"""`bestiary demo`: draw, discover, train, compose, judge, show; a stopped demo continues at its unfinished stage.

Each stage writes to its own folder and is recorded in `stages.json` when it is finished. The method sees only the
pictures; the ground truth of the drawings is used for scoring.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import remove_leftovers, write_bytes, write_text
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ..discovery.discover import DiscoverSettings, discover
from ..learning.discovery.discovery_folder import Discovery
from ..learning.parts.settings import load_recipe
from ..learning.run.progress_report import ProgressStyle, duration, progress_callback
from ..learning.run.run_folder import CONFIG_NAME
from ..model.backbones import DEMO, DEMO_DIT, EMBEDDED_BACKBONES, load_denoiser
from ..model.sampling import SamplingDenoiser
from ..training.tasks import resume_training
from ..training.train_parts import train_parts
from . import pictures as demo_pictures
from .drawn_masks import PICTURES, draw_pictures
from .judging import judge_demo
from .page import write_demo_page

logger = logging.getLogger(__name__)

STAGES = ("draw", "discover", "train", "compose", "judge")
_RECORD = "stages.json"
_RECIPES = {"bestiary-demo-dit": "demo_dit"}
"""Backbone -> recipe of its training; others take `demo`."""


class DemoSettings(BaseModel):
    """Settings of `bestiary demo`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = DEMO
    """Base model: "demo", the embedded UNet, "demo-dit", the embedded transformer, or the folder of a model of the drawn world."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the drawings, of training and of every picture."""
    pictures: int = Field(default=140, ge=16, le=10_000)
    """Pictures to draw of the held-out species, which alternate."""
    kinds: int = Field(default=14, ge=2, le=256)
    """Number of kinds per part."""
    steps: int | None = Field(default=None, ge=1)
    """Training steps; None uses the value of the recipe."""
    judged: int = Field(default=48, ge=4, le=10_000)
    """Pictures per test."""
    device: str = "auto"
    """Device: auto, cpu, cuda, mps."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Floating-point precision."""
    progress: ProgressStyle = "line"
    """Format of progress on stderr."""


@dataclass(frozen=True)
class DemoResult:
    """Paths of the demo's results."""

    page: Path
    metrics: Path


@dataclass
class DemoJob:
    """One demo in one folder."""

    out: Path
    settings: DemoSettings

    @cached_property
    def denoiser(self) -> SamplingDenoiser:
        """The base model, loaded once; each stage removes the adapters it adds."""
        return load_denoiser(self.settings.base, device=self.settings.device, dtype=self.settings.dtype)

    @property
    def dictionary_path(self) -> Path:
        """Path of the trained part dictionary."""
        return self.out / "creatures.safetensors"

    def discovery(self) -> Discovery:
        """The result of the stage `discover`."""
        return Discovery.load(self.out / "discovery")

    def draw(self) -> None:
        """Draw the pictures; their ground truth goes to a separate folder."""
        draw_pictures(self.out, self.settings.pictures, self.settings.seed)

    def discover(self) -> None:
        """Discover the parts from the pictures alone."""
        # features of a model that is there: no further weights are needed
        name, denoiser = self.settings.base, self.denoiser
        if EMBEDDED_BACKBONES.get(denoiser.backbone.name) == DEMO_DIT:
            # its 64 places say where they are rather than what they show: the UNet finds the parts for both
            name = DEMO
            denoiser = load_denoiser(name, device=self.settings.device, dtype=self.settings.dtype)
        settings = DiscoverSettings(
            images=self.out / PICTURES,
            out=self.out / "discovery",
            source="diffusion",
            base=name,
            kinds=self.settings.kinds,
            seed=self.settings.seed,
            device=self.settings.device,
            dtype=self.settings.dtype,
        )
        discover(settings, self._progress("discover"), denoiser=denoiser)

    def train(self) -> None:
        """Train a token for every part and kind; continues from the last saved state if there is one."""
        run = self.out / "training"
        # continue the newest run of an earlier start; older runs stay untouched, so a failure loses no state
        begun = list(self.out.glob(f"training*/{CONFIG_NAME}"))
        if begun:
            newest = max(begun, key=lambda config: config.stat().st_mtime_ns).parent
            result = resume_training(newest, on_progress=self._progress("train"))
        else:
            overrides: dict[str, Any] = {
                "base.path": self.settings.base,
                "discovery.folder": self.out / "discovery",
                "run.out": run,
                "run.seed": self.settings.seed,
                "run.device": self.settings.device,
                "run.dtype": self.settings.dtype,
            }
            if self.settings.steps:
                overrides |= {
                    "optimizer.steps": self.settings.steps,
                    "optimizer.warmup": min(20, self.settings.steps // 10),
                }
            recipe = _RECIPES.get(self.denoiser.backbone.name, "demo")
            result = train_parts(load_recipe(recipe, overrides), on_progress=self._progress("train"))
        write_bytes(self.dictionary_path, result.path.read_bytes())

    def compose(self) -> None:
        """Generate creatures that combine parts of different species."""
        dictionary = PartDictionary.load(self.dictionary_path)
        demo_pictures.compose_demo(
            self.out, self.discovery(), dictionary, self.denoiser, self.settings.seed, self._progress("compose")
        )

    def judge(self) -> None:
        """Measure discovery, reconstruction and mixes, with the codebook and with the ground truth."""
        dictionary = PartDictionary.load(self.dictionary_path)
        judge_demo(
            self.out,
            self.discovery(),
            dictionary,
            self.denoiser,
            count=self.settings.judged,
            seed=self.settings.seed,
            report=self._progress,
        )

    def _progress(self, stage: str) -> Callable[[int, int], None]:
        return progress_callback(stage, self.settings.progress)


def run_demo(out: Path, settings: DemoSettings) -> DemoResult:
    """Run the demo, or its unfinished stages, and write its page and figures.

    Raises:
        BestiaryError: the folder cannot be written to, or contains a demo with other settings.
    """
    out = Path(out)
    remove_leftovers(out)
    seconds = _read_record(out, settings)
    job = DemoJob(out, settings)
    for stage in STAGES:
        if stage in seconds:
            logger.info("%s: already finished, in %s", stage, duration(seconds[stage]))
            continue
        # a stage is recorded only when it is finished: an interrupted stage runs again
        started = time.monotonic()
        getattr(job, stage)()
        seconds[stage] = time.monotonic() - started
        _write_record(out, settings, seconds)
        logger.info("%s: %s", stage, duration(seconds[stage]))
    started = time.monotonic()
    # written twice: the page shows the figures, and the figures include the time of the page
    metrics = _write_metrics(out, settings, seconds)
    page = write_demo_page(out, job.discovery(), PartDictionary.load(job.dictionary_path), metrics)
    seconds["page"] = time.monotonic() - started
    _write_metrics(out, settings, seconds)
    return DemoResult(page, out / "metrics.json")


def _write_metrics(out: Path, settings: DemoSettings, seconds: dict[str, float]) -> dict[str, Any]:
    judged = json.loads((out / "judged.json").read_text(encoding="utf-8"))
    rounded = {stage: round(value, 1) for stage, value in seconds.items()}
    metrics = {"seed": settings.seed, **judged, "seconds": {**rounded, "total": round(sum(seconds.values()), 1)}}
    write_text(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    return metrics


def _fingerprint(settings: DemoSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude={"device", "dtype", "progress"})


def _read_record(out: Path, settings: DemoSettings) -> dict[str, float]:
    """Seconds of the finished stages.

    Raises:
        BestiaryError: the folder contains something other than a demo, or a demo with other settings.
    """
    path = out / _RECORD
    # never write into a folder that contains other files
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise BestiaryError(f"{out} contains files that are not from a demo: give --out another folder")
        _write_record(out, settings, {})
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known, seconds = record["settings"], record["seconds"]
    except (ValueError, KeyError, TypeError) as fault:
        raise BestiaryError(f"{path} is damaged: give --out another folder") from fault
    # device and precision may change between starts; settings that decide the result may not
    wanted = _fingerprint(settings)
    # a demo of an earlier version records fewer settings: those left out had their defaults
    known = {name: field.default for name, field in DemoSettings.model_fields.items()} | known
    other = [f"--{name} {known[name]}" for name in wanted if known[name] != wanted[name]]
    if other:
        raise BestiaryError(
            f"{out} contains a demo with {', '.join(other)}: use these values to continue it, or give --out another folder"
        )
    return {stage: float(seconds[stage]) for stage in STAGES if stage in seconds}


def _write_record(out: Path, settings: DemoSettings, seconds: dict[str, float]) -> None:
    write_text(out / _RECORD, json.dumps({"settings": _fingerprint(settings), "seconds": seconds}, indent=1) + "\n")
