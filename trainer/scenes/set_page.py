"""The page of a set: every scene with its mask, boxes, caption and scores, filtered by subject, place or rejection.

It shows the set's own files, so that it stays small for thousands of scenes and belongs into the folder of the set.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...concepts.errors import BestiaryError
from ...concepts.files.text_file import read_text
from ...scenes.set_files import EVALUATION, RECORDS, REJECTED, SCORES, SceneRecord, read_records
from ..evaluation.scene_figures import SceneFigures
from ..evaluation.scenes_page import figures_by_subjects, key_figures
from ..pages.pages import details, escaped, gallery, image, paragraph, section, strip, table, tiles, write_page

_COLORS = ("#e4572e", "#17bebb", "#ffc914", "#76b041", "#8b5fbf", "#3f88c5", "#d00000", "#136f63")
_INCOMPLETE = "a subject was not found"
_STYLE = (
    "<style>.boxed { position: relative; } .boxed svg { position: absolute; inset: 0; width: 100%; height: 100%; }"
    " .boxed rect { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; }"
    " .cut { background: repeating-conic-gradient(var(--line) 0 25%, var(--card) 0 50%) 0 0 / 20px 20px; }"
    " [hidden] { display: none; }</style>"
)
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
    training = list(read_records(folder))
    evaluation = (
        list(read_records(folder / EVALUATION)) if any((folder / EVALUATION / RECORDS).glob("[!.]*.json")) else []
    )
    records = [*training, *evaluation]
    rejected = [*_rejected(folder, ""), *_rejected(folder / EVALUATION, f"{EVALUATION}/")]
    skipped = json.loads(read_text(folder / "provenance.json")).get("skipped", [])
    names = sorted({item.name for record in records for item in record.subjects})
    places = sorted({record.place for record in records if record.place})
    choices = [("", "all scenes"), *((f"subject {name}", name) for name in names)]
    choices += [(f"place {place}", place) for place in places]
    choices += [(_INCOMPLETE, _INCOMPLETE)] * any(map(_is_incomplete, records))
    choices += [("evaluation", "evaluation")] * bool(evaluation) + [("rejected", "rejected")] * bool(rejected)
    options = "".join(f'<option value="{escaped(value)}">{escaped(label)}</option>' for value, label in choices)
    counts = [(len(training), "scenes"), (len(names), "subjects"), (len(rejected), "rejected")]
    counts += [(len(evaluation), "for evaluation")] * bool(evaluation) + [(len(skipped), "pictures skipped")] * bool(
        skipped
    )
    body = _STYLE + tiles(counts) + _scores(folder) + _cutouts("", training) + _cutouts(f"{EVALUATION}/", evaluation)
    body += f'<p><label>Show <select id="only">{options}</select></label></p>'
    body += "".join(_scene("", record) for record in training)
    body += "".join(_scene(f"{EVALUATION}/", record) for record in evaluation)
    if rejected:
        body += _tagged(["rejected"], section("Rejected scenes", table(["scene", "reason"], rejected)))
    if skipped:
        rows = [(entry["file"], entry["reason"]) for entry in skipped]
        body += section("Skipped pictures", table(["file", "reason"], rows))
    return write_page(folder / "index.html", folder.resolve().name, body + _FILTER)


def _scores(folder: Path) -> str:
    """What `bestiary scenes score` measured, if it was asked to."""
    if not (folder / SCORES).is_file():
        return ""
    try:
        content = json.loads(read_text(folder / SCORES))
        figures = SceneFigures(content["scores"], content["models"], content["left_out"])
    except (ValueError, KeyError, TypeError) as fault:
        raise BestiaryError(f"{folder / SCORES} cannot be read: {fault!r}; score the set again") from fault
    return key_figures(figures) + details("scores by subjects", figures_by_subjects(figures))


def _is_incomplete(record: SceneRecord) -> bool:
    return record.scores.get("found", 1) < 1


def _rejected(folder: Path, prefix: str) -> Iterable[tuple[str, str]]:
    for path in sorted((folder / REJECTED).glob("[!.]*.json")):
        content = json.loads(read_text(path))
        yield f"{prefix}{content['stem']}", "; ".join(content["reasons"])


def _cutouts(prefix: str, records: Sequence[SceneRecord]) -> str:
    """Every cut-out that is used, once; nothing without a scene."""
    if not records:
        return ""
    found = {(item.name, item.cutout): item.source.get("file", "") for record in records for item in record.subjects}
    figures = [
        f'<figure><div class="cut">{image(f"{prefix}{cutout}", name)}</div>'
        f"<figcaption><b>{escaped(name)}</b><br>{escaped(Path(file).name)}</figcaption></figure>"
        for (name, cutout), file in sorted(found.items())
    ]
    called = "cut-outs for evaluation" if prefix else "cut-outs"
    return f"<details><summary>{len(figures)} {called}</summary>{gallery(figures)}</details>"


def _scene(prefix: str, record: SceneRecord) -> str:
    tags = [*(f"subject {item.name}" for item in record.subjects), f"place {record.place}"]
    tags += ["evaluation"] * bool(prefix) + [_INCOMPLETE] * _is_incomplete(record)
    picture = image(f"{prefix}images/{record.stem}.png", record.text)
    mask = image(f"{prefix}masks/{record.stem}.png", "mask")
    figures = [_figure(picture, "picture"), _figure(mask, "mask"), _figure(picture + _boxes(record), _legend(record))]
    scores = ", ".join(f"{name} {value:.3f}" for name, value in record.scores.items())
    about = "; ".join(filter(None, (scores, *record.rejected)))
    return _tagged(
        tags, section(f"{prefix}{record.stem}", strip(figures), paragraph(record.text), paragraph(about, "note"))
    )


def _figure(content: str, caption: str) -> str:
    return f'<figure><div class="boxed">{content}</div><figcaption>{caption}</figcaption></figure>'


def _boxes(record: SceneRecord) -> str:
    """The boxes of the visible subjects, drawn over the picture."""
    sides = []
    for index, item in enumerate(record.objects):
        left, top, width, height = item.bbox
        sides.append(
            f'<rect x="{left}" y="{top}" width="{width}" height="{height}" stroke="{_COLORS[index % len(_COLORS)]}"/>'
        )
    canvas = f"0 0 {int(record.layout['width'])} {int(record.layout['height'])}"
    return f'<svg viewBox="{canvas}" preserveAspectRatio="none">{"".join(sides)}</svg>'


def _legend(record: SceneRecord) -> str:
    return " ".join(
        f'<span class="key" style="background: {_COLORS[index % len(_COLORS)]}"></span>{escaped(item.id)}'
        for index, item in enumerate(record.objects)
    )


def _tagged(tags: list[str], content: str) -> str:
    return f'<div data-tags="{escaped(json.dumps(tags, ensure_ascii=False))}">{content}</div>'
