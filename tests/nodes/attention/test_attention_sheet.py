"""Tests of the picture from which the browser reads recorded attention."""

import pytest
import torch
from bestiary.nodes.attention.attention_record import RecordedPart, RecordedSampling
from bestiary.nodes.attention.attention_sheet import sheet_of_maps


def recorded(steps=3, pictures=2, parts=2, grid=(4, 5)):
    maps = torch.arange(steps * pictures * parts * grid[0] * grid[1]).float().view(steps, pictures, parts, *grid)
    named = tuple(RecordedPart(f"part{n}:1", f"part{n}", negative=n == 1) for n in range(parts))
    held = torch.ones(steps, parts, dtype=torch.bool)
    return RecordedSampling(named, maps / maps.max() / 20, held, latent_size=(16, 20), signature=torch.zeros(1))


def read_back(sheet, facts):
    """As the browser does: levels of a written picture times the peaks."""
    levels = torch.from_numpy((255 * sheet[0, ..., 0].numpy()).clip(0, 255).astype("uint8")).float() / 255
    steps, (height, width), parts = len(facts["steps"]), facts["grid"], len(facts["parts"])
    tiles = levels.view(steps, facts["pictures"], height, parts, width).permute(0, 1, 3, 2, 4)
    return tiles * torch.tensor(facts["peaks"]).view(-1, 1, 1)


def test_maps_are_read_back_to_half_a_level():
    sampling = recorded()
    sheet, facts = sheet_of_maps(sampling)
    assert facts["parts"] == ["part0:1", "part1:1 (negative)"] and facts["steps"] == [[1, 1], [2, 2], [3, 3]]
    ours, theirs = read_back(sheet, facts), sampling.maps
    assert (ours - theirs).abs().max() <= 0.51 / 255 * max(facts["peaks"])


def test_many_steps_are_averaged_in_groups():
    sampling = recorded(steps=100, pictures=1)
    sheet, facts = sheet_of_maps(sampling)
    assert len(facts["steps"]) <= 32 and facts["steps"][0][0] == 1 and facts["steps"][-1][1] == 100
    first, last = facts["steps"][1]
    theirs = sampling.maps[first - 1 : last].mean(0)
    assert read_back(sheet, facts)[1] == pytest.approx(theirs, abs=0.51 / 255 * max(facts["peaks"]))


def test_fine_maps_and_many_pictures_are_bounded():
    sheet, facts = sheet_of_maps(recorded(steps=2, pictures=6, parts=1, grid=(96, 64)))
    assert (facts["pictures"], facts["grid"], tuple(sheet.shape)) == (4, [48, 32], (1, 2 * 4 * 48, 32, 3))


def test_a_part_counts_only_where_a_prompt_held_it():
    sampling = recorded(steps=64, pictures=1, parts=1)
    sampling.held[1::2] = False
    sheet, facts = sheet_of_maps(sampling)
    assert facts["steps"][0] == [1, 2]
    assert read_back(sheet, facts)[0] == pytest.approx(sampling.maps[0], abs=0.51 / 255 * max(facts["peaks"]))


def test_nothing_recorded_is_black():
    sampling = recorded()
    sampling.maps.zero_()
    sheet, _ = sheet_of_maps(sampling)
    assert sheet.max() <= 0.25 / 255
