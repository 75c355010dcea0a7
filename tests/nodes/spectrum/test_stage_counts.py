"""Steps per stage as a browser asks for them: what the samplers of ComfyUI do, and nothing that costs much."""

from itertools import pairwise

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.stage_bounds import StageBounds


def query(**changes):
    usual = {"sampler": "euler", "scheduler": "normal", "steps": "20", "denoise": "1", "first": "0", "last": "10000"}
    return {**usual, "stages": "10", "clock": "timesteps", **{name: str(value) for name, value in changes.items()}}


def counted(**changes):
    from bestiary.nodes.spectrum.stage_counts import count_steps, read_walk

    return count_steps(read_walk(query(**changes)))


@pytest.mark.parametrize("scheduler", ["normal", "karras", "simple", "ddim_uniform", "sgm_uniform", "beta"])
@pytest.mark.parametrize(("sampler", "steps", "denoise"), [("euler", 20, 1.0), ("dpm_2", 7, 1.0), ("euler", 12, 0.6)])
def test_counts_are_those_of_a_loaded_model(sd15_model, scheduler, sampler, steps, denoise):
    from bestiary.nodes.spectrum.stage_schedule import preview_schedule

    theirs = preview_schedule(sd15_model.model, (sampler, scheduler, steps, denoise), None, StageBounds.equal(10))
    ours = counted(sampler=sampler, scheduler=scheduler, steps=steps, denoise=denoise)
    assert tuple(ours["counts"]) == theirs.counts and ours["total"] == len(theirs.steps)
    assert ours["free"] == 0


@pytest.mark.parametrize("scheduler", ["normal", "karras", "simple", "sgm_uniform", "beta"])
@pytest.mark.parametrize("steps", [7, 20])
def test_counts_of_a_flow_are_those_of_a_loaded_transformer(demo_dit_model, scheduler, steps):
    from bestiary.nodes.spectrum.stage_schedule import preview_schedule

    walk, stages = ("euler", scheduler, steps, 1.0), StageBounds.equal(10)
    theirs = preview_schedule(demo_dit_model.model, walk, None, stages, shift=3.0)
    ours = counted(scheduler=scheduler, steps=steps, shift=3.0)
    assert tuple(ours["counts"]) == theirs.counts and ours["total"] == len(theirs.steps) and ours["free"] == 0
    # karras walks through other levels than with Stable Diffusion's noise
    assert scheduler != "karras" or ours["counts"] != counted(scheduler=scheduler, steps=steps)["counts"]


def test_a_part_of_the_steps_and_the_clock_of_steps():
    whole, head, tail = counted(), counted(last=8), counted(first=8)
    assert [a + b for a, b in zip(head["counts"], tail["counts"], strict=True)] == whole["counts"]
    assert (head["total"], tail["total"]) == (8, 12)
    assert counted(clock="steps", steps=25, stages=5, scheduler="karras")["counts"] == [5] * 5
    # fewer steps than stages: some are never reached
    few = counted(clock="steps", steps=4)
    assert sum(few["counts"]) == 4 and few["counts"].count(0) == 6 and few["free"] == 0


def test_unreached_stages_are_counted_as_nothing():
    counts = counted(steps=5)["counts"]
    assert sum(counts) == 5 and counts.count(0) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": ""}, "steps must be a non-negative integer, got ''"),
        ({"steps": "-4"}, "steps must be a non-negative integer, got '-4'"),
        ({"stages": "٣"}, "stages must be a non-negative integer, got '٣'"),
        ({"steps": "1001"}, "1001 steps with denoise 1 over 10 stages cannot be counted: at most 1000 steps in all"),
        ({"steps": "900", "denoise": "0.01"}, "900 steps with denoise 0.01 .* cannot be counted"),
        ({"stages": "251"}, "over 251 stages cannot be counted"),
        ({"denoise": "nan"}, "denoise 'nan' is out of range"),
        ({"denoise": "0"}, "denoise '0' is out of range: enter a number above 0, up to 1"),
        ({"scheduler": "../x"}, "no scheduler '../x'; choose"),
        ({"sampler": "x" * 100}, "sampler of 100 characters: at most 60 are accepted"),
        ({"clock": "noon"}, "unknown clock 'noon': choose timesteps or steps"),
        ({"shift": "-1"}, "shift '-1' is out of range: enter a number above 0, up to 100"),
        ({"first": "20"}, "there is no step between start_at_step 20 and end_at_step 10000"),
    ],
)
def test_what_cannot_be_counted_is_told(changes, message):
    with pytest.raises(BestiaryError, match=message):
        counted(**changes)


def test_only_the_noise_levels_are_there():
    from bestiary.nodes.spectrum.stage_counts import KnownNoise

    noise = KnownNoise()
    sigmas = noise.get_model_object("model_sampling").sigmas
    assert len(sigmas) == 1000 and all(a < b for a, b in pairwise(sigmas.tolist()))
    assert torch.isclose(sigmas[-1], torch.tensor(14.6146), atol=1e-3)
    with pytest.raises(BestiaryError, match="'latent_format' is not available without a MODEL"):
        noise.get_model_object("latent_format")


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_the_route_answers_and_tells_what_is_wrong(server, prefix):
    answer = server.get(f"{prefix}/bestiary/stage_steps", params=query())
    assert answer.ok and answer.json() == counted()
    wrong = server.get(f"{prefix}/bestiary/stage_steps", params=query(steps="many"))
    assert wrong.status_code == 404 and wrong.json()["error"] == "steps must be a non-negative integer, got 'many'"
    assert server.post("/bestiary/stage_steps").status_code == 405
