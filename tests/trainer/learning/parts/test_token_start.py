"""Where tokens start: words are matched to the regions they look at, no word twice where there are enough."""

from dataclasses import replace

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import Conditioning, EncoderLayout, NetworkOutput, PromptLayout
from bestiary.concepts.denoiser.process import DiscreteProcess
from bestiary.trainer.learning.parts.part_objective import PartBatch
from bestiary.trainer.learning.parts.token_start import choose_words, common_start, fit_of_words, word_spread

WORDS = ("head", "wing", "tail")
MASKS = torch.arange(4).view(1, 1, 1, 4).expand(2, 1, 4, 4) == torch.arange(3).view(1, 3, 1, 1)  # (B, M, g, g)


class Looker:
    """A denoiser whose words look at columns of the picture: "head" at 2, "wing" at 0, "tail" at 1."""

    def __init__(self) -> None:
        self.process = DiscreteProcess(torch.linspace(0.99, 0.01, 10), "epsilon")
        self.text = self.images = self.network = self

    def word_vectors(self, words: str) -> dict[str, torch.Tensor]:
        return {"clip_l": torch.stack([torch.full((4,), float(len(word))) for word in words.split()])}

    def tokenize(self, pieces, chunks=None) -> PromptLayout:
        places = torch.tensor([place for place, piece in enumerate(pieces) if piece.text is None])
        return {"clip_l": EncoderLayout(torch.zeros(1, 8, dtype=torch.long), places, torch.ones(1, 8))}

    def encode(self, prompts, vectors) -> Conditioning:
        assert vectors["clip_l"].shape == (2, 3, 4)
        return Conditioning.of(
            torch.zeros(2, 8, 4), torch.stack([prompt["clip_l"].slots for prompt in prompts]).unsqueeze(-1)
        )

    def from_cache(self, moments: torch.Tensor) -> torch.Tensor:
        return moments[:, 0]

    def predict(self, latents, times, text, attention=None) -> NetworkOutput:
        maps = torch.full((2, 3, 4, 4), 0.01)
        for word, column in enumerate((2, 0, 1)):
            maps[:, word, :, column] = 0.05
        return NetworkOutput(latents, {"layer": maps}, {})


@pytest.fixture
def batch() -> PartBatch:
    moments, noise = torch.randn(2, 2, 4, 4, 4), torch.randn(2, 2, 4, 4, 4)
    return PartBatch(("a", "b"), moments, noise, torch.tensor([0.3, 0.3]), torch.zeros(2, 3), (), MASKS)


def test_a_word_fits_the_part_it_looks_at(batch: PartBatch) -> None:
    fit = fit_of_words(Looker(), WORDS, batch)  # (M, W)
    assert fit.argmax(1).tolist() == [1, 2, 0]
    assert (fit.max(1).values > 0).all() and (fit.min(1).values < 0).all()


def test_a_part_that_no_picture_shows_has_no_say(batch: PartBatch) -> None:
    fit = fit_of_words(Looker(), WORDS, replace(batch, masks=batch.masks & (torch.arange(3) < 2).view(1, 3, 1, 1)))
    assert torch.isfinite(fit).all()


def test_no_word_is_taken_twice_where_there_are_enough() -> None:
    fit = torch.tensor([[0.9, 0.8, 0.0], [0.9, 0.1, 0.0], [5.0, 5.0, 5.0]])
    assert choose_words(fit, [0, 1], WORDS) == {0: "wing", 1: "head"}
    assert choose_words(fit[:, :1], [0, 1], WORDS[:1]) == {0: "head", 1: "head"}


def test_common_words_are_the_same_start_for_all() -> None:
    start = common_start(Looker(), 3, "head wing ab")
    assert torch.equal(start["clip_l"], torch.full((3, 4), 10 / 3))
    assert word_spread(Looker()) > 0
