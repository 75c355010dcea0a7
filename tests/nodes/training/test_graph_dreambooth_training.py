"""DreamBooth on ComfyUI's weights: the losses of the command line, models untouched, stops that keep what was learned."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from safetensors.torch import load_file

KINDS = ("demo", "sd15", "sdxl")
STEPS = 4
CHEAP = {"name": "bird", "instance_prompt": "a red bird", "class_prompt": "a bird", "steps": STEPS, "rank": 2}
CHEAP |= {"lora_lr": 1e-3, "batch_size": 2, "image_size": 128, "seed": 3, "preview_every": 0, "prior": "pictures"}


@pytest.fixture
def prepared(request: pytest.FixtureRequest, drawn_images) -> Callable[..., tuple]:
    """`prepared(kind, **choices)` -> GraphModel, pictures and settings: three drawings of the thing, two of its class."""

    def build(kind: str, **choices: object) -> tuple:
        from bestiary.nodes.host.graph_progress import GraphProgress
        from bestiary.nodes.training.dreambooth_job import dreambooth_settings
        from bestiary.nodes.training.graph_dreambooth_training import DreamBoothPictures
        from bestiary.nodes.training.graph_fit import GraphModel
        from bestiary.nodes.training.spectrum_pictures import prepare_pictures

        loaded = GraphModel(*request.getfixturevalue(f"{kind}_model"))
        settings = dreambooth_settings({**CHEAP, **choices})
        with torch.inference_mode():
            both = [
                prepare_pictures([some], None, loaded.vae, 128, False, GraphProgress(None))
                for some in (drawn_images[:3], drawn_images[3:5])
            ]
        pictures = DreamBoothPictures(both[0], both[1] if settings.method.prior == "pictures" else None)
        return loaded, pictures, settings

    return build


def _run(settings: object, pictures: object, resume: str = "start anew") -> object:
    from bestiary.nodes.runs.training_runs import open_run

    return open_run("bird", resume, settings, pictures.fingerprint())


def _train(loaded: object, pictures: object, settings: object, run: object) -> object:
    from bestiary.nodes.training.graph_dreambooth_training import DreamBoothInGraph
    from bestiary.nodes.training.graph_fit import train_in_graph

    with torch.inference_mode():  # as ComfyUI's executor runs nodes
        return train_in_graph(loaded, DreamBoothInGraph(pictures, settings, loaded.vae), run)


def _set_up(denoiser: object, pictures: object, settings: object) -> object:
    """The standalone trainer's training from the same pictures and seed."""
    from bestiary.trainer.learning.dreambooth.dreambooth_setup import set_up_dreambooth
    from bestiary.trainer.learning.pictures.latent_cache import LatentCache

    cache = LatentCache(pictures.moments())
    return set_up_dreambooth(settings, denoiser, pictures.names, len(pictures.instance.names), cache)


@pytest.mark.parametrize(("kind", "prior"), [*((kind, "pictures") for kind in KINDS), ("demo", "model")])
@pytest.mark.parametrize("steps", [STEPS, pytest.param(20, marks=pytest.mark.slow)])
def test_losses_are_those_of_the_command_line(
    kind: str, prior: str, steps: int, prepared, diffusers_denoiser, command_line_losses
) -> None:
    loaded, pictures, settings = prepared(kind, lora_lr=1e-4, prior=prior, steps=steps)
    run = _run(settings, pictures)
    ours = _train(loaded, pictures, settings, run)
    theirs = command_line_losses(lambda: _set_up(diffusers_denoiser(kind), pictures, settings))
    assert len(ours.losses) == len(theirs) == len(set(ours.losses)) == steps
    assert np.abs(np.array(ours.losses) - np.array(theirs)).max() < 1e-4
    # the log rounds to six digits
    for line in run.read_log():
        assert line["loss"] == pytest.approx(line["instance_loss"] + line["prior_loss"], rel=1e-5, abs=2e-6)


def test_the_loss_is_the_subject_and_the_weighed_class(prepared) -> None:
    """Bit for bit, on the numbers themselves."""
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    loaded, pictures, settings = prepared("sd15", prior_weight=0.7)
    denoiser = ComfyDenoiser(loaded.model, loaded.clip, loaded.vae)
    with torch.random.fork_rng(), denoiser.training():
        training = _set_up(denoiser, pictures, settings)
        curves = training.objective(training.batches.draw(0, 0)).curves
        assert torch.equal(curves["loss"], curves["instance_loss"] + 0.7 * curves["prior_loss"])
        assert curves["loss"].dtype == torch.float32 and curves["prior_loss"] > 0


