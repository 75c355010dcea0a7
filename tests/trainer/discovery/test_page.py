"""The page of a discovery: colours where the parts are, crops around them, everything embedded and escaped."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.part_map.foreground import CentroidForeground
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_model import CentroidParts
from bestiary.trainer.discovery.page import (
    KINDS_SHOWN,
    PageContent,
    color_parts,
    crop_part,
    part_color,
    write_discovery_page,
)
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def content(tmp_path: Path, pictures: int = 6) -> PageContent:
    """One part with many kinds, and a background, in plain pictures; one file is gone."""
    labels = torch.ones(pictures, 4, 4, dtype=torch.uint8)
    labels[:, 1:3, 1:3] = 0
    names = {row: f"bird <{row}>.png" for row in range(pictures)}
    for row in range(pictures - 1):
        Image.new("RGB", (64, 64), (40 * row, 90, 120)).save(tmp_path / names[row])
    codebook = PartCodebook(
        {"name": "descriptor"},
        3,
        (4, 4),
        ("head & neck", "background"),
        1,
        CentroidForeground(torch.eye(2, 3), 0),
        CentroidParts(torch.ones(1, 3), torch.zeros(1).long(), filled=False),
        kind_names=({0: "cardinal <b>"}, {}),
    )
    kinds = {str(kind): 60 - kind for kind in range(KINDS_SHOWN + 5)}
    report = {
        "images": pictures,
        "skipped": 1,
        "parts": [
            {"index": 0, "name": "head & neck", "images": pictures, "area": 0.25, "kinds": kinds},
            {"index": 1, "name": "background", "images": pictures, "area": 0.75, "kinds": {"0": pictures}},
        ],
        "typical": {"0:0": [1, 2, 3, 5], "0:1": [0], "1:0": [4]},
        "examples": [0, 2, 5],
        "source": {"name": "descriptor", "grid": 16},
        "settings": {"seed": 0},
    }
    return PageContent(tmp_path, codebook, report, labels, names, [("b<r>oken.png", "the file is empty")])


class Checker(HTMLParser):
    """Collects addresses and checks that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("img", "br", "meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    path = write_discovery_page(tmp_path / "index.html", content(tmp_path))
    page = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.addresses and all(address.startswith("data:image/webp;base64,") for address in checker.addresses)
    assert "url(" not in page and "<script" not in page


def test_names_are_escaped_and_shown(tmp_path: Path) -> None:
    page = write_discovery_page(tmp_path / "index.html", content(tmp_path)).read_text(encoding="utf-8")
    for shown in (
        "head &amp; neck",
        "cardinal &lt;b&gt;",
        "b&lt;r&gt;oken.png",
        "the file is empty",
        "bird &lt;0&gt;.png",
    ):
        assert shown in page
    assert "<b>oken" not in page and "<r>" not in page and "bird <0>" not in page


def test_kinds_come_by_size_and_the_rest_is_counted(tmp_path: Path) -> None:
    page = write_discovery_page(tmp_path / "index.html", content(tmp_path)).read_text(encoding="utf-8")
    sizes = [int(size) for size in re.findall(r"<span>(\d+) pictures?</span>", page)][:KINDS_SHOWN]
    assert sizes == [60 - kind for kind in range(KINDS_SHOWN)]
    assert "and 5 smaller kinds" in page and f"{KINDS_SHOWN + 5} kinds, in 100% of the pictures" in page


def test_pictures_that_are_gone_are_left_out(tmp_path: Path) -> None:
    page = write_discovery_page(tmp_path / "index.html", content(tmp_path)).read_text(encoding="utf-8")
    assert "bird &lt;5&gt;.png" not in page
    assert page.count("<img") == 2 + 3 + 1 + 1  # two examples, the thumbnails of three kinds


def test_parts_wear_their_colour_and_the_background_is_grey() -> None:
    labels = torch.ones(4, 4, dtype=torch.uint8)
    labels[:, :2] = 0
    ours = np.asarray(color_parts(Image.new("RGB", (64, 64), (200, 200, 200)), labels, 1)).astype(int)
    assert ours[32, 8].tolist() == [int(0.45 * 200 + 0.55 * channel) for channel in part_color(0)]
    red, green, blue = ours[32, 56]
    assert red == green == blue
    assert (ours[:, :24] == ours[32, 8]).all() and (ours[:, 40:] == ours[32, 56]).all()


def test_colours_of_parts_differ() -> None:
    colors = [part_color(part) for part in range(24)]
    assert len(set(colors)) == 24 and all(0 <= channel <= 255 for color in colors for channel in color)


@pytest.mark.parametrize(("rows", "columns"), [((0, 1), (0, 1)), ((6, 8), (3, 8)), ((0, 8), (0, 8)), ((3, 4), (7, 8))])
def test_a_crop_holds_the_whole_part(rows: tuple[int, int], columns: tuple[int, int]) -> None:
    labels = torch.ones(8, 8, dtype=torch.uint8)
    labels[slice(*rows), slice(*columns)] = 0
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[rows[0] * 8 : rows[1] * 8, columns[0] * 8 : columns[1] * 8] = 255
    crop = np.asarray(crop_part(Image.fromarray(picture), labels, 0, 64))
    assert crop.shape == (64, 64, 3)
    edge = min(max(rows[1] - rows[0], columns[1] - columns[0]) + 1, 8)
    share = (rows[1] - rows[0]) * (columns[1] - columns[0]) / edge**2
    assert crop.mean() / 255 == pytest.approx(share, abs=0.03)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_draws_the_page(tmp_path: Path) -> None:
    path = write_discovery_page(tmp_path / "index.html", content(tmp_path))
    target = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=900,700"]
    subprocess.run(
        [CHROMIUM, *options, f"--screenshot={target}", path.as_uri()], capture_output=True, timeout=120, check=True
    )
    drawn = np.asarray(Image.open(target).convert("RGB"))
    assert drawn.shape == (700, 900, 3) and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100
