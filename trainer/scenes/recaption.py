"""Captions of a set written anew: by other options, or by a model that looks at the pictures."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ...concepts.errors import BestiaryError
from ...concepts.files.text_file import read_text
from ...scenes.scene_captions import CaptionOptions, checked_caption, joined, plain_words, scene_caption, token_caption
from ...scenes.scene_layout import SceneLayout
from ...scenes.scene_set import SceneSet, stored_subject
from ...scenes.set_files import SceneRecord, SetCard, read_records
from .chat_endpoint import ChatEndpoint, EndpointFault

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Recaptioned:
    """What became of a set's captions."""

    scenes: int
    changed: int
    fallen_back: tuple[tuple[str, str], ...]
    """Scenes that keep the template's caption, with the reason."""


def recaption_set(
    folder: Path,
    options: CaptionOptions,
    endpoint: ChatEndpoint | None = None,
    *,
    title: str = "",
    on_scene: Report = lambda done, total: None,
) -> Recaptioned:
    """Write every caption of a set anew.

    Args:
        options: of the template.
        endpoint: a model that is shown each picture; its caption counts where it names every subject.
        title: of the whole set, which its evaluation shares; empty is the folder's name.
        on_scene: called with (done, total) scenes.

    Raises:
        BestiaryError: `folder` is not a set, or cannot be written to.
    """
    records = list(read_records(folder))
    scene_set = SceneSet(folder, read_card(folder, title or folder.name))
    changed, fallen = 0, []
    for number, record in enumerate(records, start=1):
        placed = [entry["subject"] for entry in record.layout["placements"]]
        subjects = sorted(
            (stored_subject(folder, files) for files in record.subjects),
            key=lambda subject: placed.index(subject.name),
        )
        layout = SceneLayout.from_json(json.dumps(record.layout))
        text = scene_caption(subjects, record.place, options, layout)
        prompt = token_caption(subjects, record.place, replace(options, triggers={}), layout)
        if endpoint is not None:
            named = joined([plain_words(subject) for subject in subjects])
            try:
                answer = endpoint.ask(_question(folder, record, named))
                spoken = checked_caption(answer, subjects, "", options.triggers)
            except EndpointFault as fault:
                spoken, reason = "", str(fault)
            else:
                reason = f"the answer does not name {named}: {' '.join(answer.split())[:120]}"
            if spoken:
                text = spoken
            else:
                fallen.append((record.stem, reason))
        changed += scene_set.recaption(record, text, prompt)
        on_scene(number, len(records))
    scene_set.finish()
    return Recaptioned(len(records), changed, tuple(fallen))


def read_card(folder: Path, title: str) -> SetCard:
    """What a set that is there says of itself.

    Raises:
        BestiaryError: its provenance cannot be read.
    """
    path = folder / "provenance.json"
    try:
        content = json.loads(read_text(path))
        options = dict(content["options"])
        skipped = [(str(entry["file"]), str(entry["reason"])) for entry in content.get("skipped", [])]
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise BestiaryError(f"{path} cannot be read: {fault!r}; build the set again") from fault
    return SetCard(title, require_licence=bool(options.get("require_licence")), options=options, skipped=skipped)


def _question(folder: Path, record: SceneRecord, named: str) -> list[Mapping[str, object]]:
    content = (folder / f"images/{record.stem}.png").read_bytes()
    picture = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
    words = (
        f"Describe this picture in one sentence of at most 40 words. It shows {named}; use exactly these words for them, and say "
        "where they are and what they do. Answer with the sentence alone."
    )
    return [
        {
            "role": "user",
            "content": [{"type": "text", "text": words}, {"type": "image_url", "image_url": {"url": picture}}],
        }
    ]
