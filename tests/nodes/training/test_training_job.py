"""From the inputs of the part training nodes to settings, training and outputs."""

from types import SimpleNamespace

import pytest
import torch
from bestiary.concepts.errors import BestiaryError

CHOICES = {"name": "birds", "steps": 1, "batch_size": 2, "accumulation": 1, "token_lr": 0.1, "lora_lr": 1e-3}
CHOICES |= {"attention_loss": "softmax", "attention_weight": 0.2, "rank": 2, "seed": 3, "preview_every": 0}
CHOICES |= {"recompute": True, "resume": "start anew", "more_settings": "run.preview_steps = 1\nrun.preview_count = 1"}


@pytest.fixture(scope="module")
def training_set(demo_model, drawn_images, small_codebook) -> object:
    """Four drawings at 128 pixels."""
    from bestiary.nodes.host.graph_progress import GraphProgress
    from bestiary.nodes.host.socket_types import NamedCodebook
    from bestiary.nodes.training.training_set import TrainingSetChoice, build_training_set

    codebook, choice = NamedCodebook("drawn", small_codebook), TrainingSetChoice(128, True)
    return build_training_set([drawn_images[:4]], codebook, demo_model.vae, choice, GraphProgress(None))


def test_inputs_become_the_settings_they_are() -> None:
    from bestiary.nodes.training.training_job import KEYS, graph_settings
    from bestiary.nodes.training.training_nodes import TrainParts

    settings = graph_settings(CHOICES, SimpleNamespace(image_size=128, flip=True))
    optimizer = settings.optimizer
    assert (optimizer.steps, optimizer.batch_size, optimizer.accumulation) == (1, 2, 1)
    assert (optimizer.token_lr, optimizer.lora_lr, settings.lora.rank) == (0.1, 1e-3, 2)
    assert (settings.attention_loss.form, settings.attention_loss.weight) == ("softmax", 0.2)
    assert (settings.run.name, settings.run.seed, settings.run.log_every) == ("birds", 3, 1)
    assert (settings.images.size, settings.images.flip) == (128, True)
    assert settings.base.checkpointing and settings.base.path == "graph"
    assert set(KEYS) <= {one.id for one in TrainParts.define_schema().inputs}


@pytest.mark.parametrize("more", ["images.margin = 0.1", 'method.kind = "textual_inversion"'])
def test_settings_that_a_graph_cannot_follow(more: str) -> None:
    from bestiary.nodes.training.training_job import graph_settings

    with pytest.raises(BestiaryError, match="method.kind, method.ids and images.margin are decided by Training Images"):
        graph_settings({**CHOICES, "more_settings": more}, SimpleNamespace(image_size=128, flip=False))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('images.cache = "/var/latents"', "more_settings: images.cache is decided by what is connected"),
        ('run.out = "../../elsewhere"', "more_settings: run.out is decided by what is connected"),
        ('run.name = "../../evil"', r"run\.name = '../../evil': it contains '/'"),
    ],
)
def test_more_settings_name_no_place_on_this_machine(more: str, message: str) -> None:
    from bestiary.nodes.training.training_job import graph_settings

    with pytest.raises(BestiaryError, match=message):
        graph_settings({**CHOICES, "more_settings": more}, SimpleNamespace(image_size=128, flip=False))


def test_a_name_that_the_clip_knows_is_told_at_once(demo_model, training_set, runs, monkeypatch) -> None:
    from bestiary.nodes.training import training_job
    from bestiary.nodes.training.graph_fit import GraphModel

    monkeypatch.setattr(training_job, "dictionaries_of", lambda clip: {"birds": object()})
    with pytest.raises(BestiaryError, match="the CLIP knows a dictionary 'birds' already: give this training another"):
        training_job.run_graph_training(GraphModel(*demo_model), training_set, CHOICES, None)
    assert not runs.exists()


def test_outputs_are_those_of_the_node(demo_model, training_set, runs) -> None:
    from bestiary.nodes.part_prompt.clip_tokens import dictionaries_of
    from bestiary.nodes.training.graph_fit import GraphModel
    from bestiary.nodes.training.training_job import run_graph_training

    with torch.inference_mode():
        made = run_graph_training(GraphModel(*demo_model), training_set, CHOICES, None)
    assert made.dictionary.name == "birds" and set(dictionaries_of(made.clip)) == {"birds"}
    assert made.model is not demo_model.model and not dictionaries_of(demo_model.clip)
    assert len(made.loss_map["loss"]) == 1 and made.preview.shape[0] == 1
    rows = len(made.dictionary.dictionary.rows)
    assert made.text.startswith(f"{rows} tokens learned in 1 steps, loss ") and made.text.endswith("bestiary/birds")
    assert (runs / "birds" / "birds.safetensors").is_file()


def test_a_training_in_its_own_process_gets_the_same_settings(training_set, monkeypatch) -> None:
    from bestiary.nodes.training import training_job

    told: list[tuple] = []
    monkeypatch.setattr(training_job, "train_in_background", lambda *given: told.append(given) or ("made", "birds_2"))
    named, file = training_job.run_background_training(training_set, "demo", CHOICES, "5")
    assert (named.name, named.dictionary, file) == ("birds", "made", "birds_2")
    made_from, base, settings, name, resume, _ = told[0]
    assert made_from is training_set and (base, name, resume) == ("demo", "birds", "start anew")
    assert settings == training_job.graph_settings(CHOICES, training_set)
