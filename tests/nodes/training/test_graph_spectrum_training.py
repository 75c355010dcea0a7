"""Learning a spectrum on ComfyUI's weights: the losses of the command line, models untouched, stops that keep what was learned."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.spectrum_file import load_spectrum

KINDS = ("demo", "sd15", "sdxl")
STEPS = 4
CHEAP = {"name": "corgi", "initial_words": "red bird", "stages": 4, "vectors": 2, "steps": STEPS, "batch_size": 3}
CHEAP |= {"vector_lr": 0.3, "image_size": 128, "seed": 3, "preview_every": 0}


@pytest.fixture
def prepared(request: pytest.FixtureRequest, drawn_images) -> Callable[..., tuple]:
    """`prepared(kind, **choices)` -> GraphModel, pictures and settings of a short training on three drawings."""

    def build(kind: str, **choices: object) -> tuple:
        from bestiary.nodes.host.graph_progress import GraphProgress
        from bestiary.nodes.training.graph_fit import GraphModel
        from bestiary.nodes.training.spectrum_job import spectrum_settings
        from bestiary.nodes.training.spectrum_pictures import prepare_pictures

        loaded = GraphModel(*request.getfixturevalue(f"{kind}_model"))
        settings = spectrum_settings({**CHEAP, **choices})
        with torch.inference_mode():
            pictures = prepare_pictures([drawn_images[:3]], None, loaded.vae, 128, False, GraphProgress(None))
        return loaded, pictures, settings

    return build


def _run(settings: object, pictures: object, resume: str = "start anew") -> object:
    from bestiary.nodes.runs.training_runs import open_run

    return open_run("corgi", resume, settings, pictures.fingerprint())


def _train(loaded: object, pictures: object, settings: object, run: object) -> object:
    from bestiary.nodes.training.graph_fit import train_in_graph
    from bestiary.nodes.training.graph_spectrum_training import SpectrumInGraph

    with torch.inference_mode():  # as ComfyUI's executor runs nodes
        return train_in_graph(loaded, SpectrumInGraph(pictures, settings), run)


def _set_up(denoiser: object, pictures: object, settings: object) -> object:
    """The standalone trainer's training from the same pictures and seed."""
    from bestiary.trainer.learning.pictures.latent_cache import LatentCache
    from bestiary.trainer.learning.spectrum.spectrum_objective_setup import set_up_spectrum

    return set_up_spectrum(settings, denoiser, pictures.names, LatentCache(pictures.moments))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [STEPS, pytest.param(20, marks=pytest.mark.slow)])
def test_losses_are_those_of_the_command_line(
    kind: str, steps: int, prepared, diffusers_denoiser, command_line_losses
) -> None:
    """At a rate at which Adam does not blow rounding up to the bound."""
    loaded, pictures, settings = prepared(kind, vector_lr=0.03, steps=steps)
    ours = _train(loaded, pictures, settings, _run(settings, pictures))
    theirs = command_line_losses(lambda: _set_up(diffusers_denoiser(kind), pictures, settings))
    assert len(ours.losses) == len(theirs) == len(set(ours.losses)) == steps
    assert np.abs(np.array(ours.losses) - np.array(theirs)).max() < 1e-4


def test_the_published_network_learns_too(prepared, diffusers_denoiser, command_line_losses) -> None:
    more = 'method.parameterisation = "reference"\noptimizer.network_lr = 1e-5'
    loaded, pictures, settings = prepared("sd15", vectors=1, steps=4, more_settings=more)
    ours = _train(loaded, pictures, settings, _run(settings, pictures))
    theirs = command_line_losses(lambda: _set_up(diffusers_denoiser("sd15"), pictures, settings))
    assert np.abs(np.array(ours.losses) - np.array(theirs)).max() < 1e-4
    assert ours.concept.matrix().shape == (4, 1, 32)


