"""Training a prompt spectrum in the graph."""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from ..host.comfy_version import schema, socket
from ..host.socket_types import SpectrumSocket
from ..part_map.part_pictures import named_faults
from ..runs.training_runs import ANEW, resume_choices

CATEGORY = "Bestiary/train"


def _concept_inputs() -> list[io.Input]:
    """What is learned from, and into what."""
    return [
        io.Model.Input("model", tooltip="The model to learn on; it stays as it is."),
        io.Clip.Input("clip", tooltip="The CLIP of that model; it stays as it is."),
        io.Vae.Input("vae", tooltip="The VAE of that model, for the pictures and previews."),
        io.Image.Input(
            "images", tooltip="One picture, or several of one concept: a batch, or a list of different sizes."
        ),
        io.String.Input(
            "name", default="my_concept", tooltip="What prompts will call it, as <name>; names the run folder too."
        ),
        io.String.Input(
            "initial_words",
            default="",
            tooltip="What the pictures show, in a word or two (a corgi); learning starts there. creature suits the demo model. "
            "Empty starts from common words.",
        ),
        io.Int.Input(
            "stages",
            default=10,
            min=1,
            max=250,
            tooltip="Stages of the denoising that get vectors of their own; 1 is plain textual inversion.",
        ),
        io.Int.Input(
            "vectors",
            default=1,
            min=1,
            max=32,
            tooltip="Vectors per stage; more learn more detail. 12 for the demo model.",
        ),
    ]


def _loop_inputs() -> list[io.Input]:
    """How it is learned."""
    return [
        io.Int.Input("steps", default=600, min=1, max=1_000_000, tooltip="Optimizer steps in all."),
        io.Int.Input(
            "batch_size",
            default=2,
            min=1,
            max=256,
            tooltip="Pictures at once; the first thing to lower. 4 for the demo model.",
        ),
        io.Float.Input(
            "vector_lr",
            default=0.3,
            min=0.0,
            max=10.0,
            step=0.01,
            round=0.0001,
            tooltip="Learning rate in units of the spread of word embeddings; 3.0 for the demo model.",
        ),
        io.Int.Input(
            "image_size",
            default=0,
            min=0,
            max=2048,
            step=8,
            tooltip="Edge of the training square in pixels; 0 takes the model's own: 512, SDXL 1024, the demo model 128.",
        ),
        io.Int.Input("seed", default=0, min=0, max=2**31 - 1, tooltip="The same seed trains the same spectrum."),
        io.Int.Input(
            "preview_every", default=100, min=0, max=100_000, tooltip="Steps between two previews; 0 for none."
        ),
        io.Boolean.Input(
            "recompute",
            default=False,
            tooltip="Less than half the memory for a third more time (gradient checkpointing).",
        ),
        io.Combo.Input(
            "resume",
            options=resume_choices("spectrum"),
            default=ANEW,
            tooltip="Go on with a cancelled training from its last state: the newest run, or one of output/bestiary.",
        ),
        io.Mask.Input(
            "foreground",
            optional=True,
            tooltip="The thing in white, one mask per picture; what lies outside is not learned from.",
        ),
        socket(
            io.String.Input,
            "more_settings",
            default="",
            multiline=True,
            optional=True,
            tooltip='Any other setting of a recipe, one per line, such as images.flip = true; method.norm = "free" for the demo model.',
        ),
    ]


class TrainSpectrum(io.ComfyNode):
    """Learns what pictures say, stage by stage, on the MODEL of the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryTrainSpectrum",
            display_name="Train Spectrum",
            category=CATEGORY,
            description="Learns what a picture says about layout, content, material and style, stage by stage of the denoising, "
            "on the connected model. Cancel keeps what was learned; choose the run at resume to go on.",
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
                    tooltip="The pictures, the concept as a whole, and each stage of it alone.",
                ),
                io.String.Output("run", display_name="run", tooltip="Its folder below output/bestiary, for resume."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: list[object],
        clip: list[object],
        vae: list[object],
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
