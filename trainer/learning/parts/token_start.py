"""Where part tokens start: around common words, or each at the word whose attention fits the part's region best.

A word that already looks at the right place gives a token a head start: attention and looks are then learned together.
Letters: M parts, W words, D width of a vector, B pictures, g the attention grid.
"""

from collections.abc import Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ....concepts.denoiser.attention_maps import average_maps
from ....concepts.denoiser.denoiser import AttentionRequest, Denoiser, PromptPiece
from ....concepts.errors import BestiaryError
from .part_objective import PartBatch

COMMON_WORDS = "photo picture animal bird object thing large small bright dark red orange green blue white black"
"""Tokens start around the mean of these words' embeddings where the settings name no others."""


def mean_word(denoiser: Denoiser, words: str) -> dict[str, Tensor]:
    """The mean embedding of words, text encoder -> `(D,)` float32 on the CPU."""
    return {name: rows.float().cpu().mean(0) for name, rows in denoiser.text.word_vectors(words).items()}


def common_start(denoiser: Denoiser, num_parts: int, words: str = "") -> dict[str, Tensor]:
    """The mean embedding of `words` for every part, text encoder -> `(M, D)` float32 on the CPU."""
    means = mean_word(denoiser, words or COMMON_WORDS)
    return {name: mean.repeat(num_parts, 1) for name, mean in means.items()}


def word_spread(denoiser: Denoiser) -> float:
    """Standard deviation of word embeddings around their mean, averaged over the channels of all text encoders."""
    rows = denoiser.text.word_vectors(COMMON_WORDS).values()  # (W, D) each
    # a text encoder that a model was loaded without gives one row of zeros
    return float(torch.cat([own.float().std(0) for own in rows if len(own) > 1]).mean())


@torch.no_grad()
def fit_of_words(denoiser: Denoiser, words: Sequence[str], batch: PartBatch) -> Tensor:
    """How much more each word looks at each part than elsewhere, `(M, W)`, in shares of the words' attention.

    All words stand in one sentence; their maps are read in noised pictures of `batch`, whose captions do not matter.
    """
    size = (batch.masks.shape[-2], batch.masks.shape[-1])
    maps = average_maps(attention_to_words(denoiser, words, batch), size)  # (B, W, g, g)
    return fit_of_maps(maps, batch.masks)


@torch.no_grad()
def attention_to_words(
    denoiser: Denoiser, words: Sequence[str], batch: PartBatch, layers: tuple[str, ...] | None = None
) -> Mapping[str, Tensor]:
    """Layer -> attention `(B, W, h, w)` to W words that stand in one sentence; None for `layers` takes the method's.

    Raises:
        BestiaryError: the model has no place for words.
    """
    # one sentence with all words, so that they compete for attention as parts will
    means = [{name: own.mean(0) for name, own in denoiser.text.word_vectors(word).items()} for word in words]
    prompt = denoiser.text.tokenize([PromptPiece("a photo of a"), *[PromptPiece(None)] * len(words)], chunks=1)
    count = len(batch.times)
    vectors = {name: torch.stack([mean[name] for mean in means]).expand(count, -1, -1).float() for name in means[0]}
    text = denoiser.text.encode([prompt] * count, vectors).with_extras(sizes=batch.sizes)
    if text.columns is None:
        raise BestiaryError(
            f"{denoiser.backbone.name} has no place for words: leave method.part_words empty",
            option="method.part_words",
        )
    # noised pictures, of which the posterior mean is enough here
    noised = denoiser.process.noised(denoiser.images.from_cache(batch.moments), batch.noise[:, 1], batch.times)
    return denoiser.network.predict(noised, batch.times, text, AttentionRequest(text.columns, layers)).attention


def fit_of_maps(maps: Tensor, masks: Tensor) -> Tensor:
    """How much more each word looks at each part than elsewhere, `(M, W)`, of maps `(B, W, g, g)` and masks `(B, M, g, g)`."""
    # a word's share among the words, and how much of it lies in each part
    share = maps / maps.sum(1, keepdim=True).clamp_min(1e-6)
    inside = torch.einsum("bmyx,bwyx->mw", masks.float(), share)  # (M, W)
    inside = inside / masks.float().sum((0, 2, 3)).clamp_min(1).unsqueeze(1)
    return (inside - share.mean((0, 2, 3))).cpu()


def choose_words(fit: Tensor, parts: Sequence[int], words: Sequence[str]) -> dict[int, str]:
    """A word for each of `parts`, no word twice where there are enough of them, for the best fit `(M, W)` in all."""
    if len(words) < len(parts):
        return {part: words[int(fit[part].argmax())] for part in parts}
    rows, columns = linear_sum_assignment(-fit[list(parts)].double().numpy())
    return {parts[int(row)]: words[int(column)] for row, column in zip(rows, columns, strict=True)}
