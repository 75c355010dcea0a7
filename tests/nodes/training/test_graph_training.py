"""Training on ComfyUI's weights: the losses of the command line, models untouched, stops that keep what was learned."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary

KINDS = ("demo", "sd15", "sdxl")
STEPS = 20


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Runs and dictionaries go to a folder of the test; nobody pressed Cancel."""
    import comfy.model_management
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    comfy.model_management.interrupt_current_processing(False)
    yield tmp_path
    comfy.model_management.interrupt_current_processing(False)


@pytest.fixture
def models(request: pytest.FixtureRequest) -> Callable[[str], object]:
    return lambda kind: request.getfixturevalue(f"{kind}_model")


_made: dict[str, object] = {}


@pytest.fixture
def prepared(models, drawn_images, small_codebook) -> Callable[..., tuple]:
    """`prepared(kind, **choices)` -> GraphModel, training set and settings of a short training."""

    def build(kind: str, **choices: object) -> tuple:
        from bestiary.nodes.host.graph_progress import GraphProgress
        from bestiary.nodes.host.socket_types import NamedCodebook
        from bestiary.nodes.training.graph_training import GraphModel
        from bestiary.nodes.training.training_job import graph_settings
        from bestiary.nodes.training.training_set import TrainingSetChoice, build_training_set

        loaded = GraphModel(*models(kind))
        if kind not in _made:
            codebook, choice = NamedCodebook("drawn", small_codebook), TrainingSetChoice(128)
            _made[kind] = build_training_set([drawn_images], codebook, loaded.vae, choice, GraphProgress(None))
        made = _made[kind]
        more = "attention_loss.downsampling = [2]\n" if kind != "demo" else ""
        given = {"name": "parts", "steps": STEPS, "batch_size": 2, "accumulation": 2, "token_lr": 0.1, "lora_lr": 1e-3}
        given |= {"attention_weight": 0.2, "rank": 2, "seed": 3, "preview_every": 0, **choices}
        given["more_settings"] = more + str(choices.get("more_settings", ""))
        return loaded, made, graph_settings(given, made)

    return build


def _run(settings: object, fingerprint: str, resume: str = "start anew") -> object:
    from bestiary.nodes.runs.training_runs import open_run

    return open_run("parts", resume, settings, fingerprint)


def _train(loaded: object, made: object, settings: object, run: object) -> object:
    from bestiary.nodes.training.graph_training import train_in_graph

    with torch.inference_mode():  # as ComfyUI's executor runs nodes
        return train_in_graph(loaded, made, settings, run)


def _command_line_losses(denoiser: object, made: object, settings: object, folder: Path) -> list[float]:
    """The standalone trainer's loop over its own denoiser, from the same pictures and seed."""
    from bestiary.trainer.learning.parts.objective_setup import (
        build_batches,
        build_objective,
        parameter_groups,
    )
    from bestiary.trainer.learning.pictures.latent_cache import LatentCache
    from bestiary.trainer.learning.run.fit import fit
    from bestiary.trainer.learning.run.run_folder import RunFolder
    from bestiary.trainer.learning.run.run_settings import loop_settings

    with torch.random.fork_rng():
        torch.manual_seed(settings.run.seed)
        batches = build_batches(settings, made.names, made.kinds, LatentCache(made.moments), denoiser)
        objective = build_objective(settings, made.kinds, denoiser, batches)
        run = RunFolder.create(folder)
        groups = parameter_groups(settings, objective, denoiser)
        fit(objective, groups, batches, loop_settings(settings.optimizer, settings.run, denoiser), run)
    return [record["loss"] for record in run.read_log()]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_the_command_line(kind: str, prepared, diffusers_denoiser, tmp_path) -> None:
    """At the default rates; a hundred times faster ones let Adam blow rounding up to the bound."""
    loaded, made, settings = prepared(kind, token_lr=1e-3, lora_lr=1e-4)
    ours = _train(loaded, made, settings, _run(settings, made.fingerprint()))
    theirs = _command_line_losses(diffusers_denoiser(kind), made, settings, tmp_path / "standalone")
    assert len(ours.losses) == len(theirs) == STEPS
    assert np.abs(np.array(ours.losses) - np.array(theirs)).max() < 1e-4
    assert ours.losses[0] != ours.losses[-1]


