"""Cancel at any moment of a training: a file or a state that resumes to the same bits, and a MODEL that nobody touched.

A moment is a call of a Python function, so that it may lie in a layer, in a preview, in the saving or in the encoding.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch

FEW, MANY = 4, 40
PARTS = {"name": "parts", "steps": 4, "batch_size": 2, "accumulation": 1, "token_lr": 0.1, "lora_lr": 1e-3, "rank": 2}
PARTS |= {"attention_weight": 0.2, "seed": 3, "preview_every": 2, "resume": "start anew"}
PARTS |= {"more_settings": "attention_loss.downsampling = [2]\nrun.preview_steps = 1\nrun.preview_count = 1"}
SPECTRUM = {"name": "corgi", "initial_words": "red bird", "stages": 3, "vectors": 2, "steps": 4, "batch_size": 2}
SPECTRUM |= {"vector_lr": 0.3, "image_size": 128, "seed": 3, "preview_every": 2, "resume": "start anew"}
SPECTRUM |= {"more_settings": "run.preview_steps = 1\nrun.preview_count = 1"}


class CancelAt:
    """Presses Cancel at the n-th call of a Python function of this thread; None only counts them."""

    def __init__(self, moment: int | None) -> None:
        self.moment, self.calls = moment, 0
        self.place = ""
        self.begun = 0
        """Calls before the first step."""

    def __enter__(self) -> CancelAt:
        sys.setprofile(self._count)
        return self

    def __exit__(self, *fault: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        import comfy.model_management

        if event != "call":
            return
        if self.calls == self.moment:
            self.place = f"{frame.f_code.co_filename}:{frame.f_code.co_name}"
            comfy.model_management.interrupt_current_processing(True)
        if not self.begun and frame.f_code.co_name == "fit" and frame.f_code.co_filename.endswith("fit.py"):
            self.begun = self.calls
        self.calls += 1


@pytest.fixture
def train_parts(sd15_model, drawn_images, small_codebook) -> Callable[..., torch.Tensor]:
    """`train_parts(resume)` runs Train Parts as its node does; the learned vectors and adapters as one row of numbers."""
    from bestiary.nodes.host.graph_progress import GraphProgress
    from bestiary.nodes.host.socket_types import NamedCodebook
    from bestiary.nodes.training.graph_fit import GraphModel
    from bestiary.nodes.training.training_job import run_graph_training
    from bestiary.nodes.training.training_set import TrainingSetChoice, build_training_set

    codebook, choice = NamedCodebook("drawn", small_codebook), TrainingSetChoice(128)
    made = build_training_set([drawn_images[:4]], codebook, sd15_model.vae, choice, GraphProgress(None))

    def train(resume: str = "start anew") -> torch.Tensor:
        with torch.inference_mode():
            trained = run_graph_training(GraphModel(*sd15_model), made, {**PARTS, "resume": resume}, None)
        own = trained.dictionary.dictionary
        return torch.cat([own.matrix().flatten(), *(own.lora[name].flatten() for name in sorted(own.lora))])

    return train


@pytest.fixture
def train_spectrum(sd15_model, drawn_images) -> Callable[..., torch.Tensor]:
    """`train_spectrum(resume)` runs Train Spectrum as its node does, encoding included; the learned vectors."""
    from bestiary.nodes.training import spectrum_pictures
    from bestiary.nodes.training.spectrum_job import ConnectedPictures, GraphModel, run_spectrum_training

    def train(resume: str = "start anew") -> torch.Tensor:
        spectrum_pictures._encoded.clear()
        with torch.inference_mode():
            concept = ConnectedPictures([drawn_images[:3]], None)
            made = run_spectrum_training(GraphModel(*sd15_model), concept, {**SPECTRUM, "resume": resume}, None)
        return made.spectrum.spectrum.matrix().flatten()

    return train


def _assert_untouched(loaded: object, weights: dict[str, torch.Tensor], weights_of: Callable) -> None:
    import comfy.model_management

    now = weights_of(loaded)
    assert now.keys() == weights.keys() and all(torch.equal(now[name], weights[name]) for name in weights)
    for module in (loaded.model.model, loaded.clip.cond_stage_model):
        assert not any("forward" in part.__dict__ for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not getattr(comfy.model_management, "in_training", False)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def _cancel_everywhere(
    train: Callable[..., torch.Tensor], loaded: object, weights_of: Callable, count: int, seed: int
) -> list[str]:
    """Trains once for every moment; where each lay and how it ended."""
    import comfy.model_management
    from bestiary.nodes.runs.training_runs import run_names, runs_folder
    from bestiary.trainer.learning.run.run_folder import RunFolder

    weights, random_state = weights_of(loaded), torch.get_rng_state()
    with CancelAt(None) as counted:
        whole = train()
    ends: list[str] = []
    for moment in random.Random(seed).sample(range(counted.calls), count):
        known = set(run_names())
        try:
            with CancelAt(moment) as pressed:
                assert torch.equal(train(), whole)
            end = "finished"  # pressed so late that everything is there
        except comfy.model_management.InterruptProcessingException:
            end = "stopped"
        comfy.model_management.interrupt_current_processing(False)
        _assert_untouched(loaded, weights, weights_of)
        assert torch.equal(torch.get_rng_state(), random_state)
        made = set(run_names()) - known
        if end == "stopped" and made:
            run = RunFolder.open(runs_folder() / made.pop())
            saved = run.newest_state()
            end = f"stopped at step {saved.step}"
            stopped_files = list((Path(str(runs_folder())).parents[1] / "models").rglob(f"{run.path.name}_stopped*"))
            assert bool(stopped_files) == (saved.step > 0), (moment, pressed.place)
            assert torch.equal(train(run.path.name), whole), (moment, pressed.place)
        elif end == "stopped":
            # pictures are encoded before there is a run: nothing had been learned
            assert moment < counted.begun, (moment, pressed.place)
            end = "stopped before the run"
        ends.append(end)
    return ends


def _assert_of_many_kinds(ends: list[str]) -> None:
    assert len({end for end in ends if end.startswith("stopped at step")}) >= 3, ends


def test_a_cancelled_part_training_loses_nothing(train_parts, sd15_model, weights_of) -> None:
    ends = _cancel_everywhere(train_parts, sd15_model, weights_of, FEW, seed=1)
    assert any(end.startswith("stopped at step") for end in ends), ends


def test_a_cancelled_spectrum_training_loses_nothing(train_spectrum, sd15_model, weights_of) -> None:
    ends = _cancel_everywhere(train_spectrum, sd15_model, weights_of, FEW, seed=1)
    assert any(end.startswith("stopped at step") for end in ends), ends


@pytest.mark.slow
def test_forty_cancelled_part_trainings_lose_nothing(train_parts, sd15_model, weights_of) -> None:
    _assert_of_many_kinds(_cancel_everywhere(train_parts, sd15_model, weights_of, MANY, seed=2))


@pytest.mark.slow
def test_forty_cancelled_spectrum_trainings_lose_nothing(train_spectrum, sd15_model, weights_of) -> None:
    _assert_of_many_kinds(_cancel_everywhere(train_spectrum, sd15_model, weights_of, MANY, seed=2))


def test_the_host_is_told_that_a_training_runs(train_spectrum, monkeypatch) -> None:
    import comfy.model_management
    from bestiary.nodes.denoiser.comfy_network import ComfyNetwork

    monkeypatch.setattr(comfy.model_management, "in_training", False, raising=False)
    seen, predict = [], ComfyNetwork.predict

    def noted(self: ComfyNetwork, *inputs: object) -> object:
        seen.append(comfy.model_management.in_training)
        if len(seen) == 3:
            raise RuntimeError("on the way")
        return predict(self, *inputs)

    monkeypatch.setattr(ComfyNetwork, "predict", noted)
    with pytest.raises(RuntimeError, match="on the way"):
        train_spectrum()
    assert seen == [True] * 3 and comfy.model_management.in_training is False
