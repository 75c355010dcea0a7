"""Which steps fall into which stages: the table says what the sampler then does."""

import itertools

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.stage_bounds import StageBounds

TEN = StageBounds.equal(10)


def preview(model: object, *walk: object, stages: object = TEN, sigmas: object = None) -> object:
    from bestiary.nodes.spectrum.stage_schedule import preview_schedule

    return preview_schedule(model, walk, sigmas, stages)


@pytest.mark.parametrize(
    ("scheduler", "steps", "counts"),
    [
        ("karras", 20, (3, 2, 2, 1, 1, 1, 1, 1, 2, 6)),
        ("karras", 10, (2, 1, 0, 1, 1, 0, 1, 0, 1, 3)),
        ("kl_optimal", 50, (2, 3, 3, 4, 5, 5, 5, 6, 6, 11)),
        ("beta", 20, (4, 2, 2, 1, 2, 1, 1, 2, 2, 3)),
        ("simple", 10, (1,) * 10),
        ("ddim_uniform", 50, (5,) * 10),
    ],
)
def test_schedulers_spread_their_steps_as_measured(sd15_model, scheduler, steps, counts):
    assert preview(sd15_model.model, "euler", scheduler, steps, 1.0).counts == counts


def test_the_table_says_what_a_sampler_does(sd15_model):
    """Ours against a counting of the real evaluations."""
    import comfy.sample
    from bestiary.nodes.spectrum.stage_ranges import stage_percents, staged_entries

    noise = torch.zeros(1, 4, 4, 4)
    contents = [(torch.full((1, 77, 32), float(stage)), {}) for stage in range(10)]
    entries = staged_entries(contents, stage_percents(TEN))
    for sampler, scheduler, steps in itertools.product(("euler", "uni_pc"), ("karras", "normal"), (7, 20)):
        theirs = [0] * 10

        def count(apply: object, facts: dict, counts: list[int] = theirs) -> torch.Tensor:
            stage = int(facts["c"]["c_crossattn"][0, 0, 0])
            counts[stage] += 1
            return facts["input"] * 0.5

        clone = sd15_model.model.clone()
        clone.set_model_unet_function_wrapper(count)
        fixed = {"disable_pbar": True, "seed": 1}
        comfy.sample.sample(clone, noise, steps, 1.0, sampler, scheduler, entries, entries, noise, **fixed)
        ours = preview(clone, sampler, scheduler, steps, 1.0, stages=entries)
        assert sum(ours.counts) == len(ours.steps)
        if sampler == "euler":
            assert ours.counts == tuple(theirs)


def test_a_low_denoise_reaches_the_last_stages_only(sd15_model):
    from bestiary.nodes.spectrum.stage_schedule import schedule_table

    schedule = preview(sd15_model.model, "euler", "normal", 20, 0.6)
    assert schedule.unreached == (0, 1, 2, 3)
    table = schedule_table(schedule)
    assert table.startswith("20 steps, normal, denoise 0.6\n")
    assert "Stages 1-4 are never reached: their texts have no effect." in table


def test_the_table_has_a_line_per_stage(sd15_model):
    from bestiary.nodes.spectrum.stage_schedule import schedule_table

    schedule = preview(sd15_model.model, "euler", "simple", 4, 1.0, stages=StageBounds.equal(2))
    lines = [line.split() for line in schedule_table(schedule).splitlines()]
    assert lines[1] == ["stage", "range", "steps", "which", "timesteps"]
    assert lines[2] == ["1", "0.0-50.0", "%", "2", "1-2", "999-749"]
    assert lines[3] == ["2", "50.0-100.0", "%", "2", "3-4", "499-249"]
    assert schedule.warnings() == []


def test_gaps_and_doubles_of_a_conditioning_are_warned_of(sd15_model):
    tensor = torch.zeros(1, 77, 32)

    def entry(start: float, end: float) -> list:
        return [tensor, {"start_percent": start, "end_percent": end}]

    walk = ("euler", "simple", 10, 1.0)
    gap = preview(sd15_model.model, *walk, stages=[entry(0.0, 0.3), entry(0.55, 1.0)])
    assert gap.warnings() == ["Steps 4-6 are in no stage: nothing guides the picture there."]
    filled = preview(sd15_model.model, *walk, stages=[entry(0.0, 0.3), entry(0.55, 1.0), [tensor, {"default": True}]])
    assert filled.warnings() == ["Steps 4-6 are in no stage: the filler acts there."]
    double = preview(sd15_model.model, *walk, stages=[entry(0.0, 0.5), entry(0.35, 1.0)])
    assert double.warnings() == ["Step 5 is in several stages, which costs time and mixes them."]


def test_connected_sigmas_go_before_the_scheduler(sd15_model):
    from bestiary.nodes.spectrum.stage_schedule import sampler_sigmas

    sigmas = sampler_sigmas(sd15_model.model, "euler", "karras", 10, 1.0)
    schedule = preview(sd15_model.model, "euler", "simple", 50, 1.0, sigmas=sigmas)
    assert schedule.title == "10 steps of the connected sigmas"
    assert len(schedule.steps) == 10


def test_shares_of_the_steps_rise_to_one(sd15_model):
    shares = [step.share for step in preview(sd15_model.model, "euler", "simple", 10, 1.0).steps]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < 0.01
    assert abs(shares[5] - 0.5) < 0.01


def test_a_shifted_flow_model_is_shown_by_its_own_time():
    from comfy.model_sampling import ModelSamplingDiscreteFlow

    class Flow:
        sampling = ModelSamplingDiscreteFlow()

        def get_model_object(self, name: str) -> object:
            return self.sampling

    Flow.sampling.set_parameters(shift=3.0)
    schedule = preview(Flow(), "euler", "simple", 30, 1.0)
    assert schedule.counts == (3,) * 10
    assert schedule.warnings() == []


def test_unknown_names_and_numbers_are_told(sd15_model):
    with pytest.raises(BestiaryError, match="no sampler 'oiler'; choose 'euler'"):
        preview(sd15_model.model, "oiler", "simple", 10, 1.0)
    with pytest.raises(BestiaryError, match="no scheduler 'karas'; choose 'karras'"):
        preview(sd15_model.model, "euler", "karas", 10, 1.0)
    with pytest.raises(BestiaryError, match="10 steps with denoise 0: give at least 1 step"):
        preview(sd15_model.model, "euler", "simple", 10, 0.0)
    with pytest.raises(BestiaryError, match="the sigmas contain 1 noise levels"):
        preview(sd15_model.model, "euler", "simple", 10, 1.0, sigmas=torch.tensor([0.0]))
    with pytest.raises(BestiaryError, match="the conditioning is empty"):
        preview(sd15_model.model, "euler", "simple", 10, 1.0, stages=[])


def test_names_are_those_of_the_host():
    import comfy.samplers
    from bestiary.nodes.spectrum.stage_schedule import sampler_names, scheduler_names

    assert sampler_names() == list(comfy.samplers.KSampler.SAMPLERS)
    assert scheduler_names() == list(comfy.samplers.KSampler.SCHEDULERS)
