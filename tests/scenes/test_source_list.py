import dataclasses

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.collage import compose
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.scenes.scene_set import SceneEntry, SceneSet
from bestiary.scenes.set_files import SetCard
from bestiary.scenes.source_list import read_sources, with_terms
from bestiary.scenes.subject import PictureSource, Subject

LIST = """
[default]
author = "Ann"

["tom.jpg"]
licence = "CC0"

["cats/tom.jpg"]
licence = "CC BY 4.0"
author = "Bob"
"""


@pytest.mark.parametrize(
    ("file", "licence", "author"),
    [
        ("/home/me/cats/tom.jpg", "CC BY 4.0", "Bob"),
        ("C:\\\\dogs\\\\tom.jpg", "CC0", "Ann"),
        ("dogs/rex.jpg", "", "Ann"),
        ("default", "", "Ann"),
    ],
)
def test_terms_of_files(tmp_path, file, licence, author):
    (tmp_path / "sources.toml").write_text(LIST)
    terms = read_sources(tmp_path / "sources.toml")
    assert with_terms(PictureSource(file, "aa"), terms) == PictureSource(file, "aa", licence, author)
    assert with_terms(PictureSource(file, "aa", "mine", "me"), terms) == PictureSource(file, "aa", "mine", "me")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("licence = 'CC0'", "'licence' is not a table of texts"),
        ("[a]\nlicense = 'CC0'", "'license' of 'a' is not known"),
        ("[a]\nlicence = 3", "'a' is not a table of texts"),
        ("[", "sources.toml: "),
    ],
)
def test_lists_that_cannot_be_read(tmp_path, text, reason):
    (tmp_path / "sources.toml").write_text(text)
    with pytest.raises(BestiaryError) as fault:
        read_sources(tmp_path / "sources.toml")
    assert reason in str(fault.value)


def test_sets_that_require_a_licence_refuse_files_without(tmp_path):
    subject = Subject("cat", np.full((8, 8, 4), 255, np.uint8), source=PictureSource("cats/tom.jpg"))
    layout = SceneLayout(16, 16, (Placement("cat", 2, 2, 8, 8),))
    background = np.zeros((16, 16, 3), np.uint8)
    scene_set = SceneSet(tmp_path / "pets", SetCard(require_licence=True))
    with pytest.raises(BestiaryError, match=r"no licence is given for cats/tom\.jpg: name it in sources\.toml"):
        scene_set.write("a", SceneEntry(compose([subject], layout, background), "a cat"), "key")
    assert not (tmp_path / "pets/images").exists()
    licensed = dataclasses.replace(subject, source=PictureSource("cats/tom.jpg", "", "CC0"))
    scene_set.write("a", SceneEntry(compose([licensed], layout, background), "a cat"), "key")
    assert scene_set.finish() == 1
