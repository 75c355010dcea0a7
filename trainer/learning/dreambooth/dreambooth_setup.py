"""From settings to what the loop needs for DreamBooth, over any denoiser: objective, batches, parameter groups, and what is left.

Shared by the command line and the graph, so it imports no library that holds models. Letters: N pictures of the thing, V vectors
of the identifier, D width over all text encoders, W width of one, r rank, I and O widths of a layer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .... import __version__
from ....concepts.denoiser.denoiser import Denoiser, PromptLayout, PromptPiece, chunks_of
from ....concepts.denoiser.low_rank import LoraSpec
from ....concepts.errors import BestiaryError
from ....concepts.files.concept_file import read_tensors, write_tensors
from ....concepts.name_search import shown_name
from ..parts.token_start import COMMON_WORDS, mean_word, word_spread
from ..pictures.contact_sheet import PREVIEW_TILE, contact_sheet, to_image
from ..pictures.latent_cache import LatentCache
from ..run.fit import ParameterGroup
from ..run.processes import Parallel, SingleProcess
from ..run.training import Origin, Sample, Training
from .dreambooth_images import DreamBoothImages, DreamBoothPlan, PictureBucket
from .dreambooth_objective import CLASS, INSTANCE, DreamBoothObjective
from .dreambooth_settings import AUTO, PLACE, TrainDreamBoothSettings

IDENTIFIER_ENDING = "_identifier"
"""What the file of a learned identifier's vectors is called, after the LoRA's name."""


@dataclass(frozen=True)
class DreamBoothAdapter:
    """What a training leaves: a LoRA, and the vectors of a learned identifier."""

    tensors: Mapping[str, Tensor]
    """Kohya names: `....lora_down.weight` `(r, I)`, `.lora_up.weight` `(O, r)`, `.alpha`."""
    vectors: Mapping[str, Tensor]
    """Text encoder -> `(V, W)`; empty for a plain word."""
    notes: Mapping[str, object]
    """How it was made."""

    @property
    def layers(self) -> int:
        """How many layers are adapted."""
        return sum(name.endswith(".alpha") for name in self.tensors)


@dataclass(frozen=True)
class DreamBoothTraining(Training[DreamBoothAdapter]):
    """An adapter, which becomes a LoRA file."""

    settings: TrainDreamBoothSettings
    objective: DreamBoothObjective
    batches: DreamBoothImages
    instances: int
    """N."""
    notes: Mapping[str, object] = field(default_factory=dict)
    """What the file says in addition of the pictures and of this kind of model."""

    def curve_labels(self) -> dict[str, tuple[str, ...]]:
        """No curve has several entries."""
        return {}

    def learned(self, steps: int, origin: Origin) -> DreamBoothAdapter:
        """The LoRA with a note of how it was made."""
        settings, backbone = self.settings, self.denoiser.backbone
        vectors = self.objective.vectors
        notes = {
            "made_by": origin.made_by,
            "version": __version__,
            "backbone": backbone.name,
            "base": origin.base,
            "prediction": self.denoiser.process.prediction,
            "autoencoder": origin.autoencoder,
            "instance_prompt": settings.captions.instance_prompt,
            "class_prompt": settings.captions.class_prompt,
            "identifier": settings.captions.identifier,
            "prior": settings.method.prior,
            "prior_weight": settings.method.prior_weight,
            "rank": settings.lora.rank,
            "alpha": settings.lora.alpha or float(settings.lora.rank),
            "steps": steps,
            "batch": self.batches.step_size,
            "image_size": self.image_size,
            "buckets": settings.images.buckets,
            "pictures": list(self.batches.names[: self.instances][:50]),
            "class_pictures": len(self.batches.names) - self.instances,
            "learning_rate": settings.optimizer.lora_lr,
            "seed": settings.run.seed,
            **self.notes,
        }
        split = {} if vectors is None else backbone.split_vector(vectors.detach().float().cpu())
        return DreamBoothAdapter(
            self.denoiser.network.adapters.tensors(), {k: v.contiguous() for k, v in split.items()}, notes
        )

    def size_of(self, concept: DreamBoothAdapter) -> str:
        """How many layers it adapts."""
        return f"adapters on {concept.layers} layers"

    def save(self, concept: DreamBoothAdapter, path: Path) -> None:
        """Write the LoRA, and beside it the identifier's vectors, and read both back."""
        save_adapter(concept, path)

    @torch.no_grad()
    def sheets(self, origin: Origin, sample: Sample) -> tuple[Image.Image, ...]:
        """A few pictures of the thing, pictures made from its prompt, and pictures made from the class prompt."""
        count = min(self.settings.run.preview_count, self.instances)
        of_class = len(self.batches.names) - self.instances
        kept = [self.instances + row % of_class for row in range(count)] if of_class else list(range(count))
        made = []
        for number, rows in ((INSTANCE, range(count)), (CLASS, kept)):
            said = self.objective.encode(self.batches.plan.prompts, (number,) * count)
            made.append(sample(said.with_extras(**self.batches.low_pictures(rows, range(count))), range(count)))
        real = [origin.square(row) for row in range(count)]
        prompts = (self.settings.captions.instance_prompt, self.settings.captions.class_prompt)
        captions = [*self.batches.names[:count], *(prompt for prompt in prompts for _ in range(count))]
        pictures = [*real, *(to_image(picture) for some in made for picture in some)]
        return (contact_sheet(pictures, captions, columns=count, tile=PREVIEW_TILE),)