def _sampled(loaded: object) -> torch.Tensor:
    """A latent of two sampling steps with the graph's own objects."""
    import comfy.sample

    with torch.inference_mode():
        tokens = loaded.clip.tokenize("a red bird")
        positive = loaded.clip.encode_from_tokens_scheduled(tokens)
        channels = loaded.model.model.latent_format.latent_channels
        latent = torch.zeros(1, channels, 16, 16)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
        return comfy.sample.sample(
            loaded.model, noise, 2, 2.0, "euler", "normal", positive, positive, latent, disable_pbar=True, seed=0
        ).clone()


def _weights(loaded: object) -> dict[str, torch.Tensor]:
    modules = {"model": loaded.model.model, "clip": loaded.clip.cond_stage_model, "vae": loaded.vae.first_stage_model}
    return {
        f"{kind}.{name}": tensor.detach().clone()
        for kind, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


def _assert_untouched(loaded: object, before: torch.Tensor, weights: dict[str, torch.Tensor]) -> None:
    assert torch.equal(_sampled(loaded), before)
    now = _weights(loaded)
    assert now.keys() == weights.keys() and all(torch.equal(now[name], weights[name]) for name in weights)
    for module in (loaded.model.model, loaded.clip.cond_stage_model):
        assert not any("forward" in part.__dict__ for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_untouched_after_success(kind: str, prepared) -> None:
    loaded, made, settings = prepared(kind, steps=2, recompute=True)
    before, weights, state = _sampled(loaded), _weights(loaded), torch.get_rng_state()
    learned = _train(loaded, made, settings, _run(settings, made.fingerprint()))
    assert torch.equal(torch.get_rng_state(), state)
    _assert_untouched(loaded, before, weights)
    assert len(learned.dictionary.rows) == len(made.kinds.rows()) and learned.steps == 2


def test_cancel_saves_a_dictionary_and_a_state_and_resume_gives_the_same(prepared, outputs, monkeypatch) -> None:
    import comfy.model_management
    from bestiary.nodes.training.training_progress import TrainingProgress

    loaded, made, settings = prepared("sd15", steps=6)
    before, weights = _sampled(loaded), _weights(loaded)
    whole = _train(loaded, made, settings, _run(settings, made.fingerprint()))
    step = TrainingProgress.step

    def cancel_in_step_three(self: TrainingProgress, done: int, total: int) -> None:
        if done == 3:
            comfy.model_management.interrupt_current_processing(True)
        step(self, done, total)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "step", cancel_in_step_three)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            _train(loaded, made, settings, _run(settings, made.fingerprint()))
    assert not comfy.model_management.processing_interrupted()  # the next graph may run
    _assert_untouched(loaded, before, weights)
    stopped = PartDictionary.load(outputs / "models" / "bestiary" / "parts-2_stopped.safetensors")
    assert stopped.provenance["steps"] == 3
    run = _run(settings, made.fingerprint(), "parts-2")
    assert run.newest_state().step == 3
    resumed = _train(loaded, made, settings, run)
    assert resumed.losses == whole.losses
    assert torch.equal(resumed.dictionary.matrix(), whole.dictionary.matrix())
    assert all(torch.equal(resumed.dictionary.lora[name], tensor) for name, tensor in whole.dictionary.lora.items())


def test_a_loss_that_is_not_finite_names_its_pictures(prepared) -> None:
    from dataclasses import replace

    loaded, made, settings = prepared("sd15", steps=3)
    before, weights = _sampled(loaded), _weights(loaded)
    spoilt = replace(made, moments=np.full_like(made.moments, np.nan))
    with pytest.raises(
        BestiaryError, match=r"the loss of step 1 is not finite .* its batch 0 held picture \d+, picture"
    ):
        _train(loaded, spoilt, settings, _run(settings, made.fingerprint()))
    _assert_untouched(loaded, before, weights)


def test_too_little_memory_is_one_message_that_says_what_to_lower(prepared, monkeypatch) -> None:
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    loaded, made, settings = prepared("sd15", steps=3)
    before, weights = _sampled(loaded), _weights(loaded)

    def fail(self: ComfyDenoiser, *inputs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    with monkeypatch.context() as patch:
        patch.setattr(ComfyDenoiser, "predict", fail)
        with pytest.raises(
            BestiaryError, match=r"out of memory in training: lower batch_size 2 .*, or memory by switching "
        ):
            _train(loaded, made, settings, _run(settings, made.fingerprint()))
    _assert_untouched(loaded, before, weights)


def test_other_runtime_errors_pass_unchanged(prepared) -> None:
    from bestiary.nodes.denoiser.training_faults import memory_told

    _, _, settings = prepared("sd15")
    with pytest.raises(RuntimeError, match="^shapes$"), memory_told(settings, 128):
        raise RuntimeError("shapes")
    with (
        pytest.raises(BestiaryError, match="rank 2, or close other programs"),
        memory_told(settings, 128),
    ):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")


def test_previews_and_heat_maps_are_shown_and_kept(prepared, outputs, monkeypatch) -> None:
    import comfy.utils

    shown = []
    monkeypatch.setattr(
        comfy.utils.ProgressBar,
        "update_absolute",
        lambda self, done, total=None, preview=None: shown.append((done, preview)),
    )
    more = "run.preview_steps = 2\nrun.preview_count = 2"
    loaded, made, settings = prepared("demo", steps=4, preview_every=2, more_settings=more)
    run = _run(settings, made.fingerprint())
    shown.clear()
    learned = _train(loaded, made, settings, run)
    assert [done for done, preview in shown if preview is None] == [1, 2, 3, 4]
    assert [(done, preview[0]) for done, preview in shown if preview] == [(2, "JPEG"), (4, "JPEG")]
    assert sorted(path.name for path in run.samples.iterdir()) == [
        f"step-000000{step}{kind}.png" for step in (2, 4) for kind in ("-attention", "")
    ]
    # two rows of pictures, then a row per part
    assert learned.preview.height > 160 * (2 + len(made.kinds.part_names))


def test_a_training_set_of_another_model_is_told(prepared, models) -> None:
    from bestiary.nodes.training.graph_training import GraphModel

    _, made, settings = prepared("demo", steps=1)
    run = _run(settings, made.fingerprint())
    with pytest.raises(
        BestiaryError, match=r"holds latents of 8 channels, this MODEL \(sd15\) takes 4: connect the VAE"
    ):
        _train(GraphModel(*models("sd15")), made, settings, run)
    loaded, made, settings = prepared("sd15", steps=1)
    other = models("sdxl")
    with pytest.raises(BestiaryError, match="the training set was encoded with another VAE"):
        _train(GraphModel(loaded.model, loaded.clip, models("demo").vae), made, settings, run)
    assert other is not None


def test_a_run_of_other_pictures_is_not_gone_on_with(prepared) -> None:
    from bestiary.nodes.runs.training_runs import open_run, resume_choices

    _, made, settings = prepared("sd15", steps=1)
    with pytest.raises(
        BestiaryError, match="no run 'go on with the newest' in output/bestiary to go on with; .* none yet"
    ):
        open_run("parts", "go on with the newest", settings, made.fingerprint())
    _run(settings, made.fingerprint())
    assert resume_choices() == ["start anew", "go on with the newest", "parts"]
    with pytest.raises(BestiaryError, match="run parts learned from other pictures or parts than this training set"):
        open_run("parts", "parts", settings, "0" * 16)
    with pytest.raises(BestiaryError, match=r"no run '../../evil' in output/bestiary to go on with"):
        open_run("parts", "../../evil", settings, made.fingerprint())
    with pytest.raises(BestiaryError, match="'../evil' cannot name a training"):
        open_run("../evil", "start anew", settings, made.fingerprint())


def test_settings_that_are_wrong_are_told(prepared) -> None:
    with pytest.raises(BestiaryError, match="optimizer.stepz: no such key; did you mean 'steps'?"):
        prepared("sd15", more_settings="optimizer.stepz = 4")
    with pytest.raises(BestiaryError, match="more_settings is no valid TOML"):
        prepared("sd15", more_settings="optimizer steps 4")
    with pytest.raises(BestiaryError, match="more_settings: method.kind, method.ids and images.margin are decided"):
        prepared("sd15", more_settings="images.margin = 0.2")
    assert prepared("sd15", more_settings='captions.noun = "bird"')[2].captions.noun == "bird"
