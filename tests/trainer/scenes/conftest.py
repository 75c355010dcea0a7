"""Drawn subjects and a recipe for a small set of them."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bestiary.trainer.__main__ import main
from PIL import Image


def draw(folder: Path, name: str, *, masked: bool, pictures: int = 4) -> None:
    """Pictures of an ellipse: transparent ones, or with masks beside them."""
    y, x = np.mgrid[:64, :80]
    mask = Image.fromarray(np.where(((x - 40) / 30) ** 2 + ((y - 32) / 22) ** 2 < 1, 255, 0).astype(np.uint8))
    (folder / name).mkdir(parents=True)
    for number in range(pictures):
        picture = Image.fromarray(np.full((64, 80, 3), (40 * number, 90, 200), np.uint8))
        if masked:
            mask.save(folder / name / f"{number}_mask.png")
        else:
            picture.putalpha(mask)
        picture.save(folder / name / f"{number}.png")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Two drawn subjects of four pictures each, the first transparent, the second with masks beside its pictures."""
    draw(tmp_path, "cat", masked=False)
    draw(tmp_path, "dog", masked=True)
    file = tmp_path / "pets.toml"
    file.write_text(
        'kind = "scenes"\ncount = 6\n[layout]\nwidth = 128\nheight = 96\n'
        + "".join(f'[[subjects]]\nname = "{name}"\nfolder = "{tmp_path / name}"\n' for name in ("cat", "dog"))
    )
    return file


@pytest.fixture
def hashes() -> Callable[[Path], dict[str, str]]:
    """sha256 of every file below a folder, by its path."""

    def of(folder: Path) -> dict[str, str]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return of


@pytest.fixture
def build() -> Callable[..., int]:
    """Runs `bestiary scenes build`; returns its exit code."""

    def run(recipe: Path, out: Path, *options: str) -> int:
        return main(["scenes", "build", str(recipe), "--out", str(out), "--progress", "off", *options])

    return run


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs a command that ends with one line of error, which holds some texts."""

    def run(arguments: list[str], *texts: str) -> None:
        capsys.readouterr()
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert all(text in message for text in texts), message
        assert "Traceback" not in message and message.startswith("bestiary: ")

    return run
