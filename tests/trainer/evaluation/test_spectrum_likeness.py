"""CLIP-I, CLIP-T and leakage of spectra drawn by a narrow model: what each figure means, and what has none."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.trainer.composing.picture_making import SamplingChoice
from bestiary.trainer.evaluation.spectrum_likeness import LikenessOrder, judge_likeness, text_without_mentions
from PIL import Image
from torch import Tensor

PROMPTS = ("a photo of a <x>", "a <x*0.5>, red bird")


class PixelJudge:
    """Stands in for CLIP: a picture's feature is its pixels around grey, a text's the number of its letters."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        rows = [torch.tensor(list(picture.resize((8, 8), Image.Resampling.BOX).tobytes())) for picture in pictures]
        return torch.nn.functional.normalize(torch.stack(rows).float() - 128, dim=-1)  # (N, 192)

    def texts(self, texts: Sequence[str]) -> Tensor:
        self.read += texts
        return torch.nn.functional.normalize(torch.tensor([[float(len(text))] + [1.0] * 191 for text in texts]), dim=-1)


def _spectrum(stages: int = 3) -> PromptSpectrum:
    torch.manual_seed(3)
    matrix = torch.randn(stages, 1, 32) * 3
    bounds = StageBounds.equal(stages)
    return PromptSpectrum("bestiary-demo", {"clip_l": matrix}, bounds, neutral={"clip_l": torch.ones(1, 32)})


@pytest.fixture
def judge(tiny_denoiser: Callable) -> Callable[..., tuple]:
    """`judge(spectrum, given=pictures)` -> likeness, shown pictures, and the texts that were read."""
    denoiser = tiny_denoiser("bestiary-demo")

    def run(
        spectrum: PromptSpectrum,
        given: Sequence[Image.Image] | None = None,
        eyes: PixelJudge | None = None,
        **changes: object,
    ) -> tuple:
        eyes = eyes or PixelJudge()
        order = LikenessOrder("x", PROMPTS, 2, 5, SamplingChoice(3, 3.0, 64))
        given = given or [Image.new("RGB", (8, 8), (200, 90, 40)), Image.new("RGB", (8, 8), (30, 90, 240))]
        likeness, shown = judge_likeness(denoiser, spectrum, given, eyes, replace(order, **changes))
        return likeness, shown, eyes.read

    return run


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a photo of a <x> on the beach", "a photo of a on the beach"),
        ("<x@layout|dog>, red", ", red"),
        (r"a \<x>  and (<x*0.5>:1.2)", r"a \<x> and (:1.2)"),
        ("a bird", "a bird"),
    ],
)
def test_placeholders_leave_no_trace_in_the_text(prompt: str, text: str) -> None:
    assert text_without_mentions(prompt) == text


def test_scores_are_means_over_pictures_and_prompts(judge: Callable) -> None:
    likeness, shown, read = judge(_spectrum())
    assert read == ["a photo of a", "a , red bird"] and likeness.seeds == (5, 6)
    assert [score.prompt for score in likeness.prompts] == list(PROMPTS)
    assert likeness.clip_i == pytest.approx(sum(score.clip_i for score in likeness.prompts) / 2)
    assert likeness.clip_t == pytest.approx(sum(score.clip_t for score in likeness.prompts) / 2)
    assert likeness.prompts[0].clip_i != likeness.prompts[1].clip_i
    # all stages, the words, and each stage
    assert len(shown) == 5 and len(likeness.clip_i_stages) == 3
    record = likeness.record()
    assert record["clip_i"] == round(likeness.clip_i, 5) and record["prompts"][1]["text"] == "a , red bird"


def test_given_pictures_are_compared_with_each_other(judge: Callable) -> None:
    orange, blue = Image.new("RGB", (8, 8), (228, 128, 128)), Image.new("RGB", (8, 8), (128, 128, 228))
    plain = replace(_spectrum(1), neutral={})
    for given, cosine in (([orange, orange], 1), ([orange, blue, orange], 1 / 3), ([orange], None)):
        likeness, _, _ = judge(plain, given, prompts=PROMPTS[:1], pictures=1)
        assert likeness.clip_i_given == (cosine if cosine is None else pytest.approx(cosine))


class ScriptedJudge(PixelJudge):
    """Gives pictures, call by call, features of told cosines with those of the first call."""

    def __init__(self, cosines: Sequence[float]) -> None:
        super().__init__()
        self.cosines = iter([1.0, *cosines])

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        cosine = next(self.cosines)
        return torch.tensor([[cosine, (1 - cosine**2) ** 0.5, *[0.0] * 190]] * len(pictures))


def test_leakage_runs_from_the_words_to_the_whole(judge: Callable) -> None:
    # the prompt, the words, and each of three stages alone
    told = ScriptedJudge([0.8, 0.6, 0.6, 0.7, 0.85])
    likeness, _, _ = judge(_spectrum(), prompts=PROMPTS[:1], eyes=told)
    assert (likeness.clip_i, likeness.clip_i_words) == pytest.approx((0.8, 0.6))
    assert likeness.clip_i_stages == pytest.approx((0.6, 0.7, 0.85))
    assert likeness.leakage == pytest.approx((0.0, 0.5, 1.25), abs=1e-5)
    nearly = ScriptedJudge([0.605, 0.6, 0.6, 0.7, 0.85])
    assert judge(_spectrum(), prompts=PROMPTS[:1], eyes=nearly)[0].leakage is None


def test_a_stage_alone_is_the_whole_where_only_that_stage_has_learned(judge: Callable) -> None:
    matrix = torch.ones(3, 1, 32)
    matrix[0] = _spectrum().embeddings["clip_l"][0]
    first = replace(_spectrum(), embeddings={"clip_l": matrix})
    _, (whole, words, alone, second, third), _ = judge(first, prompts=PROMPTS[:1], pictures=1)
    assert whole.tobytes() == alone.tobytes() != words.tobytes()
    assert words.tobytes() == second.tobytes() == third.tobytes()


def test_without_a_difference_there_is_nothing_to_leak(judge: Callable, caplog: pytest.LogCaptureFixture) -> None:
    spectrum = _spectrum()
    same = replace(spectrum, embeddings={"clip_l": torch.ones(3, 1, 32)})
    likeness, _, _ = judge(same, prompts=PROMPTS[:1], pictures=1)
    assert likeness.leakage is None and likeness.clip_i_words == pytest.approx(likeness.prompts[0].clip_i)
    unknown, shown, _ = judge(replace(spectrum, neutral={}), prompts=PROMPTS[:1])
    assert unknown.leakage is None and unknown.clip_i_words is None and unknown.clip_i_stages == ()
    assert len(shown) == 1 and "does not know the words it was learned from" in caplog.text


def test_the_same_seed_gives_the_same_scores(judge: Callable) -> None:
    plain = replace(_spectrum(2), neutral={})
    first, again, other = (judge(plain, prompts=PROMPTS[:1], seed=seed)[0] for seed in (5, 5, 9))
    assert first == again and first.clip_i != other.clip_i


def test_prompts_that_name_another_spectrum_are_told(judge: Callable) -> None:
    with pytest.raises(BestiaryError, match="unknown spectrum 'y': choose 'x'"):
        judge(_spectrum(), prompts=("a <y>",))
