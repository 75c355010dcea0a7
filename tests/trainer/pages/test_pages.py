"""Pages: everything is escaped, nothing is loaded from elsewhere, an earlier page is replaced whole."""

import base64
import io
import re

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.pages.pages import (
    code,
    color_key,
    data_uri,
    details,
    figure,
    gallery,
    paragraph,
    section,
    strip,
    table,
    tiles,
    write_page,
)
from PIL import Image

HOSTILE = '<script>alert("x")</script>&'


def _decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def test_embedded_picture_survives():
    picture = Image.new("RGB", (16, 8), (200, 40, 30))
    assert _decoded(data_uri(picture, quality=None)).convert("RGB").getpixel((3, 3)) == (200, 40, 30)
    assert _decoded(data_uri(picture)).size == (16, 8)


def test_picture_with_alpha_is_embedded_without_it():
    assert _decoded(data_uri(Image.new("RGBA", (4, 4), (1, 2, 3, 0)))).mode == "RGB"


@pytest.mark.parametrize(
    "piece",
    [
        figure("data:,", HOSTILE),
        figure("data:,", "plain", title=HOSTILE),
        table([HOSTILE], [["x"]]),
        table(["x"], [[HOSTILE]]),
        tiles([(HOSTILE, "x"), ("x", HOSTILE)]),
        section(HOSTILE),
        paragraph(HOSTILE),
        code(HOSTILE),
        details(HOSTILE, ""),
        color_key([(HOSTILE, (1, 2, 3))]),
        figure('"><script>', "x"),
    ],
)
def test_text_from_users_is_escaped(piece):
    assert "<script>" not in piece
    assert "&lt;script&gt;" in piece


def test_table_shows_floats_and_gaps():
    shown = table(["part", "EMR"], [["head", 0.51234], ["wing", None], ["tail", 7]])
    assert "<td>0.512</td>" in shown
    assert "<td>–</td>" in shown
    assert "<td>7</td>" in shown


def test_page_is_self_contained(tmp_path):
    picture = figure(data_uri(Image.new("RGB", (4, 4))), "a picture")
    path = write_page(tmp_path / "new" / "index.html", "Parts & kinds", gallery([picture]))
    text = path.read_text(encoding="utf-8")
    assert "<h1>Parts &amp; kinds</h1>" in text
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "http" not in text.replace("http-equiv", "")


def test_page_replaces_an_earlier_one_and_leaves_nothing_beside_it(tmp_path):
    write_page(tmp_path / "index.html", "first", "")
    write_page(tmp_path / "index.html", "second", "")
    assert "second" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.html"]


def test_page_in_an_unwritable_place_is_one_clear_fault(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BestiaryError, match="could not write .*index.html"):
        write_page(tmp_path / "file" / "index.html", "title", "")


def test_strip_has_as_many_columns_as_asked():
    figures = [figure("data:,", str(number)) for number in range(4)]
    assert 'style="--columns: 4"' in strip(figures)
    assert 'style="--columns: 2"' in strip(figures, 2)
