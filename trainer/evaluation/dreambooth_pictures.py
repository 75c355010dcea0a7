"""Pictures made with a DreamBooth adapter, whose prompts call the thing by `{}`.

Letters: N pictures, V vectors of a learned identifier, W width of a text encoder.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ...concepts.denoiser.denoiser import Conditioning, PromptLayout, PromptPiece
from ...concepts.denoiser.lora_family import check_base
from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import replacing
from ...concepts.files.concept_file import read_header, read_tensors
from ...concepts.name_search import shown_name
from ..composing.picture_making import SamplingChoice
from ..learning.dreambooth.dreambooth_settings import PLACE
from ..learning.dreambooth.dreambooth_setup import IDENTIFIER_ENDING
from ..learning.pictures.contact_sheet import to_image
from ..learning.pictures.image_files import image_to_tensor, read_image
from ..model.sampling import SamplingDenoiser, pictures_at_once, sample_images

KIND = "dreambooth"


@dataclass(frozen=True)
class Subject:
    """What a DreamBooth training left, as it is used in prompts."""

    name: str
    """What reports call it."""
    lora: Mapping[str, Tensor] = field(repr=False)
    """Tensors under kohya names; empty for the untouched model."""
    vectors: Mapping[str, Tensor] = field(repr=False)
    """Text encoder -> `(V, W)`; empty where the identifier is a plain word."""
    identifier: str
    """The plain word, where there are no vectors."""
    class_noun: str = ""
    """What the thing is, such as "dog"; empty where it is not known."""
    notes: Mapping[str, object] = field(default_factory=dict, repr=False)
    """How it was trained."""


def load_subject(path: Path) -> Subject:
    """The LoRA of `bestiary train dreambooth`, with the identifier's vectors beside it where it was learned.

    Raises:
        BestiaryError: no such file, not a LoRA of this training, or the vectors it needs are missing.
    """
    notes = {
        name.removeprefix("bestiary."): json.loads(value)
        for name, value in read_header(path).metadata.items()
        if name.startswith("bestiary.")
    }
    if notes.get("kind") != KIND:
        raise BestiaryError(
            f"{path} was not written by `bestiary train dreambooth` (its kind is {notes.get('kind')!r}): give the LoRA file of "
            "such a run"
        )
    instance, of_class = str(notes.get("instance_prompt", "")), str(notes.get("class_prompt", ""))
    beside = path.with_name(f"{path.stem}{IDENTIFIER_ENDING}.safetensors")
    vectors = {}
    if PLACE in instance:
        if not beside.is_file():
            raise BestiaryError(
                f"{path.name} has a learned identifier, but {beside} is missing: keep both files of the training together"
            )
        vectors = read_tensors(beside)
    word = "" if vectors else str(notes.get("identifier") or _told_apart(instance, of_class))
    return Subject(path.stem, read_tensors(path), vectors, word, _noun(instance, of_class, word), notes)


def without_identifier(prompt: str) -> str:
    """A prompt without its `{}`, as CLIP compares it with pictures."""
    return " ".join(prompt.replace(PLACE, " ").split())


@dataclass
class SubjectModel:
    """A denoiser that samples subjects in turn; adapters of one are taken off before the next."""

    denoiser: SamplingDenoiser
    choice: SamplingChoice
    _worn: Subject | None = field(default=None, repr=False)

    def wear(self, subject: Subject) -> None:
        """Put on the adapters of a subject.

        Raises:
            BestiaryError: they were trained on another kind of model, or reach no layer of this one.
        """
        if self._worn is not None and self._worn is subject:
            return
        check_base(subject.notes, self.denoiser.backbone.name, f"the LoRA {shown_name(subject.name)}")
        adapters = self.denoiser.network.adapters
        adapters.unload()
        self._worn = None
        if subject.lora and not adapters.load(subject.lora):
            raise BestiaryError(
                f"{subject.name}: no layer of this base model is adapted; give the base it was trained on"
            )
        self._worn = subject

    @torch.no_grad()
    def sample(
        self,
        subject: Subject,
        prompt: str,
        seeds: Sequence[int],
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Pictures `(N, 3, H, W)` in 0..1 of a prompt, in which `{}` stands for the identifier alone, one per seed.

        Raises:
            BestiaryError: the prompt is too long, or the adapter does not fit the model.
        """
        self.wear(subject)
        choice = self.choice
        return sample_images(
            self.denoiser, self._encode(subject, prompt), None, seeds=seeds, steps=choice.steps, guidance=choice.guidance,
            size=choice.size, sampler=choice.sampler, on_step=on_step,
        ).images  # fmt: skip

    def _encode(self, subject: Subject, prompt: str) -> Conditioning:
        """One row `(1, T, E)`."""
        text = self.denoiser.text
        if not subject.vectors or PLACE not in prompt:
            return text.encode([text.tokenize([PromptPiece(prompt.replace(PLACE, subject.identifier))])], None)
        count = len(next(iter(subject.vectors.values())))
        before, _, after = prompt.partition(PLACE)
        pieces = [PromptPiece(before), *PromptPiece.word(count), PromptPiece(after)]
        layout: PromptLayout = text.tokenize([piece for piece in pieces if piece.text != ""])
        batched = {name: vectors.float().unsqueeze(0) for name, vectors in subject.vectors.items()}  # (1, V, W)
        return text.encode([layout], {name: vectors.to(self.denoiser.device) for name, vectors in batched.items()})


def _told_apart(instance: str, of_class: str) -> str:
    """The words of the first sentence that the second has not."""
    common = of_class.lower().split()
    return " ".join(word for word in instance.split() if word.lower() not in common)


def _noun(instance: str, of_class: str, identifier: str) -> str:
    """The words after the identifier in the instance sentence, if the class sentence ends with them too."""
    mark = identifier or PLACE
    after = instance.partition(mark)[2].split()
    return " ".join(after) if after and of_class.lower().split()[-len(after) :] == [w.lower() for w in after] else ""


def written_pictures(
    model: SubjectModel,
    subject: Subject,
    prompt: str,
    seeds: Sequence[int],
    folder: Path,
    stem: str,
    on_made: Callable[[int], None] | None = None,
) -> list[Image.Image]:
    """Pictures of a prompt as the files `STEM-SEED.png` of a folder; those that are there are not made again.

    Raises:
        BestiaryError: as `SubjectModel.sample`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {seed: folder / f"{stem}-{seed:05d}.png" for seed in seeds}
    missing = [seed for seed, path in paths.items() if not path.is_file()]
    at_once = pictures_at_once(model.denoiser, model.choice.size)
    if on_made:
        on_made(len(paths) - len(missing))
    for start in range(0, len(missing), at_once):
        some = missing[start : start + at_once]
        for seed, picture in zip(some, model.sample(subject, prompt, some), strict=True):
            with replacing(paths[seed]) as temporary:
                to_image(picture).save(temporary, "PNG")
        if on_made:
            on_made(len(some))
    return [read_image(path) for path in paths.values()]


def as_images(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as images `(N, 3, H, W)` in 0..1."""
    return torch.stack([image_to_tensor(picture.convert("RGB")) for picture in pictures])
