"""The picture of a schedule: stages in their colours, hollow where no step falls, nothing beyond its edges."""

import pytest
import torch
from bestiary.concepts.spectrum.attribute_presets import DEFAULT_PRESETS
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from torch import Tensor


def schedule(steps: int, stages: int = 10, *, reach: float = 1.0) -> object:
    """Equal steps over the first `reach` of the way."""
    from bestiary.nodes.spectrum.stage_schedule import SampledStep, StageSchedule

    bounds = StageBounds.equal(stages)
    rows = []
    for number in range(steps):
        share = reach * (number + 0.5) / steps
        stage = int(bounds.stage_of(torch.tensor([(1 - share) * 999]))[0])
        rows.append(SampledStep(number + 1, (1 - share) * 999, 1.0, share, (stage,)))
    return StageSchedule(f"{steps} steps", bounds.percent_ranges(), tuple(rows))


def draw(*args: object) -> Tensor:
    from bestiary.nodes.spectrum.stage_picture import draw_schedule

    return draw_schedule(*args)


def color_at(picture: Tensor, share: float, row: int) -> tuple[int, ...]:
    from bestiary.nodes.spectrum.stage_picture import _place

    return tuple(round(255 * value) for value in picture[0, row, round(_place(share))].tolist())


def way_row() -> int:
    """A row of pixels in the upper part of the stages, above their numbers."""
    from bestiary.nodes.spectrum.stage_picture import _tops

    return _tops(0, 1)["way"] + 4


def test_every_stage_has_its_colour_on_the_way():
    from bestiary.nodes.spectrum.stage_picture import stage_color

    picture = draw(schedule(20))
    assert picture.shape[0] == 1 and picture.shape[2:] == (1120, 3)
    assert picture.min() >= 0 and picture.max() <= 1
    for stage in range(10):
        assert color_at(picture, stage / 10 + 0.05, way_row()) == stage_color(stage, 10)
    assert len({stage_color(stage, 10) for stage in range(10)}) == 10


def test_stages_without_a_step_are_hollow():
    from bestiary.nodes.spectrum.stage_picture import PAPER, stage_color

    picture = draw(schedule(10, reach=0.5))
    assert color_at(picture, 0.45, way_row()) == stage_color(4, 10)
    # shrinking the outline rings a little
    assert max(abs(a - b) for a, b in zip(color_at(picture, 0.75, way_row()), PAPER, strict=True)) <= 6


def test_steps_have_the_colour_of_their_stage():
    from bestiary.nodes.spectrum.stage_picture import _tops, stage_color

    picture, row = draw(schedule(5, 5)), _tops(0, 1)["steps"] + 4
    assert [color_at(picture, (n + 0.5) / 5, row) for n in range(5)] == [stage_color(n, 5) for n in range(5)]


def test_a_step_in_two_stages_shows_both_and_one_in_none_is_grey():
    from dataclasses import replace

    from bestiary.nodes.spectrum.stage_picture import BOX, NO_STAGE, _tops, stage_color

    plain = schedule(4, 4)
    steps = (replace(plain.steps[0], stages=(0, 1)), replace(plain.steps[1], stages=()), *plain.steps[2:])
    odd = replace(plain, steps=steps)
    # two warnings: a stage that lost its only step stays reached by the first one
    picture, top = draw(odd), _tops(0, len(odd.warnings()))["steps"]
    assert color_at(picture, 0.125, top + 3) == stage_color(0, 4)
    assert color_at(picture, 0.125, top + BOX - 4) == stage_color(1, 4)
    assert color_at(picture, 0.375, top + 3) == NO_STAGE


def test_attributes_and_warnings_make_it_taller():
    plain = draw(schedule(20)).shape[1]
    assert draw(schedule(20), DEFAULT_PRESETS).shape[1] > plain + 4 * 20
    # a warning of two lines in place of one line of praise
    assert draw(schedule(20, reach=0.5)).shape[1] == plain + 26


@pytest.mark.parametrize(("steps", "stages"), [(1, 1), (1, 250), (500, 10), (3, 40)])
def test_any_number_of_steps_and_stages_can_be_drawn(steps, stages):
    picture = draw(schedule(steps, stages), {"nothing": (), "mood": ((0.0, 0.001), (0.5, 1.0))})
    assert picture.isfinite().all()
    # a margin of paper all round
    frame = torch.cat([picture[0, :8].flatten(0, 1), picture[0, :, :8].flatten(0, 1), picture[0, :, -8:].flatten(0, 1)])
    assert (frame - frame[0]).abs().max() == 0
