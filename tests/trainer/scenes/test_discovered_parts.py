"""A discovery as a source of masks and of part labels."""

import numpy as np
import pytest
from bestiary.scenes.set_files import read_records
from bestiary.trainer.__main__ import main
from bestiary.trainer.scenes.discovered_parts import DiscoveredParts
from PIL import Image


@pytest.fixture
def found(tmp_path, make_discovery):
    return make_discovery(tmp_path / "d")


def test_labels_and_foreground_of_the_centre_square(found, tmp_path) -> None:
    parts = DiscoveredParts(found)
    picture = tmp_path / "d/pictures/0.png"
    labels = parts.labels(picture, 64, 64)
    assert labels.shape == (64, 64) and labels[20, 20] == 0 and labels[40, 24] == 1 and labels[60, 60] == 255
    wide = parts.labels(picture, 128, 64)
    assert (wide[:, :32] == 255).all() and (wide[:, 32:96] == labels).all()
    inside = parts.foreground(picture, 64, 64)
    assert inside[20, 20] == 1 and inside[60, 60] == 0 and 0 < inside.mean() < 1
    assert parts.labels(tmp_path / "other.png", 64, 64) is None


def test_a_set_of_a_discovery_carries_its_parts(found, tmp_path, caplog) -> None:
    pictures = tmp_path / "d/pictures"
    options = [
        "--set",
        "cutout.backend=parts",
        "--set",
        f"cutout.discovery={found}",
        "--set",
        "gate.second_piece=false",
    ]
    out = tmp_path / "set"
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'kind = "scenes"\ncount = 2\n[[subjects]]\nname = "thing"\nfolder = "{pictures}"\n')
    command = ["scenes", "build", str(recipe), "--out", str(out), "--progress", "off", *options]
    assert main(command) == 0
    assert "as coarse as its patches" in caplog.text
    record = next(iter(read_records(out)))
    parts = np.asarray(Image.open(out / f"parts/{record.stem}.png"))
    seen = np.asarray(Image.open(out / f"instances/{record.stem}.png")) > 0
    assert {0, 1} <= set(np.unique(parts[seen])) and (parts[~seen] == 255).all()
    assert main(["scenes", "verify", str(out)]) == 0
    # a picture that the discovery does not know has no mask of this kind
    Image.new("RGB", (64, 64)).save(pictures / "new.png")
    assert main(command) == 2
