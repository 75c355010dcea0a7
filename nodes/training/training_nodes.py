"""Training part tokens in the graph or beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui
from torch import Tensor

from ..host.comfy_version import schema, socket
from ..host.graph_progress import GraphProgress
from ..host.socket_types import CodebookSocket, DictionarySocket, NamedCodebook, PartMapsSocket, TrainingSetSocket
from ..part_map.part_inputs import features_input
from ..part_map.part_pictures import named_faults
from ..runs.training_runs import ANEW, resume_choices

if TYPE_CHECKING:
    from ...concepts.denoiser.denoiser import Denoiser
    from ..host.comfy_objects import Clip, Model, Vae
    from ..part_map.seen_parts import SeenParts
    from .training_set import TrainingSet

CATEGORY = "Bestiary/train"
RATE = {"min": 0.0, "max": 1.0, "step": 1e-6, "round": 1e-7}


class TrainingImages(io.ComfyNode):
    """Pictures of the graph, ready to be learned from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryTrainingImages",
            category=CATEGORY,
            search_aliases=["dataset", "training data", "part captions"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images"),
                CodebookSocket.Input("codebook"),
                io.Vae.Input("vae"),
                io.Int.Input("image_size", default=0, min=0, max=2048, step=8),
                io.Boolean.Input("mirror", default=False),
                PartMapsSocket.Input("part_maps", optional=True),
                io.Mask.Input("foreground", optional=True),
                io.String.Input("classes", optional=True, force_input=True),
                features_input(),
            ],
            outputs=[
                TrainingSetSocket.Output("training_set"),
                io.String.Output("captions"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        codebook: list[NamedCodebook],
        vae: list[Vae],
        image_size: list[int],
        mirror: list[bool],
        part_maps: list[SeenParts] | None = None,
        foreground: list[Tensor] | None = None,
        classes: list[str] | None = None,
        features: list[Denoiser] | None = None,
    ) -> io.NodeOutput:
        from .training_set import TrainingSetChoice, build_training_set, captions_of, split_classes

        choice, progress = TrainingSetChoice(image_size[0], mirror[0]), GraphProgress(cls.hidden.unique_id)
        extras = {"part_maps": part_maps, "masks": foreground, "classes": split_classes(classes)}
        with named_faults("Training Images"):
            connected = features[0] if features else None
            made = build_training_set(images, codebook[0], vae[0], choice, progress, features=connected, **extras)
        captions = captions_of(made)
        return io.NodeOutput(made, captions, ui=ui.PreviewText(captions))


def run_inputs(kind: str, preview_every: int) -> list[io.Input]:
    """Seed, previews, memory and resume of a node that trains `kind`, such as "parts"."""
    return [
        io.Int.Input("seed", default=0, min=0, max=2**31 - 1),
        io.Int.Input("preview_every", default=preview_every, min=0, max=100_000),
        io.Boolean.Input("recompute", default=False),
        io.Combo.Input("resume", options=resume_choices(kind), default=ANEW),
    ]


def more_settings_input() -> io.Input:
    """Lines of a recipe."""
    return socket(io.String.Input, "more_settings", default="", multiline=True, optional=True)


def _training_inputs() -> list[io.Input]:
    """What both training nodes ask for."""
    return [
        TrainingSetSocket.Input("training_set"),
        io.String.Input("name", default="my_parts"),
        io.Int.Input("steps", default=300, min=1, max=1_000_000),
        io.Int.Input("batch_size", default=2, min=1, max=256),
        io.Int.Input("accumulation", default=4, min=1, max=256),
        io.Float.Input("token_lr", default=0.001, **RATE),
        io.Float.Input("lora_lr", default=0.0001, **RATE),
        io.Combo.Input("attention_loss", options=["bce", "softmax"], default="bce"),
        io.Float.Input("attention_weight", default=0.01, min=0.0, max=100.0, step=0.001, round=0.0001),
        io.Int.Input("rank", default=4, min=0, max=256),
        *run_inputs("parts", 50),
        more_settings_input(),
    ]


class TrainParts(io.ComfyNode):
    """Learns tokens and a LoRA on the MODEL of the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryTrainParts",
            category=CATEGORY,
            search_aliases=["train lora", "textual inversion", "partcraft"],
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.Vae.Input("vae"),
                *_training_inputs(),
            ],
            outputs=[
                DictionarySocket.Output("dictionary"),
                io.Model.Output("model_out"),
                io.Clip.Output("clip_out"),
                io.LossMap.Output("loss_map"),
                io.Image.Output("preview"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Model, clip: Clip, vae: Vae, training_set: TrainingSet, **choices: object) -> io.NodeOutput:
        from .training_job import GraphModel, run_graph_training

        with named_faults("Train Parts"):
            trained = run_graph_training(GraphModel(model, clip, vae), training_set, choices, cls.hidden.unique_id)
        *outputs, text = trained
        shown = {**ui.PreviewImage(trained.preview, cls=cls).as_dict(), **ui.PreviewText(text).as_dict()}
        return io.NodeOutput(*outputs, ui=shown)


class TrainInBackground(io.ComfyNode):
    """Learns in a program of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryTrainInBackground",
            category=CATEGORY,
            search_aliases=["bestiary train", "background", "child process"],
            inputs=[
                *_training_inputs(),
                io.String.Input("base", default="demo"),
            ],
            outputs=[
                DictionarySocket.Output("dictionary"),
                io.String.Output("file"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, training_set: TrainingSet, base: str, **choices: object) -> io.NodeOutput:
        from .training_job import run_background_training

        with named_faults("Train Parts in Own Process"):
            named, file = run_background_training(training_set, base, choices, cls.hidden.unique_id)
        return io.NodeOutput(named, file, ui=ui.PreviewText(f"models/bestiary/{file}"))


NODES: list[type[io.ComfyNode]] = [TrainingImages, TrainParts, TrainInBackground]