def test_a_learned_identifier_trains_as_on_the_command_line(prepared, diffusers_denoiser, command_line_losses) -> None:
    loaded, pictures, settings = prepared(
        "sdxl", steps=5, vectors=2, instance_prompt="a {} bird", initial_words="red", lora_lr=1e-4,
        more_settings="optimizer.vector_lr = 0.03",
    )  # fmt: skip
    ours = _train(loaded, pictures, settings, _run(settings, pictures))
    theirs = command_line_losses(lambda: _set_up(diffusers_denoiser("sdxl"), pictures, settings))
    assert np.abs(np.array(ours.losses) - np.array(theirs)).max() < 1e-4
    assert {name: len(vectors) for name, vectors in ours.concept.vectors.items()} == {"clip_l": 2, "clip_g": 2}


# --- the model afterwards -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_the_model_is_untouched_after_success(kind: str, prepared, untouched) -> None:
    loaded, pictures, settings = prepared(
        kind, steps=2, recompute=True, preview_every=1, prior="model", more_settings="run.preview_steps = 1"
    )
    untouched(loaded)
    assert _train(loaded, pictures, settings, _run(settings, pictures)).steps == 2


def test_recomputing_gives_the_same_losses(prepared) -> None:
    losses = []
    for recompute in (False, True):
        loaded, pictures, settings = prepared("sd15", steps=3, recompute=recompute)
        losses.append(_train(loaded, pictures, settings, _run(settings, pictures)).losses)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_cancel_saves_a_lora_and_a_state_and_resume_gives_the_same(
    prepared, untouched, outputs, cancelled_in_step_three
) -> None:
    loaded, pictures, settings = prepared("sd15", steps=6, vectors=1, instance_prompt="a {} bird")
    untouched(loaded)
    whole = _train(loaded, pictures, settings, _run(settings, pictures))
    cancelled_in_step_three(lambda: _train(loaded, pictures, settings, _run(settings, pictures)))
    kept = load_file(outputs / "models" / "loras" / "bird-2_stopped.safetensors")
    assert kept.keys() == dict(whole.concept.tensors).keys()
    assert (outputs / "models" / "embeddings" / "bird-2_stopped_identifier.safetensors").is_file()
    run = _run(settings, pictures, "bird-2")
    assert run.newest_state().step == 3
    resumed = _train(loaded, pictures, settings, run)
    assert resumed.losses == whole.losses
    for name, tensor in whole.concept.tensors.items():
        assert torch.equal(resumed.concept.tensors[name], tensor)
    assert torch.equal(resumed.concept.vectors["clip_l"], whole.concept.vectors["clip_l"])


def test_a_loss_that_is_not_finite_names_its_pictures(prepared, untouched) -> None:
    loaded, pictures, settings = prepared("sd15", steps=3)
    untouched(loaded)
    nothing = replace(pictures.instance, moments=np.full_like(pictures.instance.moments, np.nan))
    spoilt = replace(pictures, instance=nothing)
    with pytest.raises(BestiaryError, match=r"the loss of step 1 is not finite .* picture \d.*class picture \d"):
        _train(loaded, spoilt, settings, _run(settings, spoilt))


def test_too_little_memory_is_one_message_that_says_what_to_lower(prepared, untouched, out_of_memory) -> None:
    loaded, pictures, settings = prepared("sd15", steps=3)
    untouched(loaded)
    message = out_of_memory(lambda: _train(loaded, pictures, settings, _run(settings, pictures)))
    assert "out of memory in training: lower batch_size 2 " in message
    assert "switching recompute on, or the image_size 128, or close other programs" in message


def test_previews_show_the_subject_and_its_class(prepared, monkeypatch) -> None:
    import comfy.utils

    shown = []
    monkeypatch.setattr(
        comfy.utils.ProgressBar,
        "update_absolute",
        lambda self, done, total=None, preview=None: shown.append((done, preview)),
    )
    more = "run.preview_steps = 1\nrun.preview_count = 2"
    loaded, pictures, settings = prepared(
        "demo", steps=4, preview_every=2, more_settings=more,
        instance_prompt="a striped creature", class_prompt="a creature",
    )  # fmt: skip
    run = _run(settings, pictures)
    shown.clear()
    learned = _train(loaded, pictures, settings, run)
    assert [done for done, preview in shown if preview] == [2, 4]
    assert sorted(path.name for path in run.samples.iterdir()) == ["step-0000002.png", "step-0000004.png"]
    # two columns: the thing, made from its prompt, made from the class prompt
    assert learned.preview.height > learned.preview.width > 2 * 160
