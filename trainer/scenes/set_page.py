"""The page of a set: every scene with its mask, boxes, caption and scores, filtered by subject, place or rejection."""

import json
from pathlib import Path

from PIL import Image, ImageDraw

from ...scenes.set_files import REJECTED, SceneRecord, read_records
from ..pages.pages import data_uri, escaped, figure, paragraph, section, strip, table, tiles, write_page

_EDGE = 320
_COLORS = ("#e4572e", "#17bebb", "#ffc914", "#76b041", "#8b5fbf", "#3f88c5", "#d00000", "#136f63")
_FILTER = (
    "<script>document.getElementById('only').addEventListener('change', event => {"
    "for (const scene of document.querySelectorAll('[data-tags]'))"
    "scene.hidden = event.target.value !== '' && !JSON.parse(scene.dataset.tags).includes(event.target.value);"
    "});</script>"
)


def write_set_page(folder: Path) -> Path:
    """Write index.html of a set that is there; returns its path.

    Raises:
        BestiaryError: a record cannot be read, or the page cannot be written.
    """
    records = list(read_records(folder))
    rejected = [json.loads(path.read_text("utf-8")) for path in sorted((folder / REJECTED).glob("[!.]*.json"))]
    names = sorted({item.name for record in records for item in record.subjects})
    places = sorted({record.place for record in records if record.place})
    choices = [("", "all scenes"), *((f"subject {name}", name) for name in names)]
    choices += [*((f"place {place}", place) for place in places), ("rejected", "rejected")]
    options = "".join(f'<option value="{escaped(value)}">{escaped(label)}</option>' for value, label in choices)
    body = tiles([(len(records), "scenes"), (len(names), "subjects"), (len(rejected), "rejected")])
    body += f'<p><label>Show <select id="only">{options}</select></label></p>'
    body += "".join(_scene(folder, record) for record in records)
    if rejected:
        rows = [(entry["stem"], "; ".join(entry["reasons"])) for entry in rejected]
        body += _tagged(["rejected"], section("Rejected", table(["scene", "reasons"], rows)))
    return write_page(folder / "index.html", folder.resolve().name, body + _FILTER)


def _scene(folder: Path, record: SceneRecord) -> str:
    tags = [*(f"subject {item.name}" for item in record.subjects), f"place {record.place}"]
    with Image.open(folder / f"images/{record.stem}.png") as file:
        picture = file.convert("RGB")
    with Image.open(folder / f"masks/{record.stem}.png") as file:
        mask = file.convert("RGB")
    boxed = picture.copy()
    draw = ImageDraw.Draw(boxed)
    for index, item in enumerate(record.objects):
        left, top, width, height = item.bbox
        sides = (left, top, left + width - 1, top + height - 1)
        draw.rectangle(sides, outline=_COLORS[index % len(_COLORS)], width=max(1, picture.width // 200))
    shown = zip((picture, mask, boxed), ("picture", "mask", "boxes"), strict=True)
    figures = [figure(_small(image), title) for image, title in shown]
    scores = ", ".join(f"{name} {value:.3f}" for name, value in record.scores.items())
    return _tagged(tags, section(record.stem, strip(figures), paragraph(record.text), paragraph(scores, "note")))


def _small(image: Image.Image) -> str:
    image.thumbnail((_EDGE, _EDGE))
    return data_uri(image)


def _tagged(tags: list[str], content: str) -> str:
    return f'<div data-tags="{escaped(json.dumps(tags, ensure_ascii=False))}">{content}</div>'
