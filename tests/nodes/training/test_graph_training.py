"""Training on ComfyUI's weights: the losses of the command line, models untouched, stops that keep what was learned."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary

KINDS = ("demo", "sd15", "sdxl")
STEPS = 5


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
        from bestiary.nodes.training.graph_fit import GraphModel
        from bestiary.nodes.training.training_job import graph_settings
        from bestiary.nodes.training.training_set import TrainingSetChoice, build_training_set

        loaded = GraphModel(*models(kind))
        if kind not in _made:
            codebook, choice = NamedCodebook("drawn", small_codebook), TrainingSetChoice(128)
            _made[kind] = build_training_set([drawn_images], codebook, loaded.vae, choice, GraphProgress(None))
        made = _made[kind]
        more = "attention_loss.downsampling = [2]\n" if not kind.startswith("demo") else ""
        given = {"name": "parts", "steps": STEPS, "batch_size": 2, "accumulation": 2, "token_lr": 0.1, "lora_lr": 1e-3}
        given |= {"attention_weight": 0.2, "rank": 2, "seed": 3, "preview_every": 0, **choices}
        given["more_settings"] = more + str(choices.get("more_settings", ""))
        return loaded, made, graph_settings(given, made)

    return build


def _run(settings: object, fingerprint: str, resume: str = "start anew") -> object:
    from bestiary.nodes.runs.training_runs import open_run

    return open_run("parts", resume, settings, fingerprint)


def _train(loaded: object, made: object, settings: object, run: object) -> object:
    from bestiary.nodes.training.graph_fit import train_in_graph
    from bestiary.nodes.training.graph_training import PartsInGraph

    with torch.inference_mode():  # as ComfyUI's executor runs nodes
        return train_in_graph(loaded, PartsInGraph(made, settings), run)


@pytest.mark.parametrize("kind", [*KINDS, "demo_dit"])
@pytest.mark.parametrize("steps", [STEPS, pytest.param(20, marks=pytest.mark.slow)])
def test_losses_are_those_of_the_command_line(
    kind: str, steps: int, prepared, diffusers_denoiser, command_line_losses
) -> None:
    """At the default rates; a hundred times faster ones let Adam blow rounding up to the bound."""
    from bestiary.trainer.learning.parts.objective_setup import set_up_parts
    from bestiary.trainer.learning.pictures.latent_cache import LatentCache

    loaded, made, settings = prepared(kind, token_lr=1e-3, lora_lr=1e-4, steps=steps)
    ours = _train(loaded, made, settings, _run(settings, made.fingerprint()))
    cache = LatentCache(made.moments)
    theirs = command_line_losses(
        lambda: set_up_parts(settings, diffusers_denoiser(kind), made.names, made.kinds, cache)
    )
    assert len(ours.losses) == len(theirs) == steps
    assert np.abs(np.array(ours.losses) - np.array(theirs)).max() < 1e-4
    assert ours.losses[0] != ours.losses[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_untouched_after_success(kind: str, prepared, untouched) -> None:
    loaded, made, settings = prepared(kind, steps=2, recompute=True)
    untouched(loaded)
    learned = _train(loaded, made, settings, _run(settings, made.fingerprint()))
    assert len(learned.concept.rows) == len(made.kinds.rows()) and learned.steps == 2


def test_cancel_saves_a_dictionary_and_a_state_and_resume_gives_the_same(
    prepared, outputs, cancelled_in_step_three, untouched
) -> None:
    loaded, made, settings = prepared("sd15", steps=6)
    check = untouched(loaded)
    whole = _train(loaded, made, settings, _run(settings, made.fingerprint()))
    cancelled_in_step_three(lambda: _train(loaded, made, settings, _run(settings, made.fingerprint())))
    check()
    stopped = PartDictionary.load(outputs / "models" / "bestiary" / "parts-2_stopped.safetensors")
    assert stopped.provenance["steps"] == 3
    run = _run(settings, made.fingerprint(), "parts-2")
    assert run.newest_state().step == 3
    resumed = _train(loaded, made, settings, run)
    assert resumed.losses == whole.losses
    assert torch.equal(resumed.concept.matrix(), whole.concept.matrix())
    assert all(torch.equal(resumed.concept.lora[name], tensor) for name, tensor in whole.concept.lora.items())


def test_a_loss_that_is_not_finite_names_its_pictures(prepared, untouched) -> None:
    from dataclasses import replace

    loaded, made, settings = prepared("sd15", steps=3)
    check = untouched(loaded)
    spoilt = replace(made, moments=np.full_like(made.moments, np.nan))
    with pytest.raises(
        BestiaryError, match=r"the loss of step 1 is not finite .* its batch 0 contains picture \d+, picture"
    ):
        _train(loaded, spoilt, settings, _run(settings, made.fingerprint()))
    check()


def test_too_little_memory_is_one_message_that_says_what_to_lower(prepared, out_of_memory, untouched) -> None:
    loaded, made, settings = prepared("sd15", steps=3)
    check = untouched(loaded)
    message = out_of_memory(lambda: _train(loaded, made, settings, _run(settings, made.fingerprint())))
    assert re.search(r"out of memory in training: lower batch_size 2 .*, or memory by switching ", message)
    check()


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
    from bestiary.nodes.training.graph_fit import GraphModel

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
    with pytest.raises(BestiaryError, match="no run 'go on with the newest' to resume in output/bestiary; .* none yet"):
        open_run("parts", "go on with the newest", settings, made.fingerprint())
    _run(settings, made.fingerprint())
    assert resume_choices() == ["start anew", "go on with the newest", "parts"]
    with pytest.raises(BestiaryError, match="run parts was trained on other pictures or parts than this training set"):
        open_run("parts", "parts", settings, "0" * 16)
    with pytest.raises(BestiaryError, match=r"no run '../../evil' to resume in output/bestiary"):
        open_run("parts", "../../evil", settings, made.fingerprint())
    with pytest.raises(BestiaryError, match="'../evil' cannot be used as the name of a training"):
        open_run("../evil", "start anew", settings, made.fingerprint())


def test_settings_that_are_wrong_are_told(prepared) -> None:
    with pytest.raises(BestiaryError, match="optimizer.stepz: no such key; did you mean 'steps'?"):
        prepared("sd15", more_settings="optimizer.stepz = 4")
    with pytest.raises(BestiaryError, match="more_settings is not valid TOML"):
        prepared("sd15", more_settings="optimizer steps 4")
    with pytest.raises(BestiaryError, match="more_settings: method.kind, method.ids and images.margin are decided"):
        prepared("sd15", more_settings="images.margin = 0.2")
    assert prepared("sd15", more_settings='captions.noun = "bird"')[2].captions.noun == "bird"
