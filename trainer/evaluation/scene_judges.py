"""What judges pictures of several subjects: OWLv2 finds them and CLIP compares them, or the drawn world's judge reads windows.

Letters: K places, C subjects, R pictures of one subject, F features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...demo.attribute_judge import AttributeJudge, species_classes
from ...demo.creature_likeness import EDGE, RECOGNISED, creature_likeness, cut_boxes
from ...demo.species import Species
from ...scenes.scene_scores import Boxes, SeenPlaces, separate_places, sliding_windows
from ..learning.pictures.image_files import image_to_tensor
from ..model.backbones import choose_device
from .clip_judge import USUAL_CLIP, ClipJudge
from .left_out import load_or_leave_out
from .owl_detector import USUAL_DETECTOR, OwlDetector

DRAWN = "drawn world"
_PLACES_PER_SUBJECT = 3
_SAME_THING, _SAME_CREATURE = 0.5, 0.3


@dataclass(frozen=True, eq=False)
class KnownSubject:
    """What a subject is called and how it looks."""

    name: str
    words: str
    """Its class, as a detector is asked for it: `dog`."""
    pictures: tuple[Image.Image, ...] = field(default=(), repr=False)
    """Of it alone; none for a species of the drawn world."""
    species: Species | None = None


class SceneJudge(Protocol):
    """Sees where subjects are and how like themselves."""

    def look(self, picture: Image.Image, subjects: Sequence[KnownSubject], boxes: Boxes | None = None) -> SeenPlaces:
        """Places of a picture; `boxes` `(K, 4)` are where subjects were put, for judges that do not find them by themselves."""
        ...


class ClipSceneJudge:
    """OWLv2 for places, CLIP for likeness."""

    def __init__(self, clip: ClipJudge, detector: OwlDetector) -> None:
        self._clip, self._detector = clip, detector
        self._known: dict[KnownSubject, Tensor] = {}

    def look(self, picture: Image.Image, subjects: Sequence[KnownSubject], boxes: Boxes | None = None) -> SeenPlaces:
        """Places of a picture, the most certain `3 * C` that overlap by less than a half; `boxes` are not needed.

        Raises:
            BestiaryError: a subject without pictures.
        """
        # subjects of one class share a question, and the assignment tells them apart
        classes = list(dict.fromkeys(one.words for one in subjects))
        asked = [f"a photo of a {words}" for words in classes]
        found = self._detector.detect(picture, asked)
        places = found.boxes.numpy()  # (K, 4)
        # a box without area shows nothing
        certainty = np.where((places[:, 2:] >= 1).all(axis=1), found.certainty.numpy(), 0)
        kept = separate_places(places, certainty, _SAME_THING, _PLACES_PER_SUBJECT * len(subjects))
        kept = [row for row in kept if certainty[row] > 0]
        known = torch.stack([self._features(one) for one in subjects])  # (C, F)
        likeness = np.zeros((0, len(subjects)), np.float32)
        if kept:
            likeness = (self._clip.pictures([_crop(picture, places[row]) for row in kept]) @ known.T).numpy()  # (K, C)
        numbers = np.array([classes.index(one.words) for one in subjects])  # (C,)
        return SeenPlaces(places[kept], likeness, found.names.numpy()[kept][:, None] == numbers[None])

    def _features(self, subject: KnownSubject) -> Tensor:
        """Mean feature `(F,)`, whose product with another is the mean cosine."""
        if not subject.pictures:
            raise BestiaryError(f"no pictures of {subject.name!r}: CLIP compares with pictures of the subject alone")
        if subject not in self._known:
            self._known[subject] = self._clip.pictures(subject.pictures).mean(dim=0)
        return self._known[subject]


class DrawnSceneJudge:
    """The attribute judge of the drawn world, which reads one creature at a time, on windows or where subjects were put."""

    def __init__(self) -> None:
        self._judge = AttributeJudge.load()

    def look(self, picture: Image.Image, subjects: Sequence[KnownSubject], boxes: Boxes | None = None) -> SeenPlaces:
        """Places of a picture: `boxes`, or those of windows that look most like any of the subjects and are apart."""
        places = sliding_windows(*picture.size) if boxes is None else boxes
        pixels = image_to_tensor(picture.convert("RGB"))  # (3, H, W)
        likeness = creature_likeness(self._judge, cut_boxes(pixels, places), [self._looks(one) for one in subjects])
        if boxes is None:
            kept = separate_places(places, likeness.max(axis=1), _SAME_CREATURE)
            places, likeness = places[kept], likeness[kept]
        return SeenPlaces(places, likeness, np.ones(likeness.shape, bool), RECOGNISED)

    def _looks(self, subject: KnownSubject) -> Tensor:
        """Class numbers `(R, parts, attributes)`."""
        if subject.species is not None:
            return species_classes([subject.species])
        squares = [one.convert("RGB").resize((EDGE, EDGE), Image.Resampling.BICUBIC) for one in subject.pictures]
        return self._judge.classes(torch.stack([image_to_tensor(one) for one in squares])).cpu()


@dataclass(frozen=True)
class SceneJudges:
    """Those whose weights are here."""

    composition: SceneJudge | None
    text: ClipJudge | None
    models: Mapping[str, str]
    """What judged: `clip`, `detector` or `attributes`, and the model."""
    left_out: Mapping[str, str]
    """Columns that nobody judges, and what to do."""


def load_scene_judges(clip: str | None, detector: str | None, *, drawn: bool, device: str = "auto") -> SceneJudges:
    """The judges whose weights are here.

    Args:
        clip: folder of a CLIP model or its name in the Hugging Face cache; None takes the usual one if it is there.
        detector: the same of OWLv2.
        drawn: whether the drawn world's judge finds and compares, which needs no weights.
        device: where to run.

    Raises:
        BestiaryError: weights that were named are missing or broken, or there are none at all.
    """
    place = choose_device(device)
    left_out: dict[str, str] = {}

    columns = "TI" if drawn else "CP, TI"
    comparing = load_or_leave_out(columns, clip, lambda: ClipJudge.load(clip or USUAL_CLIP, place), left_out)
    models = {} if comparing is None else {"clip": clip or USUAL_CLIP}
    if drawn:
        return SceneJudges(DrawnSceneJudge(), comparing, {"attributes": DRAWN, **models}, left_out)
    if comparing is None:
        raise BestiaryError(
            f"nothing can be judged. {'; '.join(left_out.values())}; or let the drawn world's judge look"
        )
    finding = load_or_leave_out("CP", detector, lambda: OwlDetector.load(detector or USUAL_DETECTOR, place), left_out)
    if finding is None:
        return SceneJudges(None, comparing, models, left_out)
    models["detector"] = detector or USUAL_DETECTOR
    return SceneJudges(ClipSceneJudge(comparing, finding), comparing, models, left_out)


def _crop(picture: Image.Image, box: Boxes) -> Image.Image:
    left, top, width, height = box.tolist()
    return picture.crop(
        (round(left), round(top), max(round(left) + 1, round(left + width)), max(round(top) + 1, round(top + height)))
    )
