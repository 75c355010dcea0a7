"""Training a LoRA of one subject in the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui
from torch import Tensor

from ..host.comfy_version import schema, socket
from ..part_map.part_pictures import named_faults
from .training_nodes import CATEGORY, RATE, more_settings_input, run_inputs

if TYPE_CHECKING:
    from ..host.comfy_objects import Clip, Model, Vae


def _subject_inputs() -> list[io.Input]:
    """What is learned from, and what it is called."""
    return [
        io.Model.Input("model"),
        io.Clip.Input("clip"),
        io.Vae.Input("vae"),
        io.Image.Input("images"),
        io.String.Input("name", default="my_subject"),
        io.String.Input("instance_prompt", default="a photo of sks dog"),
        io.String.Input("class_prompt", default="a photo of a dog"),
        io.Int.Input("steps", default=800, min=1, max=1_000_000),
        io.Int.Input("rank", default=8, min=1, max=256),
        io.Float.Input("lora_lr", default=0.0001, **RATE),
        io.Int.Input("batch_size", default=1, min=1, max=256),
    ]


def _method_inputs() -> list[io.Input]:
    """How it is learned."""
    return [
        io.Combo.Input("prior", options=["auto", "pictures", "model", "off"], default="auto"),
        io.Float.Input("prior_weight", default=1.0, min=0.0, max=100.0, step=0.05, round=0.0001),
        io.Int.Input("vectors", default=0, min=0, max=8),
        io.Int.Input("image_size", default=0, min=0, max=2048, step=8),
        *run_inputs("dreambooth", 100),
        io.Image.Input("class_images", optional=True),
        io.Mask.Input("foreground", optional=True),
        socket(io.String.Input, "initial_words", default="", optional=True),
        socket(io.Boolean.Input, "save", default=False, optional=True),
        more_settings_input(),
    ]


class TrainDreamBooth(io.ComfyNode):
    """Learns one subject on the MODEL of the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryTrainDreamBooth",
            category=CATEGORY,
            search_aliases=["train lora", "personalization", "subject", "prior preservation"],
            is_input_list=True,
            inputs=[*_subject_inputs(), *_method_inputs()],
            outputs=[
                io.Model.Output("model_out"),
                io.LoraModel.Output("lora"),
                io.LossMap.Output("loss_map"),
                io.Image.Output("preview"),
                io.Clip.Output("clip_out"),
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
        class_images: list[Tensor] | None = None,
        foreground: list[Tensor] | None = None,
        **choices: list[object],
    ) -> io.NodeOutput:
        from .dreambooth_job import ConnectedSubject, GraphModel, run_dreambooth_training

        chosen = {name: values[0] for name, values in choices.items() if values}
        with named_faults("Train DreamBooth"):
            loaded, subject = GraphModel(model[0], clip[0], vae[0]), ConnectedSubject(images, class_images, foreground)
            *outputs, text = trained = run_dreambooth_training(loaded, subject, chosen, cls.hidden.unique_id)
        shown = {**ui.PreviewImage(trained.preview, cls=cls).as_dict(), **ui.PreviewText(text).as_dict()}
        return io.NodeOutput(*outputs, ui=shown)


NODES: list[type[io.ComfyNode]] = [TrainDreamBooth]
