"""The drawn world as a judge: perfect labels score 1, wrong ones less, and part numbers do not matter."""

import numpy as np
import pytest
from bestiary.demo.creatures import PARTS
from bestiary.trainer.demo.drawn_masks import draw_pictures, load_truth, patch_majority, score_discovery


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    return folder, draw_pictures(folder, 16, seed=3)


def test_pictures_and_truth_come_back(drawn):
    folder, truth = drawn
    again = load_truth(folder)
    assert again.names == truth.names and again.species == truth.species
    assert (again.labels == truth.labels).all()
    assert len(list((folder / "pictures").iterdir())) == 16


def test_drawing_again_keeps_files(drawn):
    folder, truth = drawn
    first = (folder / "pictures" / truth.names[0]).stat().st_mtime_ns
    draw_pictures(folder, 16, seed=3)
    assert (folder / "pictures" / truth.names[0]).stat().st_mtime_ns == first


def test_order_follows_the_names_asked_for(drawn):
    _, truth = drawn
    names = list(reversed(truth.names))
    turned = truth.ordered_like(names)
    assert turned.species == tuple(reversed(truth.species))
    assert (turned.labels == truth.labels[::-1]).all()


def test_truth_itself_scores_one_under_any_numbering(drawn):
    labels = patch_majority(drawn[1].labels, (16, 16))
    renumbered = np.array([5, 3, 0, 4, 1, 2])[labels]  # background becomes 5
    score = score_discovery(renumbered, 5, drawn[1].labels)
    assert score.foreground_iou == score.part_miou == 1
    assert score.matched == {3: "head", 0: "body", 4: "wing", 1: "tail", 2: "legs"}


def test_one_part_for_everything_scores_its_best_match_only(drawn):
    labels = (patch_majority(drawn[1].labels, (16, 16)) > 0).astype(int)
    score = score_discovery(labels, 0, drawn[1].labels)
    assert score.foreground_iou == 1
    assert len(score.matched) == 1
    assert score.part_miou == pytest.approx(max(score.ious.values()) / len(PARTS))


def test_more_parts_than_drawn_are_left_unmatched(drawn):
    labels = patch_majority(drawn[1].labels, (16, 16))
    halved = np.where((labels == 2) & (np.arange(16) < 8), 6, labels)
    score = score_discovery(halved, 0, drawn[1].labels)
    assert len(score.matched) == 5
    assert 0.4 < score.ious["body"] < 1 and score.ious["head"] == 1


def test_only_background_scores_zero(drawn):
    score = score_discovery(np.zeros((16, 16, 16), int), 0, drawn[1].labels)
    assert score.foreground_iou == score.part_miou == 0 and score.matched == {}


def test_majority_of_a_patch():
    truth = np.zeros((1, 4, 4), np.uint8)
    truth[0, :2, :2] = [[1, 1], [1, 0]]
    truth[0, 2:, 2:] = [[2, 0], [0, 0]]
    assert patch_majority(truth, (2, 2)).tolist() == [[[1, 0], [0, 0]]]
