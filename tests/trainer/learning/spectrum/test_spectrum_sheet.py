"""The sheet of a spectrum: its pictures, prompts and seeds, and the concept at one stage alone."""

import pytest
import torch
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.trainer.learning.spectrum.spectrum_sheet import (
    only_stage,
    sheet_prompts,
    sheet_seeds,
    shown_stages,
    spectrum_sheet,
)
from PIL import Image


def _spectrum(stages: int, neutral: bool = True) -> PromptSpectrum:
    vectors = torch.arange(1.0, stages + 1).view(stages, 1, 1).expand(stages, 2, 128)  # (S, V, W)
    words = {"clip_l": torch.zeros(2, 128)} if neutral else {}
    return PromptSpectrum("bestiary-demo", {"clip_l": vectors.clone()}, StageBounds.equal(stages), neutral=words)


def test_stages_that_are_shown() -> None:
    assert shown_stages(_spectrum(1)) == []
    assert shown_stages(_spectrum(3)) == [0, 1, 2]
    assert shown_stages(_spectrum(25)) == list(range(20))


@pytest.mark.parametrize("stage", [0, 2])
def test_one_stage_alone_has_its_vectors(stage: int) -> None:
    alone = only_stage(_spectrum(3), stage)
    found = alone.matrix()[:, 0, 0].tolist()
    assert found == [float(stage + 1) if number == stage else 0.0 for number in range(3)]


def test_without_neutral_words_the_whole_is_shown() -> None:
    spectrum = _spectrum(3, neutral=False)
    assert only_stage(spectrum, 1) is spectrum


def test_prompts_are_the_whole_and_then_stage_by_stage() -> None:
    prompts = sheet_prompts(_spectrum(3), "a drawing of a {}", 2, [0, 2])
    told = [[float(prompt.stages[place].vectors[0, 0]) for place in prompt.bounds.stages_of_finer(StageBounds.equal(3))] for prompt in prompts]  # fmt: skip
    assert told == [[1, 2, 3], [1, 2, 3], [1, 0, 0], [0, 0, 3]]
    assert prompts[0].stages[0].pieces[0].text.startswith("a drawing of a")
    assert sheet_seeds(2, [0, 2]) == [0, 1, 0, 0]


def test_the_sheet_holds_all_pictures() -> None:
    real = [Image.new("RGB", (32, 32), (200, 0, 0))] * 2
    made = torch.zeros(5, 3, 32, 32)
    made[:, 2] = 1
    sheet = spectrum_sheet(real, ["a.png", "b.png"], made, [0, 1, 2])
    # seven pictures in rows of five, in a column of two
    columns, rows = sheet.width // 160, sheet.height // 160
    assert (columns, rows) == (5, 2)
    colours = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert {(200, 0, 0), (0, 0, 255)} <= colours