def set_up_dreambooth(
    settings: TrainDreamBoothSettings,
    denoiser: Denoiser,
    names: Sequence[str],
    instances: int,
    cached: LatentCache | Sequence[PictureBucket],
    masks: np.ndarray | None = None,
    parallel: Parallel | None = None,
    *,
    level_alphas: Tensor | None = None,
    notes: Mapping[str, object] | None = None,
) -> DreamBoothTraining:
    """A training from its first step on; seeds torch's generator, from which adapters are drawn.

    Args:
        names: what messages call the N pictures of the thing and those of its class, in the cache's order.
        instances: N.
        cached: their moments, of squares or by buckets.
        masks: of squares, `(N, H, W)` 0..1, what is learned of the thing; None is everything.
        level_alphas: `(L,)`, for a model that enlarges low pictures: see `DreamBoothPlan`.
        notes: what the file says in addition of the pictures and of this kind of model.

    Raises:
        BestiaryError: a prompt is too long, or the words to start from are unknown.
    """
    torch.manual_seed(settings.run.seed)
    parallel = parallel or SingleProcess()
    method, optimizer, lora = settings.method, settings.optimizer, settings.lora
    spec = LoraSpec(lora.rank, lora.alpha or float(lora.rank), lora.self_attention, lora.targets)
    adapters = denoiser.network.adapters.add(spec)
    if settings.base.checkpointing:
        denoiser.network.set_gradient_checkpointing(True)
    objective = DreamBoothObjective(
        denoiser,
        adapters,
        identifier_start(denoiser, method.vectors, method.initial_words),
        prior_weight=method.prior_weight,
        prior_of_model=method.prior == "model",
        min_snr=method.min_snr,
    ).to(denoiser.device)
    size = settings.images.training_size(denoiser.backbone)
    plan = DreamBoothPlan(
        batch_size=optimizer.batch_size,
        accumulation=optimizer.accumulation,
        latent_size=size // denoiser.backbone.latent_factor,
        process=denoiser.process,
        prompts=lay_out(settings, denoiser),
        dropout=settings.captions.dropout,
        seed=settings.run.seed,
        rank=parallel.rank,
        processes=parallel.size,
        latent_factor=denoiser.backbone.latent_factor,
        level_alphas=level_alphas,
    )
    batches = DreamBoothImages(names, instances, cached, plan, masks, denoiser.device)
    groups = [ParameterGroup("lora", objective.named_adapters(), optimizer.lora_lr, optimizer.weight_decay)]
    if objective.vectors is not None:
        # embeddings differ tenfold in size between backbones
        groups.append(
            ParameterGroup("identifier", {"vectors": objective.vectors}, optimizer.vector_lr * word_spread(denoiser))
        )
    return DreamBoothTraining(settings, denoiser, objective, batches, tuple(groups), instances, notes or {})


