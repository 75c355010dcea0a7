"""Scores of asked parts: those of the metrics themselves, and a reason in words for each."""

import pytest
import torch
from bestiary.concepts.part_map.part_map import ABSENT, PartMaps
from bestiary.concepts.part_map.part_metrics import absent_rate, code_similarity, exact_match_rate
from bestiary.nodes.evaluation.part_judging import judged_text, score_parts, scores_text
from bestiary.nodes.evaluation.requested_parts import AskedPart
from bestiary.nodes.part_map.seen_parts import SeenParts

CODES = [[0, 1, 0], [1, ABSENT, 1]]


def seen() -> SeenParts:
    maps = PartMaps(torch.zeros(2, 8, 8, dtype=torch.uint8), torch.tensor(CODES))
    return SeenParts(("head", "body", "background"), 2, maps, (64, 64), "centre square")


def test_figures_are_those_of_the_metrics(small_codebook):
    asked = [AskedPart(0, 0), AskedPart(1, 1), AskedPart(2, 0)]
    ours = score_parts(small_codebook, seen(), asked)
    found, wanted = torch.tensor(CODES)[:, :2], torch.tensor([[0, 1], [0, 1]])
    assert ours.emr == float(exact_match_rate(found, wanted)) == 0.5
    assert ours.cosim == pytest.approx(float(code_similarity(found, wanted, small_codebook.kind_similarity)))
    assert ours.absent == float(absent_rate(found, wanted)) == 0.25


def test_the_background_counts_only_alone(small_codebook):
    assert score_parts(small_codebook, seen(), [AskedPart(2, 0)]).emr == 0.5
    both = score_parts(small_codebook, seen(), [AskedPart(2, 0), AskedPart(1, 0)])
    assert both.emr == 0.0 and both.found.tolist() == [[0, 1], [1, ABSENT]]


def test_a_part_asked_for_twice_is_judged_twice(small_codebook):
    scores = score_parts(small_codebook, seen(), [AskedPart(0, 0), AskedPart(0, 1)])
    assert scores.emr == 0.5 and scores.found.tolist() == [[0, 0], [1, 1]]


def test_pictures_that_show_everything_score_one(small_codebook):
    scores = score_parts(small_codebook, seen(), [AskedPart(0, 0)])
    only = SeenParts(
        seen().part_names, 2, PartMaps(seen().maps.labels[:1], seen().maps.codes[:1]), (64, 64), "centre square"
    )
    full = score_parts(small_codebook, only, [AskedPart(0, 0), AskedPart(1, 1)])
    assert (full.emr, full.absent) == (1.0, 0.0) and full.cosim == pytest.approx(1.0, abs=1e-6)
    assert scores.emr == 0.5


def test_the_report_gives_a_reason_for_every_part(small_codebook):
    asked = [AskedPart(0, 0), AskedPart(1, 1, blended=True), AskedPart(2, 0)]
    scores = score_parts(small_codebook, seen(), asked)
    near = float(small_codebook.kind_similarity(0, 1, 0))
    far = float(small_codebook.kind_similarity(2, 1, 0))
    assert scores_text(small_codebook, asked, scores).splitlines() == [
        f"EMR 0.500   CoSim {scores.cosim:.3f}   absent 0.250",
        "2 pictures, 3 asked parts",
        "picture 1",
        "  head: asked cardinal, found cardinal, similarity 1.000, match",
        "  body: asked 1 (most of a blend), found 1, similarity 1.000, match",
        "  background: asked 0, found 0, similarity 1.000, match, not counted",
        "picture 2",
        f"  head: asked cardinal, found blue jay, similarity {near:.3f}, miss",
        "  body: asked 1 (most of a blend), not present",
        f"  background: asked 0, found 1, similarity {far:.3f}, miss, not counted",
    ]


def test_one_of_each_is_said_in_the_singular(small_codebook):
    scores = score_parts(small_codebook, seen(), [AskedPart(0, 0)])
    assert "2 pictures, 1 asked part" in scores_text(small_codebook, [AskedPart(0, 0)], scores).splitlines()


def test_the_legend_says_what_was_asked_for(small_codebook):
    text = judged_text(small_codebook, seen(), [AskedPart(0, 0), AskedPart(0, 0)])
    assert text(0, 0) == "head: cardinal as asked"
    assert text(1, 0) == "head: blue jay, asked cardinal and cardinal"
    assert text(0, 1) == "body: 1" and text(1, 1) == "body"
    assert judged_text(small_codebook, seen(), [AskedPart(1, 0)])(1, 1) == "body, asked 0"
