"""Scores of scenes in a graph: subjects found, alike and complete (CP), and prompts followed (TI), with models that the graph brings.

Letters: B pictures, K places, C subjects, F features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...concepts.errors import BestiaryError
from ...concepts.name_search import same_name
from ...demo.attribute_judge import AttributeJudge
from ...demo.creature_likeness import RECOGNISED, creature_likeness, cut_boxes
from ...scenes.reference_pictures import reference_picture
from ...scenes.scene_captions import plain_words
from ...scenes.scene_scores import Boxes, SeenPlaces, score_places, separate_places, sliding_windows
from ...scenes.subject import Subject
from ..host.comfy_objects import Clip
from ..host.graph_progress import GraphProgress
from ..host.socket_types import SceneSubjects
from .layout_solving import box_label, box_sides
from .scene_pictures import as_tensor, checked_pictures

VISION, DRAWN = "clip vision", "drawn world"
JUDGES = [VISION, DRAWN]
_SAME_THING, _SAME_CREATURE = 0.5, 0.3
_REFERENCE_EDGE = 512
_USUAL_SPREAD = (1e-3, 1.0)
"""Standard deviation of the weights of a text projection that was loaded; others are what memory held."""


class ClipVision(Protocol):
    """ComfyUI's CLIP_VISION."""

    def encode_image(self, image: Tensor) -> Mapping[str, Tensor]:
        """Pictures `(B, H, W, 3)` to `image_embeds` `(B, F)` and others."""
        ...


@dataclass(frozen=True)
class ScoredPicture:
    """Figures of one picture; None where no model was connected."""

    cp: float
    ti: float | None
    found: float
    extra: int
    likeness: Mapping[str, float]
    """Of each subject."""
    places: Mapping[str, list[float] | None]
    """Left, top, width and height in pixels; None for a subject that was not found."""


@dataclass(frozen=True)
class SceneScorer:
    """What looks at pictures."""

    judge: str
    """One of `JUDGES`."""
    vision: ClipVision | None = None
    clip: Clip | None = None
    """For the prompt."""

    def __post_init__(self) -> None:
        """Checks that what the judge needs is connected."""
        if self.judge not in JUDGES:
            raise BestiaryError(f"judge {self.judge!r} is not one of {', '.join(JUDGES)}: choose one of them")
        if self.judge == VISION and self.vision is None:
            raise BestiaryError(
                "judge 'clip vision' needs a model: connect Load CLIP Vision to clip_vision, or choose the drawn world's judge"
            )
        if self.clip is not None and self.vision is None:
            raise BestiaryError(
                "a prompt is compared with features of pictures: connect Load CLIP Vision to clip_vision"
            )


def score_all(
    images: Tensor,
    subjects: SceneSubjects,
    prompt: str,
    scorer: SceneScorer,
    boxes: object,
    progress: GraphProgress,
) -> list[ScoredPicture]:
    """Scores of pictures `(B, H, W, 3)` in 0..1, each of which should show all the subjects.

    Args:
        boxes: of a detection node or Layout Boxes, a list for each picture or one for all; None only with the drawn world's judge,
            which then looks at windows.

    Raises:
        BestiaryError: boxes that are missing or cannot be read, or a CLIP that does not fit the CLIP vision.
        InterruptProcessingException: the user cancelled.
    """
    pictures = checked_pictures(images)[..., :3].float().cpu()  # (B, H, W, 3)
    if boxes is None and scorer.judge == VISION:
        raise BestiaryError(
            "no boxes: connect those of a detection node that looked at the pictures, or Layout Boxes for where the subjects were put"
        )
    placed = None if boxes is None else _boxes_of_pictures(boxes, pictures)
    vision = scorer.vision
    eye = _DrawnEye(subjects) if scorer.judge == DRAWN or vision is None else _VisionEye(vision, subjects)
    text = None if scorer.clip is None or not prompt.strip() else text_feature(scorer.clip, prompt)
    names = [one.name for one in subjects.subjects]
    progress.begin(len(pictures))
    scored = []
    for number, picture in enumerate(pictures):
        progress.add()
        ti = None if text is None or vision is None else _likeness_to_prompt(vision, picture, text)
        scored.append(_scored(eye.look(picture, None if placed is None else placed[number]), names, ti))
    progress.finish()
    return scored