def test_every_stage_moves_and_keeps_its_norm(prepared) -> None:
    loaded, pictures, settings = prepared("demo", steps=4, initial_words="creature")
    learned = _train(loaded, pictures, settings, _run(settings, pictures))
    spectrum, start = learned.concept, learned.concept.neutral_matrix()
    assert (spectrum.backbone, spectrum.stages, spectrum.vectors) == ("bestiary-demo", 4, 2)
    assert spectrum.initial_words == "creature" and spectrum.provenance["steps"] == learned.steps == 4
    assert all(not torch.allclose(spectrum.matrix()[stage], start) for stage in range(4))
    assert torch.allclose(spectrum.matrix().norm(dim=-1), start.norm(dim=-1).expand(4, -1), rtol=1e-4)
    assert spectrum.provenance["pictures"] == ["picture 1", "picture 2", "picture 3"]


# --- the model afterwards -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_untouched_after_success(kind: str, prepared, untouched) -> None:
    loaded, pictures, settings = prepared(kind, steps=2, recompute=True, preview_every=1)
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"preview_steps": 1})})
    untouched(loaded)
    assert _train(loaded, pictures, settings, _run(settings, pictures)).steps == 2


def test_recomputing_gives_the_same_losses(prepared) -> None:
    losses = []
    for recompute in (False, True):
        loaded, pictures, settings = prepared("sd15", steps=3, recompute=recompute)
        losses.append(_train(loaded, pictures, settings, _run(settings, pictures)).losses)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_cancel_saves_a_spectrum_and_a_state_and_resume_gives_the_same(
    prepared, untouched, outputs, cancelled_in_step_three
) -> None:
    loaded, pictures, settings = prepared("sd15", steps=6)
    untouched(loaded)
    whole = _train(loaded, pictures, settings, _run(settings, pictures))
    cancelled_in_step_three(lambda: _train(loaded, pictures, settings, _run(settings, pictures)))
    stopped = load_spectrum(outputs / "models" / "bestiary" / "corgi-2_stopped.safetensors")
    assert stopped.provenance["steps"] == 3
    run = _run(settings, pictures, "corgi-2")
    assert run.newest_state().step == 3
    resumed = _train(loaded, pictures, settings, run)
    assert resumed.losses == whole.losses
    assert torch.equal(resumed.concept.matrix(), whole.concept.matrix())
    assert torch.equal(load_spectrum(run.path / "corgi.safetensors").matrix(), whole.concept.matrix())


def test_cancel_in_the_middle_of_a_preview_ends_it(prepared, untouched, outputs, monkeypatch) -> None:
    import comfy.model_management
    from bestiary.nodes.denoiser.comfy_network import ComfyNetwork

    loaded, pictures, settings = prepared("sd15", steps=4, preview_every=2, more_settings="run.preview_steps = 3")
    untouched(loaded)
    run, predict, calls = _run(settings, pictures), ComfyNetwork.predict, []

    def cancel_in_the_first_preview(self: ComfyNetwork, *inputs: object) -> object:
        calls.append(torch.is_grad_enabled())
        if not calls[-1]:
            comfy.model_management.interrupt_current_processing(True)
        return predict(self, *inputs)

    with monkeypatch.context() as patch:
        patch.setattr(ComfyNetwork, "predict", cancel_in_the_first_preview)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            _train(loaded, pictures, settings, run)
    # two steps, then one step of the sampler with and without the prompt; newer ComfyUIs end inside the first of these
    assert calls in ([True, True, False, False], [True, True, False])
    assert list(run.samples.iterdir()) == [] and run.newest_state().step == 2


def test_a_loss_that_is_not_finite_names_its_pictures(prepared, untouched) -> None:
    loaded, pictures, settings = prepared("sd15", steps=3)
    untouched(loaded)
    spoilt = replace(pictures, moments=np.full_like(pictures.moments, np.nan))
    with pytest.raises(
        BestiaryError, match=r"the loss of step 1 is not finite .* its batch 0 contains picture \d+, picture"
    ):
        _train(loaded, spoilt, settings, _run(settings, spoilt))


