"""One sampling seen from its attention: steps by noise level, prompts by row, and marks that fit one attention only."""

import logging
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from bestiary.nodes.attention.attention_record import AttentionRecord, RecordedPart
from bestiary.nodes.attention.attention_sampling import AttentionSampling, ModelEvaluation, PromptEntry, TimedRegion
from bestiary.nodes.attention.part_regions import make_region
from bestiary.nodes.host.socket_types import SPANS_KEY, PartSpan
from comfy.conds import CONDCrossAttn

HEAD, WING = PartSpan("head:a", "head", (3, 4)), PartSpan("wing:b", "wing", (7,))
TEXT = torch.randn(1, 77, 8, generator=torch.Generator().manual_seed(0))


def entry(uuid: str, spans: tuple = (), text: torch.Tensor = TEXT, context: torch.Tensor | None = None, **more) -> dict:
    conds = {"c_crossattn": CONDCrossAttn(text if context is None else context)}
    return {"uuid": uuid, SPANS_KEY: spans, "cross_attn": text, "model_conds": conds, **more}


def sampling(prompts: dict | None = None, regions: tuple = (), records: tuple = ()) -> AttentionSampling:
    prompts = {"positive": [entry("p", (HEAD, WING))], "negative": [entry("n")]} if prompts is None else prompts
    return AttentionSampling(prompts, [14.0, 7.0, 2.0, 0.0], regions, records, frozenset({1, 2}))


@pytest.mark.parametrize(
    ("sigma", "step"), [(14.0, 0), (14.7, 0), (10.0, 0), (7.0, 1), (6.9999999, 1), (2.0, 2), (0.5, 2), (0.0, 2)]
)
def test_steps_are_those_between_whose_noise_levels_it_lies(sigma, step):
    assert sampling().step(sigma) == step


def test_regions_act_from_their_start_to_just_before_their_end():
    mask = torch.zeros(1, 4, 4)
    mask[..., :2] = 1
    timed = TimedRegion(make_region("head", mask, 1.0, 0, 1, 0), 7.0, 2.0)
    assert [timed.acts_at(sigma) for sigma in (7.1, 7.0, 5.0, 2.0, 1.0)] == [False, True, True, False, False]
    idle = TimedRegion(make_region("head", mask, 0.0, 0, 1, 0), 7.0, 2.0)
    assert not idle.acts_at(5.0)


def test_parts_are_recorded_once_and_negative_ones_if_asked():
    prompts = {
        "positive": [entry("a", (HEAD,)), entry("b", (HEAD, WING))],
        "negative": [entry("n", (WING,))],
        "middle": [entry("m", (PartSpan("tail:c", "tail", (1,)),))],
    }
    made = sampling(prompts, records=(AttentionRecord(), AttentionRecord(negative=True)))
    titles = [[part.title for part in recording.parts] for _, recording in made.recordings]
    assert titles == [["head:a", "wing:b", "tail:c"], ["head:a", "wing:b", "wing:b (negative)", "tail:c"]]


def test_prompts_are_known_by_side_length_and_area():
    made = sampling()
    found = made.entry(0, entry("p", (HEAD,), torch.zeros(1, 154, 8), area=(8, 8, 0, 4)))
    assert found == PromptEntry((HEAD,), 154, False, (8, 8, 0, 4))
    assert made.entry(1, entry("n")).negative
    assert made.entry(0, {"uuid": "x", "model_conds": {}}) is None


def test_the_side_is_that_of_the_sampler_not_of_the_place():
    # guiders with three prompts put the negative one first
    made = sampling({"positive": [entry("p")], "middle": [entry("m")], "negative": [entry("n")]})
    assert [made.entry(i, entry(name)).negative for i, name in enumerate("nmp")] == [True, False, False]


def test_options_copied_beside_another_prompt_do_not_count():
    # for a prompt with an area ComfyUI puts its options, spans too, beside the tokens of the other side
    other = torch.randn(1, 77, 8, generator=torch.Generator().manual_seed(1))
    made = sampling()
    assert made.entry(0, entry("p", (HEAD,))).spans == (HEAD,)
    assert made.entry(1, entry("p", (HEAD,), context=other)).spans == ()
    assert made.entry(2, entry("p", (HEAD,), context=torch.zeros(1, 154, 8))).spans == ()
    assert made.entry(3, entry("p", (HEAD,), context=TEXT.clone())).spans == (HEAD,)