def _scored(seen: SeenPlaces, names: Sequence[str], ti: float | None) -> ScoredPicture:
    score = score_places(seen)
    places = [None if row is None else [round(float(side), 1) for side in seen.boxes[row]] for row in score.places]
    likeness = dict(zip(names, (round(value, 4) for value in score.likeness), strict=True))
    return ScoredPicture(
        round(score.cp, 4), ti, score.found, score.extra, likeness, dict(zip(names, places, strict=True))
    )


def scores_json(scored: Sequence[ScoredPicture], prompt: str, judge: str) -> str:
    """Means and every picture."""
    mean = {name: mean_of(scored, name) for name in ("cp", "ti", "found")}
    record = {
        "judge": judge,
        "prompt": prompt,
        "pictures": len(scored),
        "mean": {**mean, "complete": sum(one.found == 1 for one in scored) / len(scored)},
        "scores": [{"picture": number, **vars(one)} for number, one in enumerate(scored, start=1)],
    }
    return json.dumps(record, indent=1, ensure_ascii=False)


def scores_text(scored: Sequence[ScoredPicture]) -> str:
    """A line on every picture."""
    lines = []
    for number, one in enumerate(scored, start=1):
        missing = [name for name, place in one.places.items() if place is None]
        words = [f"CP {one.cp:.3f}", *([f"TI {one.ti:.3f}"] if one.ti is not None else [])]
        words += [f"not found: {', '.join(missing)}"] if missing else ["all found"]
        words += [f"{one.extra} extra"] if one.extra else []
        lines.append(f"picture {number}: {'; '.join(words)}")
    return "\n".join(lines)


def mean_of(scored: Sequence[ScoredPicture], name: str) -> float | None:
    """Mean of a figure over pictures; None where nobody measured it."""
    values = [value for one in scored if (value := vars(one)[name]) is not None]
    return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class _Boxes:
    """What a detector found in one picture."""

    labels: tuple[str, ...]
    """Empty for a box that may show anything."""
    places: Boxes
    """`(K, 4)`."""


class _VisionEye:
    """CLIP's likeness of what boxes show and the subjects' own pictures."""

    def __init__(self, vision: ClipVision, subjects: SceneSubjects) -> None:
        self._vision, self._subjects = vision, subjects.subjects
        known = [
            torch.cat([image_feature(vision, _reference(one)) for one in some]).mean(dim=0)
            for some in _pictures_of(subjects)
        ]
        self._known = torch.stack(known)  # (C, F)

    def look(self, picture: Tensor, found: _Boxes | None) -> SeenPlaces:
        """Places of a picture `(H, W, 3)`."""
        assert found is not None
        likeness = np.zeros((0, len(self._subjects)), np.float32)
        if len(found.places):
            crops = [image_feature(self._vision, _crop(picture, box)) for box in found.places]
            likeness = (torch.cat(crops) @ self._known.T).numpy()  # (K, C)
        return SeenPlaces(found.places, likeness, _possible(found.labels, self._subjects))


class _DrawnEye:
    """The judge of the drawn world, on boxes or on windows."""

    def __init__(self, subjects: SceneSubjects) -> None:
        self._judge, self._subjects = AttributeJudge.load(), subjects.subjects
        self._looks = [
            self._judge.classes(torch.cat([_square(_reference(one)) for one in some])).cpu()
            for some in _pictures_of(subjects)
        ]

    def look(self, picture: Tensor, found: _Boxes | None) -> SeenPlaces:
        """Places of a picture `(H, W, 3)`."""
        height, width = picture.shape[:2]
        places = sliding_windows(width, height) if found is None else found.places
        likeness = np.zeros((0, len(self._subjects)), np.float32)
        if len(places):
            likeness = creature_likeness(self._judge, cut_boxes(picture.permute(2, 0, 1), places), self._looks)
        if found is None:
            kept = separate_places(places, likeness.max(axis=1), _SAME_CREATURE)
            places, likeness = places[kept], likeness[kept]
        labels = [""] * len(places) if found is None else found.labels
        return SeenPlaces(places, likeness, _possible(labels, self._subjects), RECOGNISED)


def image_feature(vision: ClipVision, picture: Tensor) -> Tensor:
    """Feature `(1, F)` of length 1 of a picture `(H, W, 3)` in 0..1."""
    return functional.normalize(vision.encode_image(picture[None])["image_embeds"].float().cpu(), dim=-1)