def test_too_little_memory_is_one_message_that_says_what_to_lower(prepared, untouched, out_of_memory) -> None:
    loaded, pictures, settings = prepared("sd15", steps=3)
    untouched(loaded)
    message = out_of_memory(lambda: _train(loaded, pictures, settings, _run(settings, pictures)))
    assert "out of memory in training: lower batch_size 3 " in message
    assert "switching recompute on, or the image_size 128, or close other programs" in message
    assert "rank" not in message and "Training Images" not in message


def test_previews_show_the_concept_and_every_stage(prepared, outputs, monkeypatch) -> None:
    import comfy.utils

    shown = []
    monkeypatch.setattr(
        comfy.utils.ProgressBar,
        "update_absolute",
        lambda self, done, total=None, preview=None: shown.append((done, preview)),
    )
    more = "run.preview_steps = 1\nrun.preview_count = 1"
    loaded, pictures, settings = prepared("demo", steps=4, preview_every=2, more_settings=more, initial_words="")
    run = _run(settings, pictures)
    shown.clear()
    learned = _train(loaded, pictures, settings, run)
    assert [(done, preview[0]) for done, preview in shown if preview] == [(2, "JPEG"), (4, "JPEG")]
    assert sorted(path.name for path in run.samples.iterdir()) == ["step-0000002.png", "step-0000004.png"]
    # a picture, its concept, and four stages alone, in rows of five
    assert learned.preview.width > 5 * 160 and learned.preview.height > 2 * 160


def test_preview_pictures_are_those_of_the_other_denoiser(prepared, monkeypatch) -> None:
    """From the same vectors and noise, however many are made at once."""
    from bestiary.concepts.denoiser.ddim import sample_ddim
    from bestiary.concepts.spectrum.staged_conditioning import encode_staged
    from bestiary.nodes.training import node_previews
    from bestiary.trainer.learning.spectrum import spectrum_objective_setup
    from bestiary.trainer.learning.spectrum.spectrum_sheet import sheet_prompts, sheet_seeds
    from bestiary.trainer.model.backbones import load_denoiser

    made = []
    sheet = spectrum_objective_setup.spectrum_sheet
    monkeypatch.setattr(
        spectrum_objective_setup,
        "spectrum_sheet",
        lambda real, names, pictures, stages: made.append(pictures) or sheet(real, names, pictures, stages),
    )
    monkeypatch.setattr(node_previews, "PIXELS_AT_ONCE", 4 * 128**2)
    more = "run.preview_steps = 4\nrun.preview_count = 2"
    loaded, pictures, settings = prepared("demo", steps=1, more_settings=more, initial_words="creature")
    learned = _train(loaded, pictures, settings, _run(settings, pictures))
    denoiser, stages = load_denoiser("demo", device="cpu", dtype="fp32"), range(4)
    told = encode_staged(denoiser, sheet_prompts(learned.concept, "a photo of a {}", 2, stages))
    options = {"steps": 4, "guidance": settings.run.preview_guidance, "size": 128, "seeds": sheet_seeds(2, stages)}
    theirs = sample_ddim(denoiser, told.at, denoiser.empty_conditioning(), **options)
    assert made[0].shape == theirs.shape == (6, 3, 128, 128)
    assert (made[0] - theirs).abs().max() < 1e-3
    # one seed, one stage after another: each says something of its own
    assert not torch.allclose(made[0][2], made[0][3], atol=1e-3)


def test_curves_have_labels(prepared) -> None:
    import json

    loaded, pictures, settings = prepared("sd15", steps=1)
    run = _run(settings, pictures)
    _train(loaded, pictures, settings, run)
    assert json.loads((run.path / "curve_labels.json").read_text())["stage_loss"] == [
        f"stage {number}" for number in (1, 2, 3, 4)
    ]
    assert len(run.read_log()[0]["stage_loss"]) == 4
