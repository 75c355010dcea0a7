"""What tokens stand for: discovered kinds, classes, whole pictures."""

from pathlib import Path

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.discovery.discovery_folder import Discovery
from bestiary.trainer.learning.parts.training_kinds import (
    WHOLE,
    TrainingKinds,
    class_kinds,
    discovered_kinds,
    read_classes,
    whole_kinds,
)


@pytest.fixture(scope="module")
def discovery(tmp_path_factory, make_discovery) -> Discovery:
    return Discovery.load(make_discovery(tmp_path_factory.mktemp("kinds"), count=8))


@pytest.fixture
def kinds(discovery: Discovery) -> TrainingKinds:
    return discovered_kinds(discovery.codebook, discovery.maps)


def test_discovered_kinds_are_those_of_the_maps(kinds: TrainingKinds, discovery: Discovery) -> None:
    assert np.array_equal(kinds.codes, discovery.maps.codes.numpy())
    assert kinds.rows() == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert (kinds.num_kinds, kinds.background, kinds.part_names) == (3, 2, ("head", "body", "background"))


def test_without_background_no_row_and_no_code_of_it_is_left(kinds: TrainingKinds) -> None:
    ours = kinds.without_background()
    assert all(part != 2 for part, _ in ours.rows()) and (ours.codes[:, 2] == -1).all()
    assert np.array_equal(ours.codes[:, :2], kinds.codes[:, :2]) and (kinds.codes[:, 2] == 0).all()


def test_a_class_is_the_kind_of_all_parts_but_the_background(kinds: TrainingKinds) -> None:
    ours = class_kinds(kinds, {"class": ["wren", "lark"] * 4})
    assert ours.kind_names == ({0: "lark", 1: "wren"}, {0: "lark", 1: "wren"}, {})
    shown = kinds.codes[:, 0] >= 0
    assert np.array_equal(ours.codes[:, 0], np.where(shown, [1, 0] * 4, -1))
    assert np.array_equal(ours.codes[:, 2], kinds.codes[:, 2])


def test_every_part_may_have_a_column_of_its_own(kinds: TrainingKinds) -> None:
    ours = class_kinds(kinds, {"head": ["a", "b"] * 4, "body": ["x"] * 8})
    assert ours.kind_names[:2] == ({0: "a", 1: "b"}, {0: "x"})
    with pytest.raises(BestiaryError, match=r"no column for part 'head', only wing, body: name a column `class`"):
        class_kinds(kinds, {"wing": ["a"] * 8, "body": ["x"] * 8})


def test_whole_pictures_of_a_class_are_one_kind(kinds: TrainingKinds, discovery: Discovery) -> None:
    ours = whole_kinds(kinds, discovery.codebook, {"class": ["wren", "lark"] * 4}, seed=0)
    assert ours.part_names == (WHOLE,) and ours.kind_names == ({0: "lark", 1: "wren"},)
    assert ours.codes[:, 0].tolist() == [1, 0] * 4 and ours.labels.shape == (8, 1, 1) and not ours.labels.any()
    assert ours.notes["parts_of_codes"] == ["head", "body", "background"]
    assert ours.notes["codes_of_kind"][1][0] == 0  # wrens are the even pictures, whose heads are of kind 0


def test_whole_pictures_without_classes_are_clustered_by_their_parts(
    kinds: TrainingKinds, discovery: Discovery
) -> None:
    ours = whole_kinds(kinds, discovery.codebook, None, seed=0)
    assert set(ours.codes[:, 0]) <= {0, 1, 2} and len(ours.notes["codes_of_kind"]) == ours.num_kinds
    alike = np.array_equal(kinds.codes[0, :2], kinds.codes[6, :2])
    assert alike and ours.codes[0, 0] == ours.codes[6, 0]


def test_a_table_of_classes_is_read_whatever_its_order(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("\ufefffile,Head,Wing\nb.png,x,u\na.png, y ,v\n", encoding="utf-8")
    assert read_classes(path, ["a.png", "b.png"]) == {"head": ["y", "x"], "wing": ["v", "u"]}
    path.write_text("path,class,colour\na.png,lark,red\n")
    assert read_classes(path, ["a.png"]) == {"class": ["lark"]}


def test_classes_belong_to_whole_paths(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    # one stem in two folders and with two endings; a table written on Windows
    path.write_text("path,class\na\\b.png,lark\nc\\b.png,jay\n./a/b.jpg,owl\na/b.png,lark\n")
    assert read_classes(path, ["a/b.png", "c/b.png", "a/b.jpg"]) == {"class": ["lark", "jay", "owl"]}
    path.write_text("path,class\na.png,lark\na.png,jay\n")
    with pytest.raises(BestiaryError, match="names a.png twice, with class 'lark' and 'jay': keep one line"):
        read_classes(path, ["a.png"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,class\na.png,lark\n", "has the columns name, class: it needs `path`, and `class`"),
        ("path\na.png\n", "has the columns path: it needs"),
        ("", "has the columns none"),
        ("path,class\nb.png,lark\nc.png,\n", "names no class for 1 of 1 pictures, first a.png"),
    ],
)
def test_a_table_that_does_not_fit_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(BestiaryError, match=message):
        read_classes(tmp_path / "labels.csv", ["a.png"])


def test_a_missing_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match=r"cannot read images.labels .*nothing.csv: No such file"):
        read_classes(tmp_path / "nothing.csv", ["a.png"])


@pytest.mark.parametrize("content", ["path,class\na.png,größe\n".encode("latin-1"), b"\xff\xfep"])
def test_a_table_that_is_no_text_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(BestiaryError, match="images.labels .*labels.csv is no CSV table in UTF-8: 'utf-8' codec"):
        read_classes(tmp_path / "labels.csv", ["a.png"])