def text_feature(clip: Clip, prompt: str) -> Tensor:
    """Feature `(1, F)` of length 1 of a prompt.

    Raises:
        BestiaryError: the model has no such feature, or its file had no text projection.
    """
    pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)[1]
    spreads = [
        float(weight.float().std())
        for name, weight in clip.cond_stage_model.state_dict().items()
        if name.endswith("text_projection.weight")
    ]
    least, most = _USUAL_SPREAD
    # a file without these weights loads all the same, and leaves what memory held
    if pooled is None or not spreads or not all(least < spread < most for spread in spreads):
        raise BestiaryError(
            "this CLIP has no text projection, so its features cannot be compared with pictures: connect Load CLIP with a complete "
            "text encoder, such as clip_l.safetensors or clip_g.safetensors"
        )
    return functional.normalize(pooled.float().cpu().reshape(1, -1), dim=-1)


def _likeness_to_prompt(vision: ClipVision, picture: Tensor, text: Tensor) -> float:
    seen = image_feature(vision, picture)  # (1, F)
    if seen.shape != text.shape:
        raise BestiaryError(
            f"the CLIP has {text.shape[1]} features and the CLIP vision {seen.shape[1]}: load both of one model, such as clip_l with "
            "ViT-L/14 (768) or clip_g with ViT-bigG (1280)"
        )
    return round(float((seen @ text.T).squeeze()), 4)


def _boxes_of_pictures(boxes: object, pictures: Tensor) -> list[_Boxes]:
    """Boxes for each picture, those that overlap left out."""
    listed = boxes if isinstance(boxes, list) and boxes and isinstance(boxes[0], list) else [boxes]
    if len(listed) not in (1, len(pictures)):
        raise BestiaryError(
            f"{len(listed)} lists of boxes for {len(pictures)} pictures: connect one list, or one for each"
        )
    height, width = pictures.shape[1:3]
    return [_read_boxes(listed[number % len(listed)], width, height) for number in range(len(pictures))]


def _read_boxes(boxes: object, width: int, height: int) -> _Boxes:
    some = [boxes] if isinstance(boxes, Mapping) else boxes
    if not isinstance(some, list) or not all(isinstance(box, Mapping) for box in some):
        raise BestiaryError(
            f"boxes are {str(boxes)[:80]!r}: connect boxes with x, y, width and height, such as those of a detection node"
        )
    sides = np.array([box_sides(box) for box in some], np.float32).reshape(-1, 4)  # (K, 4)
    start, limit = np.clip(sides[:, :2], 0, (width, height)), np.array((width, height), np.float32)
    places = np.concatenate([start, np.minimum(sides[:, :2] + sides[:, 2:], limit) - start], axis=1)
    certainty = [float(box.get("score", 1)) for box in some]
    kept = separate_places(places, np.array(certainty), _SAME_THING)
    kept = [row for row in kept if (places[row, 2:] >= 1).all()]
    return _Boxes(tuple(box_label(some[row]) for row in kept), places[kept])


def _possible(labels: Sequence[str], subjects: Sequence[Subject]) -> np.ndarray:
    """`(K, C)` whether a label is a subject's name or words; an empty one may be anyone's."""
    rows = [[not label or _is_called(label, one) for one in subjects] for label in labels]
    return np.array(rows, bool).reshape(len(labels), len(subjects))


def _is_called(label: str, subject: Subject) -> bool:
    return same_name(label, [subject.name, plain_words(subject)]) is not None


def _pictures_of(subjects: SceneSubjects) -> list[list[Subject]]:
    return [[one, *(other for other in subjects.others if other.name == one.name)] for one in subjects.subjects]


def _reference(subject: Subject) -> Tensor:
    """A subject on white `(s, s, 3)`."""
    return as_tensor([reference_picture(subject.cutout, _REFERENCE_EDGE)])[0]


def _square(picture: Tensor) -> Tensor:
    """As the judge of the drawn world takes it, `(1, 3, 128, 128)`."""
    return cut_boxes(picture.permute(2, 0, 1), np.array([(0, 0, picture.shape[1], picture.shape[0])], np.float32))


def _crop(picture: Tensor, box: np.ndarray) -> Tensor:
    left, top = int(box[0]), int(box[1])
    return picture[
        top : max(top + 1, round(float(box[1] + box[3]))), left : max(left + 1, round(float(box[0] + box[2])))
    ]
