"""From the inputs of Train DreamBooth to its outputs: settings, checks before pictures are encoded, what comes out."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from safetensors.torch import load_file
from torch import nn

CHOICES = {"name": "moth", "instance_prompt": "a striped creature", "class_prompt": "a creature", "steps": 2, "rank": 2}
CHOICES |= {"lora_lr": 0.01, "batch_size": 2, "prior": "auto", "prior_weight": 1.0, "vectors": 0, "image_size": 0}
CHOICES |= {"seed": 4, "preview_every": 0, "recompute": False, "resume": "start anew"}
CHOICES |= {"more_settings": "run.preview_steps = 1\nrun.preview_count = 1"}
IDENTIFIER = {"vectors": 2, "instance_prompt": "a {} creature", "initial_words": "striped"}


@pytest.fixture
def train(demo_model, drawn_images) -> Callable[..., object]:
    """`train(model=..., class_images=..., **choices)` -> outputs of a training of two steps on two drawings."""

    def build(
        model: object = None,
        clip: object = None,
        vae: object = None,
        class_images: list | None = None,
        **choices: object,
    ) -> object:
        from bestiary.nodes.training.dreambooth_job import ConnectedSubject, run_dreambooth_training
        from bestiary.nodes.training.graph_fit import GraphModel

        loaded = GraphModel(model or demo_model.model, clip or demo_model.clip, vae or demo_model.vae)
        with torch.inference_mode():
            return run_dreambooth_training(
                loaded, ConnectedSubject([drawn_images[:2]], class_images), {**CHOICES, **choices}, None
            )

    return build


def test_inputs_become_the_settings_they_are() -> None:
    from bestiary.nodes.training.dreambooth_job import dreambooth_settings

    settings = dreambooth_settings({**CHOICES, **IDENTIFIER, "prior": "off", "image_size": 256, "recompute": True})
    method, optimizer = settings.method, settings.optimizer
    assert (method.prior, method.vectors, method.initial_words) == ("off", 2, "striped")
    assert (optimizer.steps, optimizer.batch_size, optimizer.lora_lr, settings.lora.rank) == (2, 2, 0.01, 2)
    assert (settings.run.name, settings.run.seed, settings.images.size) == ("moth", 4, 256)
    assert settings.captions.instance_prompt == "a {} creature" and settings.base.checkpointing


def test_the_defaults_of_the_node_are_those_of_the_command_line() -> None:
    from bestiary.nodes.training.dreambooth_job import KEYS, dreambooth_settings
    from bestiary.nodes.training.dreambooth_training_nodes import TrainDreamBooth
    from bestiary.trainer.learning.dreambooth.dreambooth_settings import TrainDreamBoothSettings

    shown = {one.id: one.default for one in TrainDreamBooth.define_schema().inputs if hasattr(one, "default")}
    ours, theirs = dreambooth_settings({**shown, "prior": "pictures"}), TrainDreamBoothSettings()
    assert (ours.method, ours.captions, ours.lora, ours.optimizer) == (
        theirs.method, theirs.captions, theirs.lora, theirs.optimizer,
    )  # fmt: skip
    assert ours.images == theirs.images and set(KEYS) <= set(shown)


def test_outputs_are_those_of_the_node(train, demo_model, drawn_images, runs: Path, outputs: Path) -> None:
    import comfy.sd

    made = train(class_images=[drawn_images[2:4]], save=True)
    assert made.run == "moth" and len(made.loss_map["loss"]) == 2 and made.clip is demo_model.clip
    assert made.preview.shape[0] == 1 and made.preview.min() >= 0 and made.preview.max() <= 1
    assert made.text.startswith("adapters on ") and made.text.endswith("saved as models/loras/moth.safetensors")
    # core's loader takes LORA_MODEL and reaches the same layers
    theirs, _ = comfy.sd.load_lora_for_models(demo_model.model, None, made.lora, 1.0, 0)
    layers = sum(name.endswith(".alpha") for name in made.lora)
    assert made.model.patches.keys() == theirs.patches.keys() and len(theirs.patches) == layers > 0
    assert not demo_model.model.patches
    kept = load_file(outputs / "models" / "loras" / "moth.safetensors")
    assert kept.keys() == made.lora.keys() and all(torch.equal(kept[name], made.lora[name]) for name in kept)
    # the run tells what it learned from, and nothing is replaced
    lines = [line for line in (runs / "moth" / "log.jsonl").read_text().splitlines() if "prior_loss" in line]
    assert len(lines) == 2
    assert train(save=True, prior="off").text.endswith("moth_2.safetensors")


def test_without_pictures_the_models_own_predictions_keep_the_class(train) -> None:
    from bestiary.nodes.training.dreambooth_job import chosen_prior

    assert [chosen_prior("auto", there) for there in (True, False)] == ["pictures", "model"]
    assert [chosen_prior(name, True) for name in ("model", "off", "pictures")] == ["model", "off", "pictures"]
    with pytest.raises(BestiaryError, match="needs pictures of the class: connect class_images, or choose 'model'"):
        train(prior="pictures")


def test_the_clip_knows_the_learned_identifier(train, demo_model) -> None:
    made = train(**IDENTIFIER, save=True, prior="off")
    tokens = made.clip.tokenize("a embedding:moth_identifier, creature")
    (rows,) = tokens.values()
    vectors = [entry[0] for entry in rows[0] if isinstance(entry[0], torch.Tensor)]
    assert len(vectors) == 2 and all(vector.shape == (128,) for vector in vectors)
    plain = [entry[0] for entry in made.clip.tokenize("a , creature")["l"][0]]
    assert [entry[0] for entry in rows[0] if not isinstance(entry[0], torch.Tensor)][:4] == plain[:4]
    # the CLIP that was connected does not, and clones of the new one do
    assert not any(
        isinstance(entry[0], torch.Tensor) for entry in demo_model.clip.tokenize("a embedding:moth_identifier")["l"][0]
    )
    again = made.clip.clone().tokenize("embedding:moth_identifier")["l"][0]
    assert sum(isinstance(entry[0], torch.Tensor) for entry in again) == 2


def test_part_dictionaries_of_the_clip_stay_known(train, demo_model, runs: Path) -> None:
    from bestiary.concepts.files.pack import ROOT
    from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
    from bestiary.nodes.host.socket_types import NamedDictionary
    from bestiary.nodes.part_prompt.clip_tokens import dictionaries_of
    from bestiary.nodes.part_prompt.taught_clip import with_dictionary

    dictionary = PartDictionary.load(ROOT / "demo" / "concepts" / "creatures.safetensors")
    taught = with_dictionary(demo_model.clip, NamedDictionary("creatures", dictionary))
    made = train(clip=taught, **IDENTIFIER, prior="off")
    assert set(dictionaries_of(made.clip)) == {"creatures"}
    found = made.clip.tokenize("embedding:moth_identifier")["l"][0]
    assert sum(isinstance(entry[0], torch.Tensor) for entry in found) == 2


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"class_prompt": "A striped  creature"}, "class_prompt equals captions.instance_prompt"),
        ({"instance_prompt": "a zebrafish creature"}, "does not know 'zebrafish'"),
        ({"instance_prompt": "a {} creature"}, "method.vectors is 0"),
        ({"instance_prompt": "striped " + "creature " * 90}, "has more tokens than the text encoder"),
        ({"name": "../evil"}, "cannot be used as the name of a training"),
        ({"more_settings": 'images.instance = "/etc"'}, "images.instance is decided by what is connected"),
        ({"more_settings": 'method.prior = "off"'}, "method.prior is decided by what is connected"),
    ],
)
def test_what_is_wrong_is_told_before_pictures_are_encoded(
    choices: dict, message: str, train, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bestiary.nodes.training import dreambooth_job

    monkeypatch.setattr(dreambooth_job, "prepare_pictures", lambda *inputs: pytest.fail("pictures were encoded"))
    with pytest.raises(BestiaryError) as fault:
        train(**choices)
    assert message in str(fault.value)
    assert not runs.exists()


def test_models_that_cannot_be_trained_on_are_told(train, demo_model, sd15_model, sdxl_model, runs: Path) -> None:
    """DeepFloyd IF has another text encoder, SD3 learns a flow, and fp8 weights take no gradient."""
    import comfy.model_sampling

    model = demo_model.model.clone()

    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    model.add_object_patch("model_sampling", Flow(model.model.model_config))
    with pytest.raises(BestiaryError, match="connect one that predicts noise or velocity"):
        train(model=model)
    with pytest.raises(BestiaryError, match="do not belong together"):
        train(model=sd15_model[0], clip=sdxl_model[1], vae=sd15_model[2])
    with pytest.raises(BestiaryError, match="this VAE makes latents of 4 channels"):
        train(vae=sd15_model[2])
    assert not runs.exists()


def test_a_quantised_model_is_told_and_stays_as_it_was(train, demo_model) -> None:
    network = demo_model.model.model.diffusion_model
    name, layer = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear))
    weight = layer.weight
    layer.weight = nn.Parameter(weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    try:
        with pytest.raises(BestiaryError, match="quantised weights cannot be trained on; load the model in fp16"):
            train()
    finally:
        layer.weight = weight
    assert train(prior="off").run.startswith("moth"), name


def test_a_run_goes_on_only_with_what_it_began_with(train, drawn_images) -> None:
    train(prior="off")
    with pytest.raises(BestiaryError, match=r"was started with lora.rank 2, not 4: set what it had"):
        train(prior="off", rank=4, resume="moth")
    with pytest.raises(BestiaryError, match="was trained on other pictures or masks"):
        train(class_images=[drawn_images[2:4]], resume="moth")
    assert train(prior="off", steps=3, resume="go on with the newest").loss_map["loss"][2:]
