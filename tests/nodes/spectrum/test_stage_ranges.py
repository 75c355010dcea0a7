"""Stages as ranges of ComfyUI's conditionings, counted on its own samplers: what one prompt costs, each evaluation in one stage."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from torch import Tensor

WIDTH = 32
NOISE = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(5))
NO_SCHEDULE = ("kl_optimal", 1)
"""ComfyUI's own schedule is not a number there (0 / 0), with one prompt as with many."""


def core_names() -> tuple[list[str], list[str]]:
    import comfy.samplers

    return list(comfy.samplers.KSampler.SAMPLERS), list(comfy.samplers.KSampler.SCHEDULERS)


def numbered(stages: int) -> list[tuple[Tensor, dict]]:
    """Contents `(1, 77, 32)` that say the number of their stage."""
    return [(torch.full((1, 77, WIDTH), float(stage)), {}) for stage in range(stages)]


def staged(stages: int | StageBounds, **options: object) -> list:
    from bestiary.nodes.spectrum.stage_ranges import stage_percents, staged_entries

    bounds = StageBounds.equal(stages) if isinstance(stages, int) else stages
    return staged_entries(numbered(bounds.stages), stage_percents(bounds), **options)


def plain(value: float = -1.0) -> list:
    return [[torch.full((1, 77, WIDTH), value), {}]]


