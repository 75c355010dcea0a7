"""The benchmark that counts what stages cost: it sees naive boundaries, and the whole product when it is run by hand."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bestiary.concepts.spectrum.stage_bounds import StageBounds

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """The benchmark, with ComfyUI as this session has it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import stage_costs

    yield stage_costs
    stage_costs.noting_model.cache_clear()
    sys.modules.pop("stage_costs")


def test_a_sampler_is_counted_over_all_schedulers(counting):
    import comfy.samplers

    tally = counting.count_sampler("heun", 10, 3)
    schedulers = len(comfy.samplers.KSampler.SCHEDULERS)
    assert tally.combinations == 3 * schedulers - 1 and tally.no_schedule == ["heun kl_optimal 1"]
    assert tally.costs_differ == tally.not_one_stage == [] and tally.rows == 2 * tally.evaluations
    # two evaluations a step, one at the last
    simple = counting.sampled(("heun", "simple", 3), [[torch.zeros(1, 1, 1), {}]])
    assert [[len(said) for _, said in calls] for calls in simple] == [[2]] * 5


def test_naive_boundaries_are_seen(counting, monkeypatch):
    from bestiary.nodes.spectrum import stage_ranges

    monkeypatch.setattr(stage_ranges, "stage_percents", lambda bounds: tuple(n / 10 for n in range(11)))
    tally, bounds = counting.Tally(), StageBounds.equal(10)
    requests = counting.sampled(("euler", "normal", 21), counting.numbered_stages(bounds))
    counting.judge(tally, ("euler", "normal", 21), bounds, requests, None)
    assert tally.costs_differ == tally.not_one_stage == ["euler normal 21"]


@pytest.mark.parametrize(
    ("requests", "plain", "differ", "stages", "other"),
    [
        ([[(950.0, (0.0, -1.0))], [(40.0, (9.0, -1.0))]], [[2], [2]], 0, 0, {}),
        ([[(950.0, (0.0, -1.0)), (950.0, (1.0,))]], None, 1, 0, {"950": 1}),
        ([[(950.0, (-1.0,))]], None, 1, 1, {"950": 1}),
        ([[(950.0, (0.0, 1.0, -1.0))]], None, 1, 1, {}),
        ([[(950.0, (0.0, -1.0))]], [[2], [2]], 1, 0, {}),
        ([[(499.0, (4.0, -1.0))]], None, 0, 0, {"499": 1}),
    ],
)
def test_what_stands_out_is_kept_by_name(counting, requests, plain, differ, stages, other):
    tally = counting.Tally()
    counting.judge(tally, ("a", "b", 1), StageBounds.equal(10), requests, plain)
    assert (len(tally.costs_differ), len(tally.not_one_stage), tally.other_stage) == (differ, stages, other)
    total = counting.Tally()
    for _ in range(2):
        total.add(tally)
    assert total.combinations == 2 and total.other_stage == {name: 2 * count for name, count in other.items()}


@pytest.mark.slow
def test_the_whole_product_costs_what_one_prompt_costs(counting):
    from comfy.samplers import KSampler

    for sampler in KSampler.SAMPLERS:
        tally = counting.count_sampler(sampler, 10, 50)
        assert tally.costs_differ == tally.not_one_stage == [], sampler