def lay_out(settings: TrainDreamBoothSettings, denoiser: Denoiser) -> tuple[PromptLayout, ...]:
    """The sentences of the thing, of the class, and the empty one.

    Raises:
        BestiaryError: a prompt does not fit the text encoder, or names words that it does not know.
    """
    captions, laid = settings.captions, []
    if captions.identifier == AUTO:
        raise BestiaryError(
            'captions.identifier is "auto", which is for DeepFloyd IF on the command line: name a word such as sks, or set method.vectors = 1',
            option="captions.identifier",
        )
    for option, prompt in (("instance_prompt", captions.instance_prompt), ("class_prompt", captions.class_prompt)):
        before, place, after = prompt.partition(PLACE)
        vectors = PromptPiece.word(settings.method.vectors) if place else []
        pieces = [piece for piece in (PromptPiece(before), *vectors, PromptPiece(after)) if piece.text != ""]
        if chunks_of(denoiser.text.tokenize(pieces)) > 1:
            raise BestiaryError(
                f"captions.{option} has more tokens than the text encoder of {denoiser.backbone.name} takes at once: "
                f"shorten {prompt[:60]!r}",
                option=f"captions.{option}",
            )
        plain = " ".join(piece.text for piece in pieces if piece.text)
        if plain.strip() and (unknown := denoiser.text.unknown_words(plain)):
            raise BestiaryError(
                f"captions.{option}: {denoiser.backbone.name} does not know {', '.join(map(shown_name, unknown))}; use other "
                f"words, or set method.vectors = 1 and write {PLACE} in place of the identifier",
                option=f"captions.{option}",
            )
        laid.append(denoiser.text.tokenize(pieces, chunks=1))
    return (*laid, denoiser.text.tokenize([], chunks=1))


def identifier_start(denoiser: Denoiser, vectors: int, words: str) -> Tensor | None:
    """What a learned identifier is initialised from `(V, D)` float32; None without one.

    Raises:
        BestiaryError: the words are unknown to the tokenizer.
    """
    if not vectors:
        return None
    if words and (unknown := denoiser.text.unknown_words(words)):
        raise BestiaryError(
            f"method.initial_words: {denoiser.backbone.name} does not know {', '.join(map(shown_name, unknown))}; use other "
            "plain words, or leave it empty",
            option="method.initial_words",
        )
    return denoiser.backbone.join_vectors(mean_word(denoiser, words or COMMON_WORDS)).repeat(vectors, 1)


def save_adapter(adapter: DreamBoothAdapter, path: Path, embeddings: Path | None = None) -> None:
    """Write the LoRA under kohya names with its notes in the header, and the identifier's vectors; read both back.

    Args:
        embeddings: folder of the vectors; None is beside the LoRA.

    Raises:
        BestiaryError: numbers that are not finite, or a file that cannot be written or reads back differently.
    """
    broken = [name for name, tensor in adapter.tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise BestiaryError(f"{broken[0]} is not finite: the training has diverged; lower optimizer.lora_lr")
    notes = {f"bestiary.{name}": json.dumps(value) for name, value in {"kind": "dreambooth", **adapter.notes}.items()}
    ranks = f"{adapter.notes['rank']}"
    kohya = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": ranks,
        "ss_network_alpha": f"{adapter.notes['alpha']}",
    }
    _write_checked(path, adapter.tensors, {**notes, **kohya})
    if adapter.vectors:
        beside = (embeddings or path.parent) / f"{path.stem}{IDENTIFIER_ENDING}.safetensors"
        _write_checked(beside, adapter.vectors, notes)


def _write_checked(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    write_tensors(path, tensors, metadata)
    again = read_tensors(path)
    if again.keys() != tensors.keys() or not all(torch.equal(again[name], tensors[name]) for name in tensors):
        raise BestiaryError(f"{path} reads back differently from what was written: check the disk and export again")