class Counter:
    """Stands in front of a model: notes every evaluation and answers at once, whatever the prompt says."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, list[float]]] = []

    def __call__(self, apply: Callable, inputs: dict) -> Tensor:
        said = inputs["c"]["c_crossattn"][:, 0, 0].tolist()
        self.calls.append((float(inputs["timestep"][0]), said))
        return inputs["input"] * 0.5

    @property
    def cost(self) -> tuple[int, int]:
        """Evaluations and rows."""
        return len(self.calls), sum(len(said) for _, said in self.calls)


def sample(model: object, walk: tuple[int, str, str], positive: list, negative: list, **options: object) -> Tensor:
    import comfy.sample

    steps, sampler, scheduler = walk
    fixed = {"disable_pbar": True, "seed": 1, **options}
    return comfy.sample.sample(
        model, NOISE, steps, 3.0, sampler, scheduler, positive, negative, torch.zeros_like(NOISE), **fixed
    )


def counted(model: object, walk: tuple[int, str, str], positive: list, negative: list | None = None) -> Counter:
    counter, clone = Counter(), model.clone()
    clone.set_model_unet_function_wrapper(counter)
    sample(clone, walk, positive, plain() if negative is None else negative)
    return counter


def stage_of_sigma(model: object, bounds: StageBounds, sigma: float) -> int:
    sampling = model.get_model_object("model_sampling")
    return int(bounds.stage_of(sampling.timestep(torch.tensor([sigma])))[0])


def test_every_whole_timestep_is_in_exactly_one_stage_by_the_core_rule(sd15_model):
    from bestiary.nodes.spectrum.stage_ranges import stage_percents
    from comfy.samplers import get_area_and_mult

    sampling, x = sd15_model.model.get_model_object("model_sampling"), torch.zeros(1, 4, 1, 1)
    for stages in (2, 3, 4, 5, 8, 9, 10, 16, 20, 25, 50):
        bounds = StageBounds.equal(stages)
        levels = [sampling.percent_to_sigma(percent) for percent in stage_percents(bounds)]
        entries = [
            {"timestep_start": a, "timestep_end": b, "model_conds": {}, "uuid": None}
            for a, b in itertools.pairwise(levels)
        ]
        for t in range(1000):
            sigma = sampling.sigma(torch.tensor([t]))
            active = [s for s, entry in enumerate(entries) if get_area_and_mult(entry, x, sigma) is not None]
            # k(t) = int(t S / T) counts from the end of generation
            assert active == [stages - 1 - t * stages // 1000], (stages, t)


def test_every_scheduler_with_1_to_50_steps_has_one_stage_per_step(sd15_model):
    import comfy.samplers
    from bestiary.nodes.spectrum.stage_ranges import stage_percents

    sampling = sd15_model.model.get_model_object("model_sampling")
    wrong = steps_seen = 0
    for stages in (2, 3, 7, 10, 25, 50, 100):
        bounds = StageBounds.equal(stages)
        levels = torch.tensor([sampling.percent_to_sigma(p) for p in stage_percents(bounds)]).unsqueeze(1)  # (S + 1, 1)
        for scheduler, steps in itertools.product(core_names()[1], range(1, 51)):
            if (scheduler, steps) == NO_SCHEDULE:
                continue
            sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)[:-1].float()
            active = (sigmas <= levels[:-1]) & (sigmas >= levels[1:])  # (S, steps)
            assert (active.sum(0) == 1).all(), (stages, scheduler, steps)
            wrong += int((active.float().argmax(0) != bounds.stage_of(sampling.timestep(sigmas))).sum())
            steps_seen += len(sigmas)
    # values between two timesteps that the model rounds up while the range counts them down
    assert wrong <= steps_seen // 1000, (wrong, steps_seen)


def test_ten_stages_over_the_schedules_of_the_specification(sd15_model):
    import comfy.samplers
    from bestiary.nodes.spectrum.stage_ranges import stage_percents

    sampling, bounds = sd15_model.model.get_model_object("model_sampling"), StageBounds.equal(10)
    levels = torch.tensor([sampling.percent_to_sigma(p) for p in stage_percents(bounds)]).unsqueeze(1)  # (11, 1)
    walks = itertools.product(core_names()[1], [*range(4, 61), 75, 100])
    sigmas = torch.cat([comfy.samplers.calculate_sigmas(sampling, *walk)[:-1].float() for walk in walks])
    active = (sigmas <= levels[:-1]) & (sigmas >= levels[1:])  # (10, N)
    timesteps = sampling.timestep(sigmas)
    wrong = active.float().argmax(0) != bounds.stage_of(timesteps)
    assert len(sigmas) > 18_000 and (active.sum(0) == 1).all()
    # ties: half-way between two timesteps the model takes the upper one, the range the lower one
    assert int(wrong.sum()) <= 6 and set(timesteps[wrong].tolist()) <= {499, 500}


def test_all_samplers_and_schedulers_cost_what_one_prompt_costs(sd15_model):
    bounds = StageBounds.equal(10)
    wrong = seen = 0
    for number, (sampler, scheduler) in enumerate(itertools.product(*core_names())):
        # every number of steps from 1 to 20 comes by, each sampler meets nine of them
        steps = number * 7 % 20 + 1
        walk = (steps + ((scheduler, steps) == NO_SCHEDULE), sampler, scheduler)
        one, ours = counted(sd15_model.model, walk, plain(0.0)), counted(sd15_model.model, walk, staged(10))
        assert ours.cost == one.cost, (walk, ours.cost, one.cost)
        for sigma, said in ours.calls:
            (stage,) = [value for value in said if value >= 0]
            seen += 1
            wrong += stage != stage_of_sigma(sd15_model.model, bounds, sigma)
    # a noise level half-way between two timesteps is rounded up by the model and counted down by the range
    assert wrong <= seen // 1000 + 1, (wrong, seen)


@pytest.mark.parametrize("stages", [2, 3, 10, 50, 250])
def test_any_number_of_stages_costs_what_one_prompt_costs(sd15_model, stages):
    for walk in ((50, "euler", "sgm_uniform"), (21, "euler", "normal"), (20, "dpm_2", "karras"), (17, "heun", "beta")):
        one, ours = counted(sd15_model.model, walk, plain(0.0)), counted(sd15_model.model, walk, staged(stages))
        assert ours.cost == one.cost == (one.cost[0], 2 * one.cost[0])


def test_stages_of_both_sides_cost_nothing_either(sd15_model):
    walk = (20, "euler", "normal")
    ours = counted(sd15_model.model, walk, staged(10), staged(StageBounds.from_fractions([0.33, 0.5])))
    assert ours.cost == (20, 40)


def test_cfg_one_evaluates_one_row_per_step(sd15_model):
    import comfy.sample

    counter, clone = Counter(), sd15_model.model.clone()
    clone.set_model_unet_function_wrapper(counter)
    comfy.sample.sample(
        clone,
        NOISE,
        10,
        1.0,
        "euler",
        "simple",
        staged(10),
        plain(),
        torch.zeros_like(NOISE),
        disable_pbar=True,
        seed=1,
    )
    assert counter.cost == (10, 10)
    assert [said for _, said in counter.calls] == [[float(stage)] for stage in range(10)]


def test_four_pictures_at_once_are_told_the_same_stages(sd15_model):
    import comfy.sample

    counter, clone, four = Counter(), sd15_model.model.clone(), NOISE.repeat(4, 1, 1, 1)
    clone.set_model_unet_function_wrapper(counter)
    fixed = {"disable_pbar": True, "seed": 1}
    comfy.sample.sample(clone, four, 10, 3.0, "euler", "simple", staged(10), plain(), torch.zeros_like(four), **fixed)
    assert counter.cost == (10, 80)
    assert [sorted(said) for _, said in counter.calls] == [[-1.0] * 4 + [float(stage)] * 4 for stage in range(10)]


def test_an_image_to_image_sampling_reaches_the_last_stages_only(sd15_model):
    counter, clone = Counter(), sd15_model.model.clone()
    clone.set_model_unet_function_wrapper(counter)
    sample(clone, (20, "euler", "normal"), staged(10), plain(), denoise=0.6)
    reached = {value for _, said in counter.calls for value in said if value >= 0}
    assert reached == {4.0, 5.0, 6.0, 7.0, 8.0, 9.0}


def random_contents(stages: int) -> list[tuple[Tensor, dict]]:
    generator = torch.Generator().manual_seed(9)
    return [(torch.randn(1, 77, WIDTH, generator=generator), {}) for _ in range(stages)]


def explicit_loop(model: object, contents: Sequence[tuple[Tensor, dict]], negative: Tensor, sigmas: Tensor) -> Tensor:
    """Euler steps, each with the prompt of its stage k = int(t S / T) and no range anywhere."""
    import comfy.conds
    import comfy.samplers

    def entry(cond: Tensor) -> list[dict]:
        return [{"model_conds": {"c_crossattn": comfy.conds.CONDCrossAttn(cond)}, "uuid": None}]

    inner = model.model
    inner.current_patcher = model
    sampling, last = inner.model_sampling, len(contents) - 1
    x = sampling.noise_scaling(sigmas[0], NOISE.clone(), torch.zeros_like(NOISE), False)
    for sigma, after in itertools.pairwise(sigmas):
        t = int(sampling.timestep(sigma))
        said = contents[last - t * len(contents) // 1000][0]
        with torch.no_grad():
            denoised = comfy.samplers.sampling_function(inner, x, sigma[None], entry(negative), entry(said), 3.0, {})
        x = x + (x - denoised) / sigma * (after - sigma)
    return inner.process_latent_out(x)


def test_staged_sampling_equals_an_explicit_loop_bit_for_bit(sd15_model):
    import comfy.samplers
    from bestiary.nodes.spectrum.stage_ranges import stage_percents, staged_entries

    contents, negative = random_contents(10), torch.randn(1, 77, WIDTH, generator=torch.Generator().manual_seed(2))
    model = sd15_model.model
    ours = sample(
        model,
        (50, "euler", "ddim_uniform"),
        staged_entries(contents, stage_percents(StageBounds.equal(10))),
        [[negative, {}]],
    )
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "ddim_uniform", 50)
    assert torch.equal(ours, explicit_loop(model, contents, negative, sigmas))


def test_ten_equal_stages_equal_the_plain_prompt_exactly(sd15_model):
    from bestiary.nodes.spectrum.stage_ranges import stage_percents, staged_entries

    ((cond, options),) = random_contents(1)
    entries = staged_entries([(cond, options)] * 10, stage_percents(StageBounds.equal(10)))
    assert len(entries) == 11
    for walk in ((8, "dpmpp_2m", "karras"), (5, "heun", "normal")):
        ours = sample(sd15_model.model, walk, entries, plain())
        assert torch.equal(ours, sample(sd15_model.model, walk, [[cond, options]], plain()))


def test_the_last_stage_changes_the_last_tenth_of_the_steps_only(sd15_model):
    from bestiary.nodes.spectrum.stage_ranges import stage_percents, staged_entries

    seen: list[list[Tensor]] = []
    for change in (0.0, 1.0):
        contents = random_contents(10)
        contents[9] = (contents[9][0] + change, {})
        inputs: list[Tensor] = []
        clone = sd15_model.model.clone()
        clone.set_model_unet_function_wrapper(
            lambda apply, facts, kept=inputs: (
                kept.append(facts["input"]) or apply(facts["input"], facts["timestep"], **facts["c"])
            )
        )
        sample(
            clone,
            (50, "euler", "ddim_uniform"),
            staged_entries(contents, stage_percents(StageBounds.equal(10))),
            plain(),
        )
        seen.append(inputs)
    equal = [torch.equal(a, b) for a, b in zip(*seen, strict=True)]
    # the input of the step after the first changed one is the first that differs
    assert equal == [True] * 46 + [False] * 4


def test_the_first_stage_is_told_to_the_first_tenth_of_the_steps_only(sd15_model):
    heard = []
    for change in (0.0, 100.0):
        entries = staged(10)
        entries[0] = [entries[0][0] + change, entries[0][1]]
        heard.append([said for _, said in counted(sd15_model.model, (50, "euler", "ddim_uniform"), entries).calls])
    assert [a == b for a, b in zip(*heard, strict=True)] == [False] * 5 + [True] * 45


# --- gaps and ranges ------------------------------------------------------------------------------------------------


def without_middle(entries: list) -> list:
    return [entry for entry in entries if not 0.3 < entry[1].get("start_percent", 0.0) < 0.6]


def test_the_filler_acts_in_a_gap_and_costs_nothing(sd15_model):
    walk = (20, "euler", "normal")
    filled = counted(sd15_model.model, walk, without_middle(staged(10)))
    assert filled.cost == (20, 40)
    # the longest stage; all are as long, so the last
    said = [value for _, values in filled.calls for value in values if value >= 0]
    assert len(said) == 20
    explicit = without_middle(staged(10, filler=False))
    filler = numbered(10)[int(said[8])][0]
    first, last = explicit[3][1]["end_percent"], explicit[4][1]["start_percent"]
    explicit.append([filler, {"start_percent": first, "end_percent": last}])
    calls = counted(sd15_model.model, walk, explicit).calls
    assert [(sigma, sorted(said)) for sigma, said in calls] == [(sigma, sorted(said)) for sigma, said in filled.calls]


def test_a_single_stage_has_no_range_and_no_filler():
    ((_, options),) = staged(1)
    assert options == {}


def test_intersecting_keeps_at_most_one_stage_per_step(sd15_model):
    from bestiary.nodes.spectrum.stage_ranges import intersect_range

    walk = (20, "euler", "normal")
    limited, report = intersect_range(staged(10), 0.25, 1.0, outside=plain(77.0), model=None)
    ours = counted(sd15_model.model, walk, limited)
    assert ours.cost == (20, 40)
    said = [value for _, values in ours.calls for value in values if value >= 0]
    assert said[:5] == [77.0] * 5
    assert said[5:] == [float(stage_of_sigma(sd15_model.model, StageBounds.equal(10), s)) for s, _ in ours.calls[5:]]
    assert report == "8 of 10 stages act between 0.25 and 1 of the sampling. Elsewhere the second conditioning acts."


@pytest.mark.parametrize("middle", [0.3, 0.5, 0.333])
def test_two_ranges_that_meet_never_act_at_once(sd15_model, middle):
    from bestiary.nodes.spectrum.stage_ranges import intersect_range

    halves = [
        intersect_range(plain(number), start, end, outside=None, model=sd15_model.model)[0]
        for number, start, end in ((1.0, 0.0, middle), (2.0, middle, 1.0))
    ]
    for steps, scheduler in itertools.product((10, 20, 21), core_names()[1]):
        walk = (steps, "euler", scheduler)
        ours = counted(sd15_model.model, walk, [*halves[0], *halves[1]])
        assert ours.cost == counted(sd15_model.model, walk, plain(0.0)).cost


def test_intersecting_with_the_whole_way_drops_the_filler_alone():
    from bestiary.nodes.spectrum.stage_ranges import intersect_range

    limited, report = intersect_range(staged(3), 0.0, 1.0, outside=None, model=None)
    ranges = [(options["start_percent"], options["end_percent"]) for _, options in limited]
    assert ranges == list(StageBounds.equal(3).percent_ranges())
    assert report == "3 of 3 stages act between 0 and 1 of the sampling."
    assert "Elsewhere nothing acts" in intersect_range(staged(3), 0.0, 0.5, outside=None, model=None)[1]


def test_empty_ranges_are_told():
    from bestiary.nodes.spectrum.stage_ranges import intersect_range

    with pytest.raises(BestiaryError, match=r"range 0\.6 to 0\.4 is invalid: enter a start below the end"):
        intersect_range(staged(3), 0.6, 0.4, outside=None, model=None)
    early = intersect_range(plain(), 0.0, 0.2, outside=None, model=None)[0]
    with pytest.raises(BestiaryError, match=r"no part of the conditioning \(0 to 0\.2\) is between 0\.5 and 1"):
        intersect_range(early, 0.5, 1.0, outside=None, model=None)


# --- clocks ---------------------------------------------------------------------------------------------------------


def test_the_step_clock_counts_steps_where_the_timestep_clock_counts_noise(sd15_model):
    from bestiary.nodes.spectrum.stage_ranges import stage_percents, staged_entries
    from bestiary.nodes.spectrum.stage_schedule import sampler_sigmas

    model, walk = sd15_model.model, (30, "euler", "karras")
    sigmas = sampler_sigmas(model, "euler", "karras", 30, 1.0)
    switches = {}
    for clock in ("timesteps", "steps"):
        percents = stage_percents(StageBounds.from_fractions([0.5]), clock, model, sigmas)
        calls = counted(model, walk, staged_entries(numbered(2), percents)).calls
        switches[clock] = sum(0.0 in said for _, said in calls)
    assert switches == {"timesteps": 14, "steps": 15}


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpmpp_2s_ancestral", "dpmpp_sde", "seeds_3"])
def test_the_step_clock_costs_nothing_with_samplers_that_look_between_steps(sd15_model, sampler):
    from bestiary.nodes.spectrum.stage_ranges import stage_percents, staged_entries
    from bestiary.nodes.spectrum.stage_schedule import sampler_sigmas

    model = sd15_model.model
    for scheduler in core_names()[1]:
        sigmas = sampler_sigmas(model, sampler, scheduler, 20, 1.0)
        percents = stage_percents(StageBounds.equal(10), "steps", model, sigmas)
        walk = (20, sampler, scheduler)
        ours = counted(model, walk, staged_entries(numbered(10), percents))
        assert ours.cost == counted(model, walk, plain(0.0)).cost


def test_stages_without_a_step_get_no_entry(sd15_model):
    from bestiary.nodes.spectrum.stage_ranges import stage_percents, staged_entries
    from bestiary.nodes.spectrum.stage_schedule import sampler_sigmas

    sigmas = sampler_sigmas(sd15_model.model, "euler", "simple", 4, 1.0)
    percents = stage_percents(StageBounds.equal(10), "steps", sd15_model.model, sigmas)
    entries = staged_entries(numbered(10), percents, filler=False)
    assert len(entries) == 4
    assert [entry[1]["start_percent"] for entry in entries] == sorted({p for p in percents if p < 1})


def test_missing_inputs_of_the_step_clock_are_told(sd15_model):
    from bestiary.nodes.spectrum.stage_ranges import stage_percents

    bounds = StageBounds.equal(10)
    with pytest.raises(BestiaryError, match="the clock counts steps, but model and sigmas is not connected"):
        stage_percents(bounds, "steps")
    with pytest.raises(BestiaryError, match="but sigmas is not connected"):
        stage_percents(bounds, "steps", sd15_model.model)
    with pytest.raises(BestiaryError, match="the sigmas contain 1 noise levels and therefore no step"):
        stage_percents(bounds, "steps", sd15_model.model, torch.tensor([0.0]))
    with pytest.raises(BestiaryError, match="unknown clock 'moon': choose timesteps or steps"):
        stage_percents(bounds, "moon")


class FakeModel:
    """Answers for its noise schedule alone."""

    def __init__(self, sampling: object) -> None:
        self.sampling = sampling

    def get_model_object(self, name: str) -> object:
        return {"model_sampling": self.sampling}[name]


def continuous_models() -> list[FakeModel]:
    from comfy.model_sampling import ModelSamplingContinuousEDM, ModelSamplingDiscreteFlow

    flow = ModelSamplingDiscreteFlow()
    flow.set_parameters(shift=3.0)
    return [FakeModel(flow), FakeModel(ModelSamplingContinuousEDM())]


@pytest.mark.parametrize("number", [0, 1])
def test_flow_and_edm_schedules_have_one_stage_per_step(number):
    import comfy.samplers
    from bestiary.nodes.spectrum.stage_ranges import percent_clock, stage_percents

    model = continuous_models()[number]
    sampling = model.sampling
    assert percent_clock(model) == "continuous"
    for stages in (2, 3, 10, 20):
        levels = [sampling.percent_to_sigma(p) for p in stage_percents(StageBounds.equal(stages), "timesteps", model)]
        for scheduler, steps in itertools.product(["simple", "normal", "sgm_uniform", "beta"], (4, 20, 30, 50)):
            for sigma in comfy.samplers.calculate_sigmas(sampling, scheduler, steps)[:-1].float():
                active = [not (sigma > a or sigma < b) for a, b in itertools.pairwise(levels)]
                assert sum(active) == 1, (stages, scheduler, steps, float(sigma))


def test_the_step_clock_works_on_a_shifted_flow_schedule():
    import comfy.samplers
    from bestiary.nodes.spectrum.stage_ranges import stage_percents

    model = continuous_models()[0]
    sigmas = comfy.samplers.calculate_sigmas(model.sampling, "simple", 30)
    percents = stage_percents(StageBounds.equal(3), "steps", model, sigmas)
    levels = [model.sampling.percent_to_sigma(percent) for percent in percents]
    counts = [sum(not (s > a or s < b) for s in sigmas[:-1].tolist()) for a, b in itertools.pairwise(levels)]
    assert counts == [10, 10, 10]


def limited(conditioning: list) -> dict[str, list]:
    """What ComfyUI's own nodes make of a conditioning that shall act on a part of the picture, or less."""
    import nodes

    mask = torch.ones(1, 32, 32)
    mask[..., 16:] = 0
    return {
        "area": nodes.ConditioningSetArea().append(conditioning, 16, 16, 8, 8, 1.0)[0],
        "percents": nodes.ConditioningSetAreaPercentage().append(conditioning, 0.5, 0.5, 0.25, 0.25, 1.0)[0],
        "strength": nodes.ConditioningSetAreaStrength().append(conditioning, 0.5)[0],
        "mask": nodes.ConditioningSetMask().append(conditioning, mask, "default", 1.0)[0],
    }


@pytest.mark.parametrize("how", ["area", "percents", "strength", "mask"])
def test_areas_masks_and_strengths_act_as_without_the_filler(sd15_model, how):
    walk = (7, "euler", "normal")
    pictures = []
    for filler in (True, False):
        entries = limited(staged(10, filler=filler))[how]
        clone = sd15_model.model.clone()
        clone.set_model_unet_function_wrapper(Counter())
        # beside another prompt, as areas are used
        pictures.append(sample(clone, walk, [*entries, *plain(0.5)], plain()))
    assert torch.equal(*pictures)
    assert pictures[0].isfinite().all()


def test_a_filler_acts_again_where_nothing_limits_it(sd15_model):
    from bestiary.nodes.spectrum.stage_ranges import FILLER, START

    (*_, (_, facts)) = staged(10)
    assert facts[FILLER] and START not in facts.copy()
    copied = facts.copy()
    copied["area"] = (1, 1, 0, 0)
    assert (copied[START], copied["end_percent"]) == (1.0, 0.0) and START not in facts
