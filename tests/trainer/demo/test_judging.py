"""The demo's independent judge: looks are compared with the species a part was taken from, and stored figures are told."""

import json
from pathlib import Path

import pytest
import torch
from bestiary.demo.attribute_judge import AttributeJudge, species_classes
from bestiary.demo.creatures import HELD_OUT_SPECIES, PARTS
from bestiary.trainer.demo import judging as demo_judging
from bestiary.trainer.demo.drawn_masks import DiscoveryScore, DrawnTruth
from bestiary.trainer.demo.judging import STORED_EVALUATION, judge_looks, stored_figures
from bestiary.trainer.evaluation.cases import TestCase

SPECIES = HELD_OUT_SPECIES[:3]
TRUTH = DrawnTruth(("0.png", "1.png", "2.png"), tuple(SPECIES), None)


class KnownLooks(AttributeJudge):
    """Answers with given class numbers (N, 5, 3)."""

    def __init__(self, answers: torch.Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.answers = answers

    def classes(self, images: torch.Tensor) -> torch.Tensor:
        return self.answers[: len(images)]


def matched(*parts: str) -> DiscoveryScore:
    """Discovered part i stands for the i-th of these drawn parts."""
    return DiscoveryScore(1.0, 1.0, {}, dict(enumerate(parts)))


def looks_of(*rows: tuple[int, ...]) -> torch.Tensor:
    """Classes (N, 5, 3) of pictures whose drawn part p looks like that of species row[p]."""
    classes = species_classes(SPECIES)  # (3, 5, 3)
    return torch.stack([torch.stack([classes[species, part] for part, species in enumerate(row)]) for row in rows])


def test_parts_that_look_like_their_sources_are_right() -> None:
    cases = [TestCase((0, 0), (1, 2), 0), TestCase((0, 0), (0, -1), 0)]  # body, head; then body alone
    score = matched("body", "head")
    sources = [[0] * 5, [0] * 5]
    sources[0][PARTS.index("body")], sources[0][PARTS.index("head")] = 1, 2
    right = judge_looks(KnownLooks(looks_of(*map(tuple, sources))), torch.zeros(2, 3, 8, 8), cases, TRUTH, score)
    assert right == {"parts": 3, "color": 1, "pattern": 1, "shape": 1, "all_three": 1}


def test_every_attribute_is_counted_for_itself() -> None:
    case = TestCase((0,), (0,), 0)
    answers = looks_of((0,) * 5)
    answers[0, PARTS.index("wing"), 1] += 1  # another pattern
    figures = judge_looks(KnownLooks(answers), torch.zeros(1, 3, 8, 8), [case], TRUTH, matched("wing"))
    assert figures == {"parts": 1, "color": 1, "pattern": 0, "shape": 1, "all_three": 0}


def test_parts_that_stand_for_nothing_drawn_are_not_judged() -> None:
    case = TestCase((0, 0), (0, 1), 0)
    answers = KnownLooks(looks_of((2,) * 5))
    assert judge_looks(answers, torch.zeros(1, 3, 8, 8), [case], TRUTH, matched()) == {"parts": 0}


def test_stored_figures_are_told_as_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_judging, "STORED_EVALUATION", tmp_path / "none.json")
    assert stored_figures() == {}
    means = {"no_attention_loss": {"reconstruction": {"emr": 0.25}}, "ours": {"reconstruction": {"emr": 0.5}}}
    (tmp_path / "some.json").write_text(json.dumps({"means": means, "seeds": [0]}))
    monkeypatch.setattr(demo_judging, "STORED_EVALUATION", tmp_path / "some.json")
    figures = stored_figures()
    assert figures["no_attention_loss"]["reconstruction"]["emr"] == 0.25
    assert figures["stored_evaluation"]["seeds"] == [0] and "ours" not in figures


@pytest.mark.skipif(not STORED_EVALUATION.is_file(), reason="no evaluation of the baselines is stored yet")
def test_an_evaluation_without_the_attention_loss_comes_with_the_program() -> None:
    means = json.loads(STORED_EVALUATION.read_text(encoding="utf-8"))["means"]
    assert {"reconstruction", "mix4"} <= means["no_attention_loss"].keys()
    assert 0 <= means["no_attention_loss"]["reconstruction"]["emr"] <= 1
