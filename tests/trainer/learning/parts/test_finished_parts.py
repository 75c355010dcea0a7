"""The dictionary of a training: trained rows only, vectors as the projector gives them, thumbnails of the right places."""

from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.trainer.learning.parts.finished_parts import cut_thumbnails, write_dictionary
from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.learning.pictures.image_files import read_image
from bestiary.trainer.training.train_parts import PartTask
from bestiary.trainer.training.training_setup import TrainingSetup, prepare


@pytest.fixture(scope="module")
def setup(tmp_path_factory, make_discovery, tiny_folder) -> TrainingSetup:
    found = make_discovery(tmp_path_factory.mktemp("finished"))
    flags = {
        "discovery.folder": found, "base.path": str(tiny_folder("sdxl")), "images.size": 128, "run.device": "cpu",
        "run.dtype": "fp32", "run.preview_every": 0, "lora.rank": 2,
    }  # fmt: skip
    return prepare(PartTask(load_recipe(None, flags)))


def test_rows_are_what_the_projector_gives(setup: TrainingSetup) -> None:
    dictionary = setup.training.learned(7, setup.origin)
    with torch.no_grad():
        for part, kind in setup.pictures.kinds.rows():
            theirs = setup.objective.projector(torch.tensor(part), torch.tensor(kind))
            torch.testing.assert_close(dictionary.vector(part, kind), theirs)
    assert {name: tensor.shape[1] for name, tensor in dictionary.embeddings.items()} == {"clip_l": 32, "clip_g": 64}
    assert dictionary.lora.keys() == setup.denoiser.network.adapters.tensors().keys()
    assert dictionary.provenance["steps"] == 7 and dictionary.provenance["ids"] == "discovered"


def test_it_is_read_back_before_its_path_is_given(setup: TrainingSetup, tmp_path: Path) -> None:
    dictionary = setup.training.learned(7, setup.origin)
    path = write_dictionary(dictionary, tmp_path / "parts.safetensors")
    again = PartDictionary.load(path)
    torch.testing.assert_close(again.matrix(), dictionary.matrix(), atol=1e-3, rtol=1e-2)
    assert again.part_names == ("head", "body", "background")


def test_a_thumbnail_shows_its_part(setup: TrainingSetup) -> None:
    """The drawn squares have one colour per part, so the middle of a thumbnail is the part's colour."""
    kinds = setup.pictures.kinds
    tiles = cut_thumbnails(kinds, setup.task.thumbnail_square)
    assert set(tiles) == set(kinds.rows())
    for (part, kind), tile in tiles.items():
        if part == kinds.background:
            continue
        assert tile.width == tile.height
        row = int(np.flatnonzero(kinds.codes[:, part] == kind)[0])
        picture = np.asarray(read_image(setup.pictures.paths[row]))
        y, x = (int(place.mean() * 8 + 4) for place in np.nonzero(kinds.labels[row] == part))
        ours = np.asarray(tile)[tile.height // 2, tile.width // 2].astype(int)
        assert np.abs(ours - picture[y, x]).max() <= 2, (part, kind)


def test_the_background_is_shown_whole(setup: TrainingSetup) -> None:
    tile = cut_thumbnails(setup.pictures.kinds, setup.task.thumbnail_square)[2, 0]
    assert tile.width == tile.height >= 64
