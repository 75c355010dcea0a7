"""Trainings, pictures and files of every model shape give the numbers they gave when `fixtures/same_bits.json` was recorded.

Bits depend on torch's version and on the instruction set its kernels choose, so they are compared as hashes only where both equal the recorded
ones (an entry each); elsewhere losses and sums of tensors must agree to a tolerance. `BESTIARY_RECORD_BITS=1` records this machine's entry.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.denoiser.ddim import sample_ddim
from bestiary.concepts.denoiser.denoiser import PromptPiece
from bestiary.trainer.learning.parts.finished_parts import learned_dictionary
from bestiary.trainer.learning.parts.objective_setup import build_batches, build_objective, parameter_groups
from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.learning.parts.training_kinds import TrainingKinds
from bestiary.trainer.learning.pictures.latent_cache import LatentCache
from bestiary.trainer.learning.run.fit import ParameterGroup
from bestiary.trainer.learning.spectrum.spectrum_objective_setup import build_spectrum, set_up_spectrum
from bestiary.trainer.learning.spectrum.spectrum_settings import load_spectrum_recipe
from bestiary.trainer.model.backbones import load_denoiser
from bestiary.trainer.model.sampling import sample_images
from PIL import Image
from torch import Tensor

RECORDED = Path(__file__).parent / "fixtures" / "same_bits.json"
MODELS = ("demo", "sd15", "sd2", "sdxl")
HERE = f"torch {torch.__version__.split('+')[0]}, {torch.backends.cpu.get_cpu_capability()}"
PICTURES, STEPS = 6, 20


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tiny_denoiser: Callable) -> tuple[str, Callable[[], object]]:
    """Name of a shape and what loads it anew: the shipped model, and narrow random ones."""
    if request.param == "demo":
        return "demo", lambda: load_denoiser("demo", device="cpu", dtype="fp32")
    return request.param, lambda: tiny_denoiser(request.param)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.train
def test_parts_are_trained_to_the_same_bits(model) -> None:
    name, load = model
    train_parts_on(name, load())


def train_parts_on(name: str, denoiser: object, **changes: object) -> None:
    settings = load_recipe(None, {"images.size": 128, "optimizer.batch_size": 2, "run.seed": 3, "lora.rank": 2,
                                  "captions.drop_tokens": 0.3, "captions.unconditional": 0.1, "method.region_weight": 0.5,
                                  "method.part_words": "head bird red", **changes})  # fmt: skip
    kinds = _kinds()
    batches = build_batches(settings, _names(), kinds, _cache(name, 128), denoiser)
    objective = build_objective(settings, kinds, denoiser, batches)
    losses = _train(objective, batches.draw, parameter_groups(settings, objective, denoiser))
    tiles = {row: Image.new("RGB", (8, 8)) for row in kinds.rows()}
    dictionary = learned_dictionary(objective, kinds, tiles, {})
    tensors = {**dictionary.embeddings, **{f"lora.{key}": value for key, value in dictionary.lora.items()}}
    _compare(f"{name} parts", losses, tensors)


@pytest.mark.train
def test_spectra_are_trained_to_the_same_bits(model) -> None:
    name, load = model
    train_spectrum_on(name, load())


def train_spectrum_on(name: str, denoiser: object) -> None:
    settings = load_spectrum_recipe(None, {"images.size": 64, "method.initial_words": "red bird", "run.seed": 7,
                                           "method.vectors": 2, "method.min_snr": 5.0})  # fmt: skip
    masks = np.random.default_rng(2).random((PICTURES, 10, 10), dtype=np.float32)
    training = set_up_spectrum(settings, denoiser, _names(), _cache(name, 80), masks)
    losses = _train(training.objective, training.batches.draw, training.groups)
    spectrum = build_spectrum(training, STEPS)
    _compare(f"{name} spectrum", losses, {**spectrum.embeddings, "neutral": spectrum.neutral_matrix()})


@pytest.mark.train
def test_pictures_have_the_same_bits(model) -> None:
    name, load = model
    denoiser = load()
    empty = denoiser.empty_conditioning()
    told = denoiser.text.encode(
        [denoiser.text.tokenize([PromptPiece(text)]) for text in ("a red bird", "a head")], None
    )
    pictures = {
        sampler: sample_images(
            denoiser, told, None, seeds=(1, 2), steps=3, guidance=2.0, size=64, sampler=sampler
        ).images
        for sampler in ("ddim", "dpmpp_2m", "euler", "pndm")
    }
    pictures["preview"] = sample_ddim(denoiser, told, empty, seeds=(1, 2), steps=3, guidance=2.0, size=64)
    _compare(f"{name} pictures", [], pictures)


def _names() -> tuple[str, ...]:
    return tuple(f"{number}.png" for number in range(PICTURES))


def _cache(name: str, pixels: int) -> LatentCache:
    """Moments (N, 1, 2, C, h, w) of pictures nobody drew."""
    shape = (PICTURES, 1, 2, 8 if "demo" in name else 4, pixels // 8, pixels // 8)
    moments = np.random.default_rng(1).standard_normal(shape).astype(np.float16)
    moments[:, :, 1] -= 3
    return LatentCache(moments)


def _kinds() -> TrainingKinds:
    """Head, body and ground in thirds; picture 1 shows no head."""
    labels = np.broadcast_to(np.arange(12)[:, None] // 4, (PICTURES, 12, 12)).astype(np.uint8).copy()
    codes = np.stack([np.arange(PICTURES) % 2, np.arange(PICTURES) % 3, np.zeros(PICTURES, dtype=np.int64)], axis=1)
    labels[1][labels[1] == 0], codes[1, 0] = 2, -1
    return TrainingKinds(("head", "body", "ground"), ({}, {}, {}), 2, labels, codes, {})


def _train(objective: Callable, draw: Callable, groups: Sequence[ParameterGroup]) -> list[float]:
    """Losses of some steps of AdamW."""
    optimizer = torch.optim.AdamW(
        [{"params": list(group.parameters.values()), "lr": group.learning_rate, "weight_decay": group.weight_decay} for group in groups]
    )  # fmt: skip
    losses = []
    for step in range(STEPS):
        report = objective(draw(step, 0))
        report.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(report.total.item())
    return losses


def _compare(entry: str, losses: Sequence[float], tensors: Mapping[str, Tensor]) -> None:
    """Against what was recorded: losses as hexadecimal floats, tensors as hashes and sums."""
    found = {"losses": [value.hex() for value in losses], "sha256": _hash_of(tensors), "sums": _sums_of(tensors)}
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if os.environ.get("BESTIARY_RECORD_BITS"):
        recorded.setdefault(HERE, {})[entry] = found
        RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
    if HERE in recorded:
        assert found == recorded[HERE][entry]
        return
    expected = next(iter(recorded.values()))[entry]
    ours, theirs = ([float.fromhex(value) for value in result["losses"]] for result in (found, expected))
    assert ours == pytest.approx(theirs, rel=2e-2)
    assert found["sums"] == pytest.approx(expected["sums"], rel=5e-2)


def _hash_of(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().float().contiguous().numpy()
        digest.update(f"{name}{values.shape}".encode() + values.tobytes())
    return digest.hexdigest()


def _sums_of(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean magnitudes of what a file holds, adapters together."""
    groups: dict[str, list[float]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(name.split(".")[0], []).append(tensor.detach().double().abs().mean().item())
    return {name: float(np.mean(values)) for name, values in sorted(groups.items())}