def test_positions_of_all_mentions_under_one_label():
    again = PartSpan("head:a", "head", (9,))
    found = PromptEntry((HEAD, WING, again), 77, False, None)
    assert found.positions(RecordedPart("head:a", "head")) == (3, 4, 9)
    assert found.positions(RecordedPart("tail:c", "tail")) == ()
    assert found.positions(RecordedPart("head:a", "head", negative=True)) == ()


def test_a_mark_fits_one_attention_of_one_run():
    evaluation = ModelEvaluation(sampling(), {}, 7.0, torch.Size((1, 4, 16, 16)))
    options = {"uuids": ["p"], "block": ("input", 1), "block_index": 0}
    assert not evaluation.take_mark(options)
    evaluation.mark(options)
    assert evaluation.take_mark(dict(options))
    # once only, so that two of our patches on one model act once
    assert not evaluation.take_mark(options)
    for change in ({"uuids": ["p"]}, {"block": ("middle", 0)}, {"block_index": 1}):
        evaluation.mark(options)
        assert not evaluation.take_mark({**options, **change})


def test_marks_of_one_thread_are_not_taken_by_another():
    evaluation = ModelEvaluation(sampling(), {}, 7.0, torch.Size((1, 4, 16, 16)))
    together = Barrier(2, timeout=20)

    def run(uuid: str) -> list[bool]:
        options, taken = {"uuids": [uuid], "block": ("input", 1), "block_index": 0}, []
        for _ in range(20):
            evaluation.mark(options)
            together.wait()
            taken.append(evaluation.take_mark(options))
            together.wait()
        return taken

    with ThreadPoolExecutor(2) as pool:
        assert all(all(taken) for taken in pool.map(run, ("a", "b")))


def test_maps_of_several_threads_are_those_of_one():
    prompts = {"positive": [entry("p", (HEAD,)), entry("q", (HEAD, WING))]}
    keys = torch.randn(1, 77, 8, generator=torch.Generator().manual_seed(2))
    queries = torch.randn(40, 1, 16, 8, generator=torch.Generator().manual_seed(3))

    def attend(evaluation: ModelEvaluation, uuid: str, some: torch.Tensor, together: Barrier | None) -> None:
        for q in some:
            options = {"activations_shape": [1, 8, 4, 4], "original_shape": [1, 4, 4, 4]}
            options |= {"cond_or_uncond": [0], "uuids": [uuid]}
            if together is not None:
                together.wait()
            evaluation.attend(lambda q, k, v, heads, **kw: q, q, keys, keys, 2, None, transformer_options=options)

    def maps(threads: int) -> torch.Tensor:
        made = sampling(prompts, records=(AttentionRecord("all"),))
        known = {(0, one["uuid"]): made.entry(0, one) for one in prompts["positive"]}
        evaluation = ModelEvaluation(made, known, 7.0, torch.Size((1, 4, 4, 4)))
        together = Barrier(2, timeout=20) if threads == 2 else None
        with ThreadPoolExecutor(threads) as pool:
            jobs = [pool.submit(attend, evaluation, *job, together) for job in zip("pq", queries.chunk(2), strict=True)]
            for job in jobs:
                job.result()
        evaluation.finish()
        return made.recordings[0][1].finished(torch.zeros(1, 4, 4, 4), (4, 4)).maps

    assert maps(1).abs().max() > 0
    assert (maps(2) - maps(1)).abs().max() < 1e-6


def test_warnings_come_once(caplog):
    made = sampling()
    with caplog.at_level(logging.WARNING):
        made.warn("twice")
        made.warn("twice")
    assert caplog.text.count("twice") == 1


@pytest.mark.parametrize("told", [{}, {"cond_or_uncond": [0], "uuids": ["stranger"]}])
def test_rows_that_nobody_names_are_left_alone(told, caplog):
    made = sampling(records=(AttentionRecord(),))
    evaluation = ModelEvaluation(made, {(0, "p"): made.entry(0, entry("p", (HEAD,)))}, 7.0, torch.Size((1, 4, 4, 4)))
    q = torch.randn(1, 16, 8)
    options = {"activations_shape": [1, 8, 4, 4], "original_shape": [1, 4, 4, 4], **told}
    given = evaluation.attend(lambda q, k, v, heads, **kw: (q, kw), q, TEXT, TEXT, 2, None, transformer_options=options)
    assert given[0] is q
    assert given[1]["mask"] is None
    assert evaluation.sums == [{}]
    assert "does not report which rows belong to which" in caplog.text
