"""The page of an evaluation of scenes: figures of all pictures and of each group of subjects, then pictures with what was found."""

from collections.abc import Mapping
from pathlib import Path

from PIL import ImageDraw

from ..learning.pictures.image_files import read_image
from ..pages import pages
from .scene_figures import DRAWN_MEANING, MEANING, MeanScores, PictureScores, SceneFigures, group_name

COLORS = ((228, 87, 46), (23, 190, 187), (255, 201, 20), (118, 176, 65), (139, 95, 191), (63, 136, 197))
_SHOWN = 60
_EDGE = 320
_TITLES = {
    "cp": "CP",
    "ti": "TI",
    "match": "match",
    "found": "found",
    "complete": "complete",
    "extra_subjects": "extra",
}


def write_scenes_page(folder: Path, pictures: Path, figures: SceneFigures) -> Path:
    """Write `index.html` and return its path."""
    body = [
        pages.paragraph("Pictures of several subjects, and which of them were found.", "lead"),
        key_figures(figures),
    ]
    body.append(pages.section("By subjects", figures_by_subjects(figures)))
    shown = sorted(figures.pictures, key=lambda one: (one["found"] is None, one["found"], one["cp"], one["file"]))
    names = list(dict.fromkeys(name for one in figures.pictures for name in one["subjects"]))
    colors = {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}
    tiles = [_picture(pictures, one, colors) for one in shown[:_SHOWN]]
    note = (
        f"The {_SHOWN} lowest of {len(shown)} pictures. "
        if len(shown) > _SHOWN
        else "Those with the least found come first. "
    )
    body.append(
        pages.section("Pictures", pages.paragraph(note), pages.color_key(colors.items()), pages.gallery(tiles, 240))
    )
    return pages.write_page(folder / "index.html", "Evaluation of scenes", "".join(body))


def key_figures(figures: SceneFigures) -> str:
    """The means, large."""
    mean = figures.mean
    shown = [(value, _label(name)) for name in _TITLES if (value := _value(mean, name)) is not None]
    return pages.tiles([(len(figures.pictures), "pictures judged"), *shown])


def figures_by_subjects(figures: SceneFigures) -> str:
    """The table by subjects, what its columns mean, what judged, and what could not be judged."""
    columns = [name for name in _TITLES if _value(figures.mean, name) is not None]
    rows = [
        [name, one["pictures"], *(_value(one, column) for column in columns)] for name, one in figures.pairs.items()
    ]
    body = []
    if columns:
        body += [pages.table(["subjects", "pictures", *(_TITLES[name] for name in columns)], rows)]
        body += [pages.paragraph(MEANING)]
    if "attributes" in figures.models:
        body += [pages.paragraph(DRAWN_MEANING)]
    judged = "; ".join(f"{role}: {model}" for role, model in figures.models.items())
    body += [pages.paragraph(f"Judged by {judged}.", "note")]
    body += [pages.paragraph(f"Not judged: {names}. {remedy}", "note") for names, remedy in figures.left_out.items()]
    return "".join(body)


def _label(column: str) -> str:
    return {"complete": "show all subjects", "extra_subjects": "extra per picture"}.get(column, _TITLES[column])


def _value(scores: MeanScores, column: str) -> float | None:
    values: Mapping[str, object] = scores
    value = values[column]
    return float(value) if isinstance(value, int | float) else None


def _picture(folder: Path, scores: PictureScores, colors: Mapping[str, tuple[int, int, int]]) -> str:
    picture = read_image(folder / scores["file"])
    scale = min(1.0, _EDGE / max(picture.size))
    small = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    draw = ImageDraw.Draw(small)
    for name, box in scores["places"].items():
        if box is not None:
            left, top, width, height = (side * scale for side in box)
            edges = (left, top, max(left, left + width - 1), max(top, top + height - 1))
            draw.rectangle(edges, outline=colors[name], width=2)
    figures = (("CP", scores["cp"]), ("TI", scores["ti"]))
    parts = [f"{name} {value:.3f}" for name, value in figures if value is not None]
    missing = [name for name, box in scores["places"].items() if box is None]
    parts += [f"not found: {', '.join(missing)}"] if missing else []
    parts += [f"extra: {scores['extra_subjects']}"] if scores["extra_subjects"] else []
    title = scores["prompt"] or group_name(scores)
    return pages.figure(pages.data_uri(small), "; ".join(parts), title)
