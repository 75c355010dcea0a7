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
        io.Model.Input("model", tooltip="The model to train on; it is not modified."),
        io.Clip.Input("clip", tooltip="The CLIP of that model; it is not modified."),
        io.Vae.Input("vae", tooltip="The VAE of that model, used to encode the pictures and decode previews."),
        io.Image.Input("images", tooltip="3 to 6 pictures of one subject: a batch, or a list of different sizes."),
        io.String.Input("name", default="my_subject", tooltip="Name of the LoRA and of the run folder."),
        io.String.Input(
            "instance_prompt",
            default="a photo of sks dog",
            tooltip="Describes the pictures: an identifier and the class noun. With vectors, {} stands for the identifier.",
        ),
        io.String.Input(
            "class_prompt",
            default="a photo of a dog",
            tooltip="Describes any member of the class: the same noun without the identifier.",
        ),
        io.Int.Input("steps", default=800, min=1, max=1_000_000, tooltip="Total number of optimizer steps."),
        io.Int.Input("rank", default=8, min=1, max=256, tooltip="Rank of the LoRA."),
        io.Float.Input(
            "lora_lr", default=0.0001, tooltip="Learning rate of the LoRA. Use 0.001 for the demo model.", **RATE
        ),
        io.Int.Input(
            "batch_size",
            default=1,
            min=1,
            max=256,
            tooltip=(
                "Pictures of the subject per step; as many of the class come with them. If memory runs out, lower this first."
            ),
        ),
    ]


def _method_inputs() -> list[io.Input]:
    """How it is learned."""
    return [
        io.Combo.Input(
            "prior",
            options=["auto", "pictures", "model", "off"],
            default="auto",
            tooltip=(
                "What preserves the class: pictures of it, the model's own predictions (no pictures needed), or nothing. "
                "auto uses pictures if class_images is connected, otherwise model."
            ),
        ),
        io.Float.Input(
            "prior_weight",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.05,
            round=0.0001,
            tooltip="Factor of the prior loss; higher preserves the class more strongly.",
        ),
        io.Int.Input(
            "vectors",
            default=0,
            min=0,
            max=8,
            tooltip=(
                "Number of vectors of a learned identifier, at {} in the instance prompt; 0 trains the LoRA only. "
                "Use 1 for the demo model."
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
        *run_inputs("LoRA", "dreambooth", 100),
        io.Image.Input(
            "class_images",
            optional=True,
            tooltip="Pictures of other members of the class, generated or real; they preserve what the model knows of it.",
        ),
        io.Mask.Input(
            "foreground",
            optional=True,
            tooltip="One mask per picture with the subject in white; areas outside are not trained on.",
        ),
        socket(
            io.String.Input,
            "initial_words",
            default="",
            optional=True,
            tooltip="Words from which a learned identifier is initialised. Leave empty to start from common words.",
        ),
        socket(
            io.Boolean.Input,
            "save",
            default=False,
            optional=True,
            tooltip="Also save the LoRA to models/loras, and a learned identifier to models/embeddings.",
        ),
        more_settings_input("captions.dropout = 0.1 or optimizer.ema = 0.98."),
    ]


class TrainDreamBooth(io.ComfyNode):
    """Learns one subject on the MODEL of the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryTrainDreamBooth",
            display_name="Train DreamBooth",
            category=CATEGORY,
            description=(
                "Trains a LoRA of one subject from a few pictures on the connected model and preserves what the model "
                "knows of the class. Cancel saves the progress; select the run in resume to continue."
            ),
            search_aliases=["train lora", "personalization", "subject", "prior preservation"],
            is_input_list=True,
            inputs=[*_subject_inputs(), *_method_inputs()],
            outputs=[
                io.Model.Output("model_out", display_name="MODEL", tooltip="With the trained LoRA."),
                io.LoraModel.Output(
                    "lora", display_name="LoRA", tooltip="For the core nodes Load LoRA Model and Save LoRA Weights."
                ),
                io.LossMap.Output("loss_map", display_name="loss map", tooltip="For the core node Plot Loss Graph."),
                io.Image.Output(
                    "preview",
                    display_name="preview",
                    tooltip="Training pictures, pictures of the instance prompt, and pictures of the class prompt.",
                ),
                io.Clip.Output(
                    "clip_out",
                    display_name="CLIP",
                    tooltip="With vectors: knows the identifier as embedding:NAME_identifier. Otherwise the connected CLIP.",
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
