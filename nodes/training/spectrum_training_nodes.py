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
        io.Model.Input("model"),
        io.Clip.Input("clip"),
        io.Vae.Input("vae"),
        io.Image.Input("images"),
        io.String.Input("name", default="my_concept"),
        io.String.Input("initial_words", default=""),
        io.Int.Input("stages", default=10, min=1, max=250),
        io.Int.Input("vectors", default=1, min=1, max=32),
    ]


def _loop_inputs() -> list[io.Input]:
    """How it is learned."""
    return [
        io.Int.Input("steps", default=600, min=1, max=1_000_000),
        io.Int.Input("batch_size", default=2, min=1, max=256),
        io.Float.Input("vector_lr", default=0.3, min=0.0, max=10.0, step=0.01, round=0.0001),
        io.Int.Input("image_size", default=0, min=0, max=2048, step=8),
        *run_inputs("spectrum", 100),
        io.Mask.Input("foreground", optional=True),
        more_settings_input(),
    ]


class TrainSpectrum(io.ComfyNode):
    """Learns what pictures say, stage by stage, on the MODEL of the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryTrainSpectrum",
            category=CATEGORY,
            search_aliases=["prospect", "textual inversion", "prompt spectrum", "learn a style"],
            is_input_list=True,
            inputs=[*_concept_inputs(), *_loop_inputs()],
            outputs=[
                SpectrumSocket.Output("spectrum"),
                io.LossMap.Output("loss_map"),
                io.Image.Output("preview"),
                io.String.Output("run"),
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
