"""Training a prompt spectrum in the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui
from torch import Tensor

from ..host.comfy_version import schema
from ..host.socket_types import SpectrumSocket
from ..part_map.part_pictures import named_faults
from .training_nodes import CATEGORY, more_settings_input, run_inputs

if TYPE_CHECKING:
    from ..host.comfy_objects import Clip, Model, Vae


def _concept_inputs() -> list[io.Input]:
    """What is learned from, and into what."""
    return [
        io.Model.Input("model", tooltip="The model to train on; it is not modified."),
        io.Clip.Input("clip", tooltip="The CLIP of that model; it is not modified."),
        io.Vae.Input("vae", tooltip="The VAE of that model, used to encode the pictures and decode previews."),
        io.Image.Input(
            "images", tooltip="One or several pictures of one concept: a batch, or a list of different sizes."
        ),
        io.String.Input(
            "name", default="my_concept", tooltip="Name of the concept in prompts, as <name>, and of the run folder."
        ),
        io.String.Input(
            "initial_words",
            default="",
            tooltip=(
                "What the pictures show, in one or two words (a corgi); the vectors are initialised from them. "
                "Use creature for the demo model. Leave empty to start from common words."
            ),
        ),
        io.Int.Input(
            "stages",
            default=10,
            min=1,
            max=250,
            tooltip="Number of denoising stages with separate vectors; 1 is ordinary textual inversion.",
        ),
        io.Int.Input(
            "vectors",
            default=1,
            min=1,
            max=32,
            tooltip="Number of vectors per stage; more vectors capture more detail. Use 12 for the demo model.",
        ),
    ]


def _loop_inputs() -> list[io.Input]:
    """How it is learned."""
    return [
        io.Int.Input("steps", default=600, min=1, max=1_000_000, tooltip="Total number of optimizer steps."),
        io.Int.Input(
            "batch_size",
            default=2,
            min=1,
            max=256,
            tooltip="Pictures per step. If memory runs out, lower this first. Use 4 for the demo model.",
        ),
        io.Float.Input(
            "vector_lr",
            default=0.3,
            min=0.0,
            max=10.0,
            step=0.01,
            round=0.0001,
            tooltip=(
                "Learning rate, in units of the standard deviation of the word embeddings. Use 3.0 for the demo model."
            ),
        ),
        io.Int.Input(
            "image_size",
            default=0,
            min=0,
            max=2048,
            step=8,
            tooltip="Training resolution in pixels; 0 uses that of the model: 512, SDXL 1024, demo model 128.",
        ),
        *run_inputs("spectrum", "spectrum", 100),
        io.Mask.Input(
            "foreground",
            optional=True,
            tooltip="One mask per picture with the object in white; areas outside are not trained on.",
        ),
        more_settings_input('images.flip = true; method.norm = "free" for the demo model.'),
    ]


class TrainSpectrum(io.ComfyNode):
    """Learns what pictures say, stage by stage, on the MODEL of the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryTrainSpectrum",
            display_name="Train Spectrum",
            category=CATEGORY,
            description=(
                "Trains a prompt spectrum on the connected model: separate embeddings for every denoising stage, "
                "which separate layout, content, material and style. Cancel saves the progress; select the run "
                "in resume to continue."
            ),
            search_aliases=["prospect", "textual inversion", "prompt spectrum", "learn a style"],
            is_input_list=True,
            inputs=[*_concept_inputs(), *_loop_inputs()],
            outputs=[
                SpectrumSocket.Output(
                    "spectrum",
                    display_name="spectrum",
                    tooltip="For Spectrum Prompt, Mix Attributes and Save Spectrum.",
                ),
                io.LossMap.Output("loss_map", display_name="loss map", tooltip="For the core node Plot Loss Graph."),
                io.Image.Output(
                    "preview",
                    display_name="preview",
                    tooltip="The training pictures, the concept with all stages, and each stage alone.",
                ),
                io.String.Output(
                    "run", display_name="run", tooltip="Name of the run folder in output/bestiary, for resume."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: list[Model],
        clip: list[Clip],
        vae: list[Vae],
        images: list[Tensor],
        foreground: list[Tensor] | None = None,
        **choices: list[object],
    ) -> io.NodeOutput:
        from .spectrum_job import ConnectedPictures, GraphModel, run_spectrum_training

        chosen = {name: values[0] for name, values in choices.items() if values}
        with named_faults("Train Spectrum"):
            loaded, concept = GraphModel(model[0], clip[0], vae[0]), ConnectedPictures(images, foreground)
            *outputs, text = run_spectrum_training(loaded, concept, chosen, cls.hidden.unique_id)
        shown = {**ui.PreviewImage(outputs[2], cls=cls).as_dict(), **ui.PreviewText(text).as_dict()}
        return io.NodeOutput(*outputs, ui=shown)


NODES: list[type[io.ComfyNode]] = [TrainSpectrum]
