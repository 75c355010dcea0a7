"""What a set of scenes says of itself: the card, the rows of its metadata, COCO annotations, and where everything came from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..concepts.errors import BestiaryError
from ..concepts.files.text_file import read_text
from .set_files import EVALUATION, SCORES, SceneRecord, SetCard

SCORE_NAMES = ("cp", "ti", "match", "found", "extra_subjects")
"""What `bestiary scenes score` measures of a scene."""

_PATTERNS = ("images/*.png", "masks/*.png", "instances/*.png", "metadata.jsonl")


def metadata_rows(records: Sequence[SceneRecord]) -> Iterable[dict[str, object]]:
    """Rows of `metadata.jsonl`: columns of one type in all rows, `*_file_name` for pictures."""
    scores = sorted({name for record in records for name in record.scores})
    for record in records:
        row: dict[str, object] = {
            "file_name": f"images/{record.stem}.png",
            "mask_file_name": f"masks/{record.stem}.png",
            "instances_file_name": f"instances/{record.stem}.png",
            "text": record.text,
            "prompt": record.prompt,
            "captions": list(record.captions),
            "scene": record.place,
            "objects": {
                "id": [entry.id for entry in record.objects],
                "class": [entry.words for entry in record.objects],
                "token": [entry.token for entry in record.objects],
                "bbox": [[float(number) for number in entry.bbox] for entry in record.objects],
                "area": [entry.area for entry in record.objects],
                "visible": [float(entry.visible) for entry in record.objects],
                "z": [entry.z for entry in record.objects],
            },
            "source_sha256": [subject.source["sha256"] for subject in record.subjects],
            "seed": record.layout["seed"],
            "layout_source": record.layout["made_by"],
            "model": record.model,
        }
        # a column without any field is none that loaders can store
        yield row | ({"scores": {name: record.scores.get(name) for name in scores}} if scores else {})


def coco_annotations(records: Sequence[SceneRecord], prefix: str = "images/") -> dict[str, object]:
    """`images`, `annotations` and `categories` as COCO's tools read them; one category for each word.

    Args:
        prefix: of the pictures' paths.
    """
    words = sorted({entry.words for record in records for entry in record.objects})
    numbers = {word: number for number, word in enumerate(words, start=1)}
    images, annotations = [], []
    for number, record in enumerate(records, start=1):
        width, height = record.layout["width"], record.layout["height"]
        name = f"{prefix}{record.stem}.png"
        images.append({"id": number, "file_name": name, "width": width, "height": height, "caption": record.text})
        for entry in record.objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": numbers[entry.words],
                    "segmentation": {"size": [height, width], "counts": entry.counts},
                    "bbox": list(entry.bbox),
                    "area": entry.area,
                    "iscrowd": 0,
                    "subject": entry.id,
                }
            )
    categories = [{"id": number, "name": word} for word, number in numbers.items()]
    return {
        "info": {"description": "scenes"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def set_card(folder: Path, records: Sequence[SceneRecord], card: SetCard) -> str:
    """README of a set: the header that `datasets` reads, what there is, and the sources with their licences."""
    splits = [("train", "")]
    if (folder / EVALUATION / "metadata.jsonl").is_file():
        splits.append(("test", f"{EVALUATION}/"))
    lines = ["---", f"license: {json.dumps(card.licence)}", "configs:", "- config_name: default", "  data_files:"]
    for split, start in splits:
        lines += [f"  - split: {split}", "    path:", *(f'    - "{start}{pattern}"' for pattern in _PATTERNS)]
    names = sorted({entry.words for record in records for entry in record.objects})
    lines += [
        "---",
        "",
        f"# {card.title or folder.name}",
        "",
        f"{len(records)} scenes of {', '.join(names)}, composed of cut-outs.",
        "",
        "| folder | content |",
        "|---|---|",
        "| `images/` | pictures, each with a caption of one line beside it |",
        "| `masks/` | how much of a pixel shows any subject: white = all |",
        "| `instances/` | number of the subject that a pixel shows, 0 for the background; in the order of `objects` |",
        "| `metadata.jsonl` | captions, boxes (left, top, width, height in pixels), sources |",
        "| `annotations.coco.json` | the same boxes and masks for COCO's tools |",
        "| `layouts/`, `subjects/`, `backgrounds/` | what each picture was made of, exactly |",
        "",
        "## Sources",
        "",
        "| file | licence | author |",
        "|---|---|---|",
    ]
    for source in _sources(records):
        cells = (_cell(source[name]) for name in ("file", "licence", "author"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def provenance(
    records: Sequence[SceneRecord], rejected: Sequence[Mapping[str, object]], card: SetCard, hashes: Mapping[str, str]
) -> dict[str, object]:
    """Options, sources, hashes of all files, and every rejected try with its reason; no times, so that a replay is equal."""
    tries = [{"stem": record.stem, "reasons": list(record.rejected)} for record in records if record.rejected]
    files = {name: sha for record in records for name, sha in record.files.items()} | dict(hashes)
    return {
        "tool": "bestiary scenes",
        "format": 1,
        "layout_versions": sorted({record.layout["version"] for record in records}),
        "options": dict(card.options),
        "sources": _sources(records),
        "skipped": [{"file": file, "reason": reason} for file, reason in card.skipped],
        "rejected": [{"stem": entry["stem"], "reasons": entry["reasons"], "given_up": True} for entry in rejected]
        + [entry | {"given_up": False} for entry in tries],
        "files": dict(sorted(files.items())),
    }


def scores_fit(folder: Path, records: Sequence[SceneRecord]) -> bool:
    """Whether the scores of a set are those of its records: not so where scenes were made, painted or described anew since."""
    try:
        rows = {row["file"]: row for row in json.loads(read_text(folder / SCORES))["scores"]}
        return {file: [row[name] for name in SCORE_NAMES] for file, row in rows.items()} == {
            f"images/{one.stem}.png": [one.scores.get(name) for name in SCORE_NAMES] for one in records
        }
    except (BestiaryError, ValueError, KeyError, TypeError):
        return False


def _sources(records: Sequence[SceneRecord]) -> list[dict[str, str]]:
    found = {json.dumps(dict(subject.source), sort_keys=True) for record in records for subject in record.subjects}
    return [json.loads(source) for source in sorted(found)]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split()) or "not given"
