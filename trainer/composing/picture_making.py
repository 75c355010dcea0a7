"""Pictures from prompts with learned parts: resolves the prompts, encodes them with their vectors, and samples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ...concepts.denoiser.backbone import check_learned_for
from ...concepts.denoiser.denoiser import AttentionRequest, Conditioning, chunks_of
from ...concepts.denoiser.token_insertion import Insertion
from ...concepts.errors import BestiaryError
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ...concepts.part_prompt.part_prompt import ResolvedMention, ResolvedPrompt, parse_part_prompt, resolve_prompt
from ...concepts.spectrum.prompt_spectrum import PromptSpectrum
from ..learning.denoiser.prompt_encoding import use_insertion
from ..model.sampling import PromptRegions, Sampler, SamplingDenoiser, pictures_at_once, sample_images
from .prompt_regions import PromptRegion, region_masks


@dataclass(frozen=True)
class PictureOrder:
    """One picture to generate."""

    prompt: str
    seed: int
    negative: str = ""


@dataclass(frozen=True)
class SamplingChoice:
    """Sampling settings."""

    steps: int = 30
    guidance: float = 7.5
    size: int | tuple[int, int] | None = None
    """Edge length, or height and width, in pixels; None uses the edge of the model."""
    sampler: Sampler = "ddim"
    feather: float = 16.0
    """Width in pixels of the soft edge of regions."""


@dataclass(frozen=True)
class Picture:
    """A picture with its order."""

    order: PictureOrder
    image: Tensor
    """`(3, H, W)` float 0..1."""
    mentions: tuple[ResolvedMention, ...]
    """The learned parts of the prompt, in order."""
    attention: Tensor | None
    """`(P, h, w)`: attention of the token of each mention, averaged over steps and layers; None if not requested."""

    def to_image(self) -> Image.Image:
        """The picture as a Pillow image."""
        levels = (self.image.clamp(0, 1) * 255).round().byte()  # (3, H, W)
        return Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())


def check_backbone(name: str, dictionary: PartDictionary, denoiser: SamplingDenoiser) -> None:
    """Check that a dictionary was trained for the backbone of the loaded model.

    Raises:
        BestiaryError: it was trained for another backbone, or its vectors have another width.
    """
    check_learned_for("dictionary", name, dictionary.backbone, dictionary.embeddings, denoiser.backbone)


def enter_prompts(denoiser: SamplingDenoiser, concepts: Mapping[str, PartDictionary | PromptSpectrum]) -> None:
    """Let learned vectors enter prompts where those of these files were learned.

    Raises:
        BestiaryError: they were learned at different places.
    """
    places: dict[str, Insertion] = {name: concept.insertion for name, concept in concepts.items()}
    if len(set(places.values())) > 1:
        listed = ", ".join(f"{name} at the {place}" for name, place in places.items())
        raise BestiaryError(
            f"vectors enter the text encoders at different places ({listed}): use such files in prompts of their own, or learn them with the same "
            "method.insertion"
        )
    insertion: Insertion = "output" if "output" in places.values() else "input"
    use_insertion(denoiser.text, insertion)


def make_pictures(
    denoiser: SamplingDenoiser,
    dictionaries: Mapping[str, PartDictionary],
    orders: Sequence[PictureOrder],
    choice: SamplingChoice,
    *,
    attention: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    on_picture: Callable[[int, Picture], None] | None = None,
    regions: Sequence[PromptRegion] = (),
) -> list[Picture]:
    """Generate all ordered pictures in batches; a picture does not depend on the others in its batch.

    All prompts are resolved before sampling starts, so that an error costs no time.

    Args:
        on_picture: called with the index in `orders` and the picture as soon as it is finished.
        regions: prompts for parts of every picture, above the prompts of the orders.

    Raises:
        BestiaryError: a prompt is wrong (column, cause and valid choices), or a dictionary is for another backbone.
    """
    for name, dictionary in dictionaries.items():
        check_backbone(name, dictionary, denoiser)
    enter_prompts(denoiser, dictionaries)
    positives = [resolve_prompt(parse_part_prompt(order.prompt), dictionaries) for order in orders]
    negatives = [resolve_prompt(parse_part_prompt(order.negative), dictionaries) for order in orders]
    parts_of_picture = _encoded_regions(denoiser, dictionaries, regions, choice)
    pictures: dict[int, Picture] = {}
    # only prompts with the same number of chunks share a batch: padding would change the result
    for rows in _alike(denoiser, positives, negatives, pictures_at_once(denoiser, choice.size)):
        report = _step_report(on_progress, len(pictures), len(rows), len(orders))
        positive = encode_resolved(denoiser, [positives[row] for row in rows])
        columns = positive.columns
        sampled = sample_images(
            denoiser,
            positive,
            encode_resolved(denoiser, [negatives[row] for row in rows]),
            seeds=[orders[row].seed for row in rows],
            steps=choice.steps,
            guidance=choice.guidance,
            size=choice.size,
            sampler=choice.sampler,
            attention=AttentionRequest(columns) if attention and columns is not None and _has_parts(positive) else None,
            on_step=report,
            regions=parts_of_picture,
        )
        # the batch has as many maps as its longest prompt has mentions: cut the surplus
        for place, row in enumerate(rows):
            mentions = positives[row].mentions
            maps = None if sampled.attention is None else sampled.attention[place, : len(mentions)]  # (P, h, w)
            pictures[row] = Picture(orders[row], sampled.images[place], mentions, maps)
            if on_picture is not None:
                on_picture(row, pictures[row])
    return [pictures[row] for row in range(len(orders))]


def _encoded_regions(
    denoiser: SamplingDenoiser,
    dictionaries: Mapping[str, PartDictionary],
    regions: Sequence[PromptRegion],
    choice: SamplingChoice,
) -> PromptRegions | None:
    if not regions:
        return None
    resolved = [resolve_prompt(parse_part_prompt(region.prompt), dictionaries) for region in regions]
    edge = choice.size or denoiser.backbone.image_size
    size = (edge, edge) if isinstance(edge, int) else edge
    grid = (denoiser.images.shape(size)[1], denoiser.images.shape(size)[2])
    masks = region_masks([region.box for region in regions], size, grid, choice.feather)
    return PromptRegions([encode_resolved(denoiser, [prompt]) for prompt in resolved], masks)


@torch.no_grad()
def encode_resolved(denoiser: SamplingDenoiser, prompts: Sequence[ResolvedPrompt]) -> Conditioning:
    """Encode B prompts with their learned vectors in place."""
    tokens = [denoiser.text.tokenize(prompt.pieces) for prompt in prompts]
    # prompts with fewer vectors are padded with zeros, which no token refers to
    most = max(len(prompt.vectors) for prompt in prompts)
    if most == 0:
        return denoiser.text.encode(tokens, None)
    vectors = torch.zeros(len(prompts), most, denoiser.backbone.vector_width)  # (B, P, D)
    for row, prompt in enumerate(prompts):
        vectors[row, : len(prompt.vectors)] = prompt.vectors.float()
    return denoiser.text.encode(tokens, denoiser.backbone.split_vector(vectors.to(denoiser.device)))


def _alike(
    denoiser: SamplingDenoiser,
    positives: Sequence[ResolvedPrompt],
    negatives: Sequence[ResolvedPrompt],
    at_once: int,
) -> Iterator[list[int]]:
    """Rows that may share a batch: prompts with different numbers of chunks are not padded to each other's length."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row, pair in enumerate(zip(positives, negatives, strict=True)):
        own, other = (chunks_of(denoiser.text.tokenize(prompt.pieces)) for prompt in pair)
        groups.setdefault((own, other), []).append(row)
    for rows in groups.values():
        for start in range(0, len(rows), at_once):
            yield rows[start : start + at_once]


def _has_parts(text: Conditioning) -> bool:
    return text.columns is not None and text.columns.shape[1] > 0


def _step_report(
    on_progress: Callable[[int, int], None] | None, before: int, count: int, total: int
) -> Callable[[int, int], None]:
    """Convert (steps done, total steps) of one batch into those of all pictures."""

    def report(done: int, steps: int) -> None:
        if on_progress is not None:
            on_progress(before * steps + count * done, total * steps)

    return report
