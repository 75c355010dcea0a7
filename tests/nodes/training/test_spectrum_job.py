"""From the inputs of Train Spectrum to its outputs: settings, checks before pictures are encoded, what comes out."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError

CHOICES = {"name": "moth", "initial_words": "creature", "stages": 3, "vectors": 2, "steps": 2, "batch_size": 2}
CHOICES |= {"vector_lr": 0.5, "image_size": 0, "seed": 4, "preview_every": 0, "recompute": False}
CHOICES |= {"resume": "start anew", "more_settings": "run.preview_steps = 1\nrun.preview_count = 1"}


@pytest.fixture
def train(demo_model, drawn_images) -> Callable[..., object]:
    """`train(vae=..., images=..., **choices)` -> outputs of a training of two steps on two drawings."""

    def build(vae: object = None, images: list | None = None, masks: list | None = None, **choices: object) -> object:
        from bestiary.nodes.training.graph_fit import GraphModel
        from bestiary.nodes.training.spectrum_job import ConnectedPictures, run_spectrum_training

        loaded = GraphModel(demo_model.model, demo_model.clip, vae or demo_model.vae)
        concept = ConnectedPictures([drawn_images[:2]] if images is None else images, masks)
        with torch.inference_mode():
            return run_spectrum_training(loaded, concept, {**CHOICES, **choices}, None)

    return build


def test_inputs_become_the_settings_they_are() -> None:
    from bestiary.nodes.training.spectrum_job import spectrum_settings

    settings = spectrum_settings({**CHOICES, "image_size": 256, "recompute": True})
    method, optimizer = settings.method, settings.optimizer
    assert (method.initial_words, method.stages, method.vectors) == ("creature", 3, 2)
    assert (optimizer.steps, optimizer.batch_size, optimizer.vector_lr) == (2, 2, 0.5)
    assert (settings.run.name, settings.run.seed, settings.images.size) == ("moth", 4, 256)
    assert settings.base.checkpointing and settings.base.path == "graph"
    assert (settings.run.log_every, settings.run.tensorboard) == (1, False)
    assert spectrum_settings(CHOICES).images.size is None


def test_the_defaults_of_the_node_are_those_of_the_command_line() -> None:
    from bestiary.nodes.training.spectrum_job import KEYS, spectrum_settings
    from bestiary.nodes.training.spectrum_training_nodes import TrainSpectrum
    from bestiary.trainer.learning.spectrum.spectrum_settings import TrainSpectrumSettings

    shown = {one.id: one.default for one in TrainSpectrum.define_schema().inputs if hasattr(one, "default")}
    ours, theirs = spectrum_settings(shown), TrainSpectrumSettings()
    assert (ours.method, ours.captions, ours.images) == (theirs.method, theirs.captions, theirs.images)
    assert ours.optimizer == theirs.optimizer and set(KEYS) <= set(shown)


def test_what_the_help_says_for_the_demo_model_is_its_recipe() -> None:
    from bestiary.nodes.training.spectrum_job import KEYS
    from bestiary.nodes.training.spectrum_training_nodes import TrainSpectrum
    from bestiary.trainer.learning.run.recipe_file import find_recipe, parse_toml
    from bestiary.trainer.learning.spectrum.spectrum_settings import TrainSpectrumSettings

    page = (Path(__file__).parents[3] / "web" / "docs" / "BestiaryTrainSpectrum.md").read_text()
    told = page.split("For the demo model:")[1].split("\n\n")[0]
    defaults, inputs = TrainSpectrumSettings(), {key: name for name, key in KEYS.items()}
    tooltips = {one.id: one.tooltip for one in TrainSpectrum.define_schema().inputs}
    for section, values in parse_toml(find_recipe("spectrum_demo").read_text(), "recipe").items():
        for key, value in values.items() if isinstance(values, dict) else ():
            if value == getattr(getattr(defaults, section), key):
                continue
            name = inputs.get(f"{section}.{key}")
            assert (f"*{name}* {value}" if name else f'{section}.{key} = "{value}"') in told
            assert f"{value} for the demo model" in tooltips[name or "more_settings"].replace('"', "")


def test_more_settings_win_and_may_not_say_what_sockets_do() -> None:
    from bestiary.nodes.training.spectrum_job import GRAPH_GIVES, spectrum_settings

    more = "optimizer.steps = 9\nmethod.boundaries = [0.5]\nimages.flip = true"
    settings = spectrum_settings({**CHOICES, "more_settings": more})
    assert settings.optimizer.steps == 9 and settings.method.bounds(1000).stages == 2 and settings.images.flip
    for key in GRAPH_GIVES:
        with pytest.raises(BestiaryError, match=f"more_settings: {key} is decided by what is connected; leave it out"):
            spectrum_settings({**CHOICES, "more_settings": f'{key} = "x"'})
    with pytest.raises(BestiaryError, match="method.stags: no such key; did you mean 'stages'?"):
        spectrum_settings({**CHOICES, "more_settings": "method.stags = 3"})


def test_outputs_are_those_of_the_node(train, runs: Path) -> None:
    made = train()
    assert made.spectrum.name == "moth" and made.spectrum.spectrum.stages == 3
    assert made.spectrum.spectrum.provenance["made_by"] == "Bestiary Train Spectrum in ComfyUI"
    assert len(made.loss_map["loss"]) == 2 and made.run == "moth"
    assert made.preview.ndim == 4 and made.preview.shape[0] == 1 and float(made.preview.min()) >= 0
    assert made.text.startswith("3 stages learned in 2 steps, loss 0.") and made.text.endswith("output/bestiary/moth")
    assert (runs / "moth" / "moth.safetensors").is_file()
    assert train(steps=1).run == "moth-2"


def test_masks_and_margins_reach_the_training(train, drawn_images) -> None:
    mask = torch.zeros(2, 128, 128)
    mask[:, :64] = 1
    plain = train(name="plain").loss_map["loss"]
    masked = train(name="masked", masks=[mask]).loss_map["loss"]
    more = CHOICES["more_settings"] + "\nimages.margin = 0.25\nimages.flip = true"
    cropped = train(name="cropped", more_settings=more).loss_map["loss"]
    assert len({plain[0], masked[0], cropped[0]}) == 3


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"name": "a<b"}, "cannot be used as the name of a training"),
        ({"initial_words": "zebra"}, "initial words: bestiary-demo does not know 'zebra'"),
        ({"initial_words": " "}, "' ' holds no word the tokenizer knows"),
        ({"images": []}, "images: connect at least one picture"),
    ],
)
def test_nothing_is_begun_where_something_is_wrong(train, runs: Path, choices: dict, message: str) -> None:
    with pytest.raises(BestiaryError, match=message):
        train(**choices)
    assert not runs.exists()


def test_the_vae_of_another_model_is_told(train, sd15_model, runs: Path) -> None:
    with pytest.raises(
        BestiaryError,
        match=r"this VAE makes latents of 4 channels, this MODEL \(bestiary-demo\) takes 8: connect the VAE",
    ):
        train(vae=sd15_model.vae)
    assert not runs.exists()


def test_a_run_goes_on_with_what_it_learned(train, drawn_images) -> None:
    train(steps=1)
    again = train(steps=3, resume="moth")
    assert again.run == "moth" and len(again.loss_map["loss"]) == 3
    with pytest.raises(
        BestiaryError, match="run moth was started with stages 3, not 4, initial_words 'creature', not 'red': set"
    ):
        train(resume="moth", stages=4, initial_words="red")
    with pytest.raises(BestiaryError, match="run moth was trained on other pictures or masks than these"):
        train(resume="moth", images=[drawn_images[2:4]])
    with pytest.raises(BestiaryError, match="run moth was trained on other pictures or masks than these"):
        train(resume="moth", image_size=64)
