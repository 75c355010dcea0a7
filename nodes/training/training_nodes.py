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
            display_name="Training Images",
            category=CATEGORY,
            description=(
                "Prepares pictures for training: encodes each once with the VAE and labels its parts and their kinds."
            ),
            search_aliases=["dataset", "training data", "part captions"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="The training pictures: a batch, or a list of different sizes."),
                CodebookSocket.Input(
                    "codebook", tooltip="The parts and kinds to train, from Discover Parts or Load Codebook."
                ),
                io.Vae.Input("vae", tooltip="The VAE of the model to train."),
                io.Int.Input(
                    "image_size",
                    default=0,
                    min=0,
                    max=2048,
                    step=8,
                    tooltip="Training resolution in pixels; 0 uses that of the trained model: 512, SDXL 1024, demo model 128.",
                ),
                io.Boolean.Input(
                    "mirror",
                    default=False,
                    tooltip="Also train on mirrored pictures; leave off if left and right parts differ.",
                ),
                PartMapsSocket.Input(
                    "part_maps",
                    optional=True,
                    tooltip="Part maps of these pictures, in the same order. If not connected, the codebook finds the parts.",
                ),
                io.Mask.Input(
                    "foreground",
                    optional=True,
                    tooltip="One mask per picture with the object in white; everything outside becomes background.",
                ),
                io.String.Input(
                    "classes",
                    optional=True,
                    force_input=True,
                    tooltip=(
                        "One class name per picture (a list, or one text with a name per line). The classes then replace "
                        "the kinds of the codebook."
                    ),
                ),
                features_input(),
            ],
            outputs=[
                TrainingSetSocket.Output(
                    "training_set",
                    display_name="training set",
                    tooltip="For Train Parts and Train Parts in Own Process.",
                ),
                io.String.Output(
                    "captions", display_name="captions", tooltip="One line per picture with its part:kind pairs."
                ),
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


def run_inputs(result: str, kind: str, preview_every: int) -> list[io.Input]:
    """Seed, previews, memory and resume of a node that trains `kind`; `result` is what it makes, such as "dictionary"."""
    return [
        io.Int.Input("seed", default=0, min=0, max=2**31 - 1, tooltip=f"The same seed gives the same {result}."),
        io.Int.Input(
            "preview_every",
            default=preview_every,
            min=0,
            max=100_000,
            tooltip="Number of steps between previews; 0 for none.",
        ),
        io.Boolean.Input(
            "recompute",
            default=False,
            tooltip="Gradient checkpointing: uses less than half the memory and takes about a third longer.",
        ),
        io.Combo.Input(
            "resume",
            options=resume_choices(kind),
            default=ANEW,
            tooltip=(
                "Continue a cancelled training from its last saved state: the latest run, or one of output/bestiary."
            ),
        ),
    ]


def more_settings_input(examples: str) -> io.Input:
    """Lines of a recipe."""
    return socket(
        io.String.Input,
        "more_settings",
        default="",
        multiline=True,
        optional=True,
        tooltip=f"Any other setting of a recipe, one per line, such as {examples}",
    )


def _training_inputs() -> list[io.Input]:
    """What both training nodes ask for."""
    return [
        TrainingSetSocket.Input("training_set", tooltip="From Training Images."),
        io.String.Input(
            "name", default="my_parts", tooltip="Name of the dictionary in prompts, and of the run folder."
        ),
        io.Int.Input("steps", default=300, min=1, max=1_000_000, tooltip="Total number of optimizer steps."),
        io.Int.Input(
            "batch_size", default=2, min=1, max=256, tooltip="Pictures per batch. If memory runs out, lower this first."
        ),
        io.Int.Input(
            "accumulation",
            default=4,
            min=1,
            max=256,
            tooltip="Batches per optimizer step (gradient accumulation); needs the memory of one batch.",
        ),
        io.Float.Input(
            "token_lr",
            default=0.001,
            tooltip=(
                "Learning rate of the tokens, in units of the standard deviation of the word embeddings. Use "
                "0.02 for the demo model."
            ),
            **RATE,
        ),
        io.Float.Input(
            "lora_lr", default=0.0001, tooltip="Learning rate of the LoRA. Use 0.0015 for the demo model.", **RATE
        ),
        io.Combo.Input(
            "attention_loss",
            options=["bce", "softmax"],
            default="bce",
            tooltip=(
                "Form of the loss that binds a token to the region of its part: bce as published, or softmax "
                "across parts."
            ),
        ),
        io.Float.Input(
            "attention_weight",
            default=0.01,
            min=0.0,
            max=100.0,
            step=0.001,
            round=0.0001,
            tooltip="Weight of the attention loss; 0 disables it. Use 0.2 for the demo model.",
        ),
        io.Int.Input("rank", default=4, min=0, max=256, tooltip="Rank of the LoRA; 0 trains tokens only."),
        *run_inputs("dictionary", "parts", 50),
        more_settings_input('captions.noun = "bird" or optimizer.ema = 0.98.'),
    ]


class TrainParts(io.ComfyNode):
    """Learns tokens and a LoRA on the MODEL of the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryTrainParts",
            display_name="Train Parts",
            category=CATEGORY,
            description=(
                "Trains one token per part and kind of the training set, and a LoRA, on the connected model. "
                "Cancel saves the progress; select the run in resume to continue."
            ),
            search_aliases=["train lora", "textual inversion", "partcraft"],
            inputs=[
                io.Model.Input("model", tooltip="The model to train on; it is not modified."),
                io.Clip.Input("clip", tooltip="The CLIP of that model; it is not modified."),
                io.Vae.Input("vae", tooltip="The VAE of that model, for previews."),
                *_training_inputs(),
            ],
            outputs=[
                DictionarySocket.Output(
                    "dictionary", display_name="dictionary", tooltip="For Save Dictionary and part nodes."
                ),
                io.Model.Output("model_out", display_name="MODEL", tooltip="With the trained LoRA."),
                io.Clip.Output("clip_out", display_name="CLIP", tooltip="With the part tokens of the dictionary."),
                io.LossMap.Output("loss_map", display_name="loss map", tooltip="For the core node Plot Loss Graph."),
                io.Image.Output(
                    "preview",
                    display_name="preview",
                    tooltip="Training pictures, pictures generated from their tokens, and heat maps.",
                ),
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
            display_name="Train Parts in Own Process",
            category=CATEGORY,
            description=(
                "Runs the standalone trainer on the training set in a separate process and waits for the result; "
                "for long trainings. Requires the trainer's libraries (pip install bestiary[trainer]) and the "
                "base model as a diffusers folder."
            ),
            search_aliases=["bestiary train", "background", "child process"],
            inputs=[
                *_training_inputs(),
                io.String.Input(
                    "base",
                    default="demo",
                    tooltip="Folder of the base model in diffusers format (Stable Diffusion 1.5, 2 or XL), or demo.",
                ),
            ],
            outputs=[
                DictionarySocket.Output("dictionary", display_name="dictionary", tooltip="The trained dictionary."),
                io.String.Output("file", display_name="file", tooltip="Its file name in models/bestiary."),
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
