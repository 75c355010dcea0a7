"""Subjects of a graph: cut out of pictures by their alpha or a mask, one list for all that follows."""

from __future__ import annotations

import torch
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.name_search import plain_name, shown_name
from ...scenes.cutout import AS_GIVEN, OWN_COLOURS, make_subject
from ...scenes.subject import Subject
from ..host.socket_types import SceneSubjects
from .scene_pictures import as_planes, checked_masks, checked_pictures


def subjects_of_images(
    images: Tensor, mask: Tensor | None, name: str, words: str, size: str, support: str
) -> list[Subject]:
    """One subject for every picture, all of one name.

    Args:
        images: `(B, H, W, 3)`, or `(B, H, W, 4)` with straight alpha, which counts where there is no mask.
        mask: `(B, H, W)` or `(H, W)`, 1 = subject.
        name: of the subject.
        words: what captions call it; the name where empty.
        size: a number, a noun or one of tiny to huge; empty: by its words.
        support: `ground`, `sky`, `any` or `on:NAME`.

    Raises:
        BestiaryError: neither mask nor alpha, a mask that is empty, white all over or of another size, or what `Subject` refuses.
    """
    images, name = checked_pictures(images), name.strip()
    if mask is None and images.shape[3] < 4:
        raise BestiaryError(
            f"subject {shown_name(name)}: the picture has no transparency and no mask is connected: connect a mask (white = subject), "
            "for example of Cut Out Subject, or a picture with alpha"
        )
    masks = images[..., 3].cpu().float() if mask is None else checked_masks(mask, images)  # (B, H, W)
    options = OWN_COLOURS if mask is None else AS_GIVEN
    made = []
    for number, (picture, alpha) in enumerate(zip(images, masks, strict=True), start=1):
        which = "" if len(images) == 1 else f" of picture {number}"
        _check_mask(alpha, name, which)
        made.append(
            make_subject(
                name,
                as_planes(picture[..., :3]),
                as_planes(alpha),
                options,
                words=" ".join(words.split()),
                size=read_size(size),
                support=support.strip() or "ground",
            )
        )
    return made


def read_size(text: str) -> float | str | None:
    """A size as a user typed it: a number, a word, or None for an empty field."""
    try:
        return float(text)
    except ValueError:
        return text.strip() or None


def added(before: SceneSubjects | None, made: list[Subject]) -> SceneSubjects:
    """The list with new pictures of one subject behind it; the first is shown in scenes, the others are references.

    Raises:
        BestiaryError: the name is taken.
    """
    known = before or SceneSubjects(())
    taken = [one.name for one in known.subjects if plain_name(one.name) == plain_name(made[0].name)]
    if taken:
        raise BestiaryError(
            f"there is a subject {shown_name(taken[0])} already: call this one {shown_name(made[0].name + ' 2')}, for instance"
        )
    return SceneSubjects((*known.subjects, made[0]), (*known.others, *made[1:]))


def called_by(subjects: SceneSubjects) -> dict[str, str]:
    """What prompts call every subject, by its name."""
    return {one.name: one.called for one in subjects.subjects}


def _check_mask(alpha: Tensor, name: str, which: str) -> None:
    """Refuse an opacity `(H, W)` that shows nothing or everything."""
    if not bool((alpha > 0).any()):
        raise BestiaryError(
            f"subject {shown_name(name)}: the mask{which} is empty; it must be white where the subject is"
        )
    if bool(torch.all(alpha == 1)):
        raise BestiaryError(
            f"subject {shown_name(name)}: the mask{which} is white all over, so the whole picture would be the subject; connect a mask "
            "that is black around it (Load Image gives 1 where a file is transparent: put Invert Mask behind it)"
        )
