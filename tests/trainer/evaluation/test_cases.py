"""Test cases: what is asked for exists, is spread over the pictures, and depends on the seed alone."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_map.part_map import ABSENT
from bestiary.trainer.evaluation.cases import mix_cases, reconstruction_cases

BACKGROUND = 4


def _codes(pictures: int = 24, kinds: int = 6) -> torch.Tensor:
    """Five parts, the last the background; every picture is of one species and shows all parts but for a few."""
    species = torch.arange(pictures) % kinds
    codes = species.unsqueeze(1).repeat(1, 5)  # (N, M)
    codes[:, BACKGROUND] = torch.arange(pictures) % 2
    codes[3:4, 1] = ABSENT
    codes[7:8, 2] = ABSENT
    return codes


def test_reconstruction_asks_for_what_a_picture_shows():
    codes = _codes()
    cases = reconstruction_cases(codes, 24, seed=1)
    assert sorted(case.pictures[0] for case in cases) == list(range(24))
    for case in cases:
        assert len(case.pictures) == 1
        assert list(case.codes) == codes[case.pictures[0]].tolist()
        assert [source < 0 for source in case.sources] == [code == ABSENT for code in case.codes]


def test_more_cases_than_pictures_go_round():
    cases = reconstruction_cases(_codes(), 60, seed=0)
    counts = torch.bincount(torch.tensor([case.pictures[0] for case in cases]))
    assert counts.min() >= 2 and counts.max() <= 3
    assert len({case.seed for case in cases}) == 60


@pytest.mark.parametrize("sources", [1, 2, 3, 4])
def test_mixes_take_from_exactly_so_many_pictures(sources):
    codes = _codes()
    for case in mix_cases(codes, BACKGROUND, sources, 40, seed=2):
        foreground = {source for part, source in enumerate(case.sources) if part != BACKGROUND and source >= 0}
        assert len(foreground) == sources
        for part, (code, source) in enumerate(zip(case.codes, case.sources, strict=True)):
            assert code == (codes[source, part] if source >= 0 else ABSENT)


def test_mixed_pictures_share_no_kind():
    codes = _codes()
    for case in mix_cases(codes, BACKGROUND, 4, 40, seed=3):
        assert len({int(codes[picture, 0]) for picture in case.pictures}) == 4


def test_too_few_kinds_still_give_mixes():
    cases = mix_cases(_codes(kinds=2), BACKGROUND, 4, 5, seed=0)
    assert [len(set(case.sources[:BACKGROUND])) for case in cases] == [4] * 5


def test_without_background_nothing_is_asked_for_it():
    codes = _codes()[:, :BACKGROUND]
    assert all(len(case.codes) == BACKGROUND for case in mix_cases(codes, -1, 2, 5, seed=0))


def test_cases_follow_from_the_seed():
    codes = _codes()
    ours, again = (mix_cases(codes, BACKGROUND, 3, 10, seed=5) for _ in range(2))
    assert ours == again
    assert ours != mix_cases(codes, BACKGROUND, 3, 10, seed=6)


def test_more_sources_than_parts_is_a_fault():
    with pytest.raises(BestiaryError, match="a mix of 5 needs 5 foreground parts, but there are 4"):
        mix_cases(_codes(), BACKGROUND, 5, 1, seed=0)


def test_fewer_pictures_than_sources_is_a_fault():
    with pytest.raises(BestiaryError, match="3 pictures with parts are needed, but the discovery holds 2"):
        mix_cases(_codes(pictures=2), BACKGROUND, 3, 1, seed=0)


def test_pictures_without_parts_are_left_out():
    codes = _codes()
    codes[5] = ABSENT
    assert 5 not in {case.pictures[0] for case in reconstruction_cases(codes, 23, seed=0)}
