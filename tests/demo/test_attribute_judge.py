"""Tests of the attribute judge: forms, class numbers, scores, errors."""

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.demo.attribute_judge import ATTRIBUTES, JUDGE_FILE, AttributeJudge, species_classes, words_of
from bestiary.demo.creatures import HELD_OUT_SPECIES, PARTS, Scene, draw_creature
from bestiary.demo.species import COLORS, PATTERNS, SHAPES
from safetensors.torch import save_file


class _KnowsTheTruth(AttributeJudge):
    """A judge that answers with given classes."""

    def __init__(self, truth: torch.Tensor) -> None:
        super().__init__((32, 32, 32, 32))
        self.truth = truth

    def classes(self, images: torch.Tensor) -> torch.Tensor:
        return self.truth


def test_class_numbers_stand_for_the_words():
    classes = species_classes(HELD_OUT_SPECIES[:3])
    assert classes.shape == (3, 5, 3)
    for row, species in zip(classes, HELD_OUT_SPECIES, strict=False):
        for part, numbers in zip(PARTS, row.tolist(), strict=True):
            look = species.look(part)
            words = [words_of(part, name)[n] for name, n in zip(ATTRIBUTES, numbers, strict=True)]
            assert words == [look.color, look.pattern, look.shape]


def test_the_forward_pass_has_a_class_for_every_word():
    torch.manual_seed(0)
    logits, maps = AttributeJudge((32, 32, 32, 32)).eval()(torch.rand(2, 3, 128, 128))
    assert logits["color"].shape == (2, 5, len(COLORS))
    assert logits["pattern"].shape == (2, 5, len(PATTERNS))
    assert logits["shape"].shape == (2, 5, len(SHAPES["head"]))
    assert maps.shape == (2, 5, 16, 16)


def test_answers_come_by_part_and_attribute_and_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    judge = AttributeJudge((32, 32, 32, 32))
    images = torch.rand(3, 3, 128, 128)
    answers = judge.judge(images)
    assert set(answers) == set(PARTS) and all(set(a) == set(ATTRIBUTES) for a in answers.values())
    alone = judge.judge(images[1:2])
    assert all(int(alone[p][a]) == int(answers[p][a][1]) for p in PARTS for a in ATTRIBUTES)


def test_scores_count_what_is_right():
    species = HELD_OUT_SPECIES[:4]
    truth = species_classes(species)
    perfect = _KnowsTheTruth(truth).score_against_species(torch.zeros(4, 3, 128, 128), species)
    assert (perfect.color, perfect.pattern, perfect.shape, perfect.all_three) == (1, 1, 1, 1)
    wrong = truth.clone()
    wrong[:, 0, 0] = (wrong[:, 0, 0] + 1) % len(COLORS)  # every head in a wrong colour
    scores = _KnowsTheTruth(wrong).score_against_species(torch.zeros(4, 3, 128, 128), species)
    assert scores.color == pytest.approx(0.8) and scores.pattern == 1 and scores.all_three == pytest.approx(0.8)
    assert scores.by_part["head"]["color"] == 0 and scores.by_part["tail"]["color"] == 1


def test_errors_show_what_was_given(tmp_path):
    judge = AttributeJudge((32, 32, 32, 32))
    with pytest.raises(BestiaryError, match=r"takes images \(B, 3, 128, 128\), got shape \(3, 128, 128\)"):
        judge.judge(torch.zeros(3, 128, 128))
    with pytest.raises(BestiaryError, match=r"2 images cannot be scored against 3 species"):
        judge.score_against_species(torch.zeros(2, 3, 128, 128), HELD_OUT_SPECIES[:3])
    with pytest.raises(BestiaryError, match=r"no judge at .*absent.safetensors"):
        AttributeJudge.load(tmp_path / "absent.safetensors")
    save_file({"strange": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(BestiaryError, match=r"other.safetensors is not a judge of this version"):
        AttributeJudge.load(tmp_path / "other.safetensors")


@pytest.mark.skipif(not JUDGE_FILE.exists(), reason="the judge has not been trained yet")
def test_the_shipped_judge_reads_fresh_drawings():
    rng = np.random.default_rng(777)
    species = [HELD_OUT_SPECIES[i % len(HELD_OUT_SPECIES)] for i in range(28)]
    drawings = [draw_creature(kind, rng, scene=Scene("meadow", "day", "right")) for kind in species]
    images = torch.from_numpy(np.stack([d.image for d in drawings])).permute(0, 3, 1, 2).float() / 255
    scores = AttributeJudge.load().score_against_species(images, species)
    assert scores.color > 0.9 and scores.pattern > 0.85 and scores.shape > 0.85
    assert JUDGE_FILE.stat().st_size <= 1_000_000
