"""Stages against ProSpect's own formula, and their boundaries against ComfyUI's comparison, both reproduced as numbers."""

import math

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.stage_bounds import StageBounds

COUNTS = (2, 3, 4, 5, 8, 9, 10, 16, 20, 25, 50)


def _alphas_cumprod() -> torch.Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


LOG_SIGMAS = (((1 - _alphas_cumprod()) / _alphas_cumprod()) ** 0.5).log().float()  # (1000,)


def _sigma_of(timestep: torch.Tensor) -> torch.Tensor:
    """Noise at fractional timesteps, log-linear between whole ones, in float32, as ComfyUI's discrete sampling has it."""
    low = timestep.floor().long().clamp(0, 999)
    high = timestep.ceil().long().clamp(0, 999)
    weight = timestep.frac()
    return ((1 - weight) * LOG_SIGMAS[low] + weight * LOG_SIGMAS[high]).exp()


def _active_stages(bounds: StageBounds, sigmas: torch.Tensor) -> torch.Tensor:
    """`(n, S)` bool: stages whose range holds each sigma, both ends included."""
    edges = []
    for percent in bounds.percents():
        if percent <= 0:
            edges.append(torch.tensor(999999999.9))
        elif percent >= 1:
            edges.append(torch.tensor(0.0))
        else:
            edges.append(_sigma_of(torch.tensor((1.0 - percent) * 999, dtype=torch.float32)))
    return torch.stack([(sigmas <= a) & (sigmas >= b) for a, b in zip(edges, edges[1:], strict=False)], dim=1)


@pytest.mark.parametrize("stages", COUNTS)
def test_every_timestep_has_the_stage_of_the_published_formula(stages: int) -> None:
    ours = StageBounds.equal(stages).stage_of(torch.arange(1000))
    theirs = torch.tensor([stages - 1 - int(t * stages / 1000) for t in range(1000)])
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("stages", COUNTS)
def test_every_timestep_is_active_in_exactly_its_stage(stages: int) -> None:
    bounds = StageBounds.equal(stages)
    active = _active_stages(bounds, LOG_SIGMAS.exp())  # (1000, S)
    assert active.sum(1).eq(1).all()
    assert torch.equal(active.long().argmax(1), bounds.stage_of(torch.arange(1000)))


def test_noise_between_timesteps_is_in_exactly_one_stage_too() -> None:
    bounds = StageBounds.equal(10)
    times = torch.linspace(0, 999, 20_001)
    active = _active_stages(bounds, _sigma_of(times))
    assert active.sum(1).eq(1).all()
    # the same stage that `stage_of` gives a fractional timestep, but for float32 at the boundary itself
    assert (active.long().argmax(1) != bounds.stage_of(times)).sum() <= 9


def test_ten_stages_have_the_published_percents() -> None:
    wanted = (0, 0.0996096, 0.1997097, 0.2998098, 0.3999099, 0.5000100, 0.6001101, 0.7002102, 0.8003103, 0.9004104, 1)
    assert StageBounds.equal(10).percents() == pytest.approx(wanted, abs=6e-8)


def test_one_stage_ends_where_the_next_starts() -> None:
    ranges = StageBounds.equal(7).percent_ranges()
    assert ranges[0][0] == 0 and ranges[-1][1] == 1
    assert all(a[1] == b[0] for a, b in zip(ranges, ranges[1:], strict=False))


def test_continuous_clock_parts_a_flow_models_table_like_the_timesteps() -> None:
    # entry i of a flow model stands for the time (i + 1) / 1000, percent for the time 1 - percent
    bounds = StageBounds.equal(10)
    percents = torch.tensor(bounds.percents("continuous"), dtype=torch.float64)
    times = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    stage = torch.tensor([sum(float(1 - p) >= float(t) for p in percents[1:-1]) for t in times])
    assert torch.equal(stage, bounds.stage_of(torch.arange(1000)))


def test_unequal_stages_count_from_the_noise() -> None:
    bounds = StageBounds.from_fractions([0.1, 0.7])
    assert bounds.edges == (1000, 900, 300, 0)
    assert bounds.stage_of(torch.tensor([999, 900, 899, 300, 299, 0])).tolist() == [0, 0, 1, 1, 2, 2]
    assert bounds.fractions == pytest.approx((0, 0.1, 0.7, 1))


def test_fractions_fall_on_the_edges_of_equal_stages() -> None:
    for stages in COUNTS:
        assert StageBounds.from_fractions([k / stages for k in range(1, stages)]) == StageBounds.equal(stages)


def test_stages_from_ranges_in_any_order() -> None:
    assert StageBounds.from_ranges([(0.5, 1), (0, 0.2), (0.2, 0.5)]).edges == (1000, 800, 500, 0)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([], "no stages: give at least one range"),
        ([(0, 0.5), (0.6, 1)], "stages leave 0.5 to 0.6 of the schedule uncovered"),
        ([(0.1, 1)], "stages leave 0 to 0.1 of the schedule uncovered"),
        ([(0, 0.9)], "stages leave 0.9 to 1 of the schedule uncovered"),
        ([(0, 0.5), (0.4, 1)], "stages overlap between 0.4 and 0.5 of the schedule"),
        ([(0, 1.5)], "stages overlap between 1 and 1.5"),
    ],
)
def test_overlaps_and_gaps_are_named(ranges: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(BestiaryError, match=message):
        StageBounds.from_ranges(ranges)


@pytest.mark.parametrize("edges", [(1000,), (1000, 500, 500, 0), (0, 1000), (1000, 10), (1000, 400, 600, 0)])
def test_edges_that_do_not_fall_are_refused(edges: tuple[int, ...]) -> None:
    with pytest.raises(BestiaryError, match=r"stage edges .* must decrease strictly"):
        StageBounds(edges)


def test_wrong_counts_and_shares_are_refused() -> None:
    with pytest.raises(BestiaryError, match="0 stages: choose 1 to 250"):
        StageBounds.equal(0)
    with pytest.raises(BestiaryError, match="51 stages: choose 1 to 50"):
        StageBounds.equal(51, 50)
    with pytest.raises(BestiaryError, match="stage boundary 1.0 is out of range"):
        StageBounds.from_fractions([0.5, 1.0])


def test_fifty_ddim_steps_give_five_to_each_of_ten_stages() -> None:
    assert StageBounds.equal(10).steps_per_stage(range(981, 0, -20)) == (5,) * 10


def test_half_denoising_never_reaches_the_first_stages() -> None:
    # image to image at strength 0.6 starts at timestep 581 or below
    assert StageBounds.equal(10).steps_per_stage(range(581, 0, -20)) == (0, 0, 0, 0, 5, 5, 5, 5, 5, 5)


def test_step_clock_switches_at_a_share_of_the_steps() -> None:
    # noise levels as unevenly spaced as Karras' (30 steps): half of the steps lie below timestep 400
    steps = [999 * (1 - (n / 29)) ** 1.7 for n in range(30)]
    bounds = StageBounds.equal(2)
    by_step = bounds.step_percents(steps)
    switch = 999 * (1 - by_step[1])
    assert sum(t > switch for t in steps) == 15
    assert sum(t > 500 for t in steps) < 15


def test_step_clock_gives_every_step_to_its_share() -> None:
    steps = [999 * (1 - (n / 20)) ** 3 for n in range(20)]
    bounds = StageBounds.equal(5)
    switches = [999 * (1 - p) for p in bounds.step_percents(steps)]
    for number, step in enumerate(steps):
        stage = next(s for s in range(5) if step >= switches[s + 1])
        assert stage == number * 5 // 20


def test_step_clock_with_fewer_steps_than_stages_leaves_stages_empty() -> None:
    percents = StageBounds.equal(10).step_percents([999, 500, 100])
    assert list(percents) == sorted(percents)
    assert len({(a, b) for a, b in zip(percents, percents[1:], strict=False) if a < b}) == 3


def test_refining_and_finding_back() -> None:
    coarse, other = StageBounds.equal(2), StageBounds.from_fractions([0.3])
    fine = coarse.refined_by(other)
    assert fine.edges == (1000, 700, 500, 0)
    assert coarse.stages_of_finer(fine) == (0, 0, 1)
    assert other.stages_of_finer(fine) == (0, 1, 1)
    with pytest.raises(BestiaryError, match="over 1000 and over 50 timesteps cannot be combined"):
        coarse.refined_by(StageBounds.equal(2, 50))


def test_few_timesteps_of_distilled_models_fall_into_stages() -> None:
    # 50 timesteps 19, 39, ..., 999 of a distilled model
    counts = StageBounds.equal(10).steps_per_stage(range(999, 0, -20))
    assert counts == (5,) * 10 and math.prod(counts) > 0
