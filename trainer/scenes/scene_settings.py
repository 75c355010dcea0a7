"""Settings of a set of scenes: what a recipe of `kind = "scenes"` may say, with defaults, units and ranges."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Section(BaseModel):
    """One table of a recipe; keys that do not exist are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class SubjectSettings(Section):
    """One subject and where its pictures lie."""

    name: str
    """Unique among the subjects, such as `cat`."""
    folder: Path
    """Folder of its pictures."""
    words: str = ""
    """What captions call it; the name where empty."""
    size: float | str | None = None
    """Length against other subjects: a number above 0, a noun such as `horse`, or tiny to huge."""
    support: str = "ground"
    """`ground`, `sky`, `any` or `on:NAME`."""
    masks: Path | None = None
    """Folder of masks called as their pictures; unset looks beside the pictures."""
    trigger: str = ""
    """Trigger word before its words in captions."""


class BackgroundSettings(Section):
    """What the subjects stand in front of."""

    mode: Literal["photo", "blur", "noise", "plain"] = "noise"
    """`photo` and `blur` need a folder of places."""
    folder: Path | None = None
    """Folder of pictures of places."""
    color: tuple[int, int, int] = (200, 200, 200)
    """RGB of `plain`, 0 to 255."""

    @field_validator("color")
    @classmethod
    def _in_range(cls, color: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(0 <= value <= 255 for value in color):
            raise ValueError("RGB values are 0 to 255")
        return color


class LayoutSettings(Section):
    """How subjects are laid out."""

    width: int = Field(768, ge=64, le=4096)
    """Of the canvas in pixels, 64 to 4096."""
    height: int = Field(768, ge=64, le=4096)
    """Of the canvas in pixels, 64 to 4096."""
    coverage: float = Field(0.22, gt=0, le=1)
    """Largest share of the canvas that all boxes take."""
    max_occlusion: float = Field(0.15, ge=0, le=1)
    """Largest share of a subject that others may hide."""
    perspective: float = Field(0.3, ge=0, lt=1)
    """How much smaller subjects at the far side are."""
    flip: bool = True
    """Mirror some subjects by chance."""
    turn: float = Field(0.0, ge=0, le=180)
    """Turn subjects by chance up to this many degrees."""


class CaptionSettings(Section):
    """How scenes are put into words."""

    template: str = "a photo of {subjects} {place}"
    """With `{subjects}` and, where the place is to be named, `{place}`."""
    relations: bool = False
    """Say who stands left of, in front of or on whom."""


class SceneSettings(Section):
    """A whole recipe."""

    kind: Literal["scenes"] = "scenes"
    """What the recipe is for."""
    subjects: tuple[SubjectSettings, ...] = Field((), validate_default=True)
    """At least one."""
    count: int = Field(40, ge=1, le=100_000)
    """Scenes to make."""
    per_scene: tuple[int, ...] = (2,)
    """Numbers of subjects in a scene, taken in turn."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Number from which every random choice follows."""
    weights: Path | None = None
    """IS-Net weights; unset takes those in models/bestiary/segmentation."""
    sources: Path | None = None
    """TOML file with licence and author of every picture."""
    require_licence: bool = False
    """Refuse pictures without a licence."""
    background: BackgroundSettings = BackgroundSettings()
    layout: LayoutSettings = LayoutSettings()
    captions: CaptionSettings = CaptionSettings()
    shadow: float = Field(0.5, ge=0, le=1)
    """Darkness of contact shadows."""
    lightness: float = Field(0.0, ge=0, le=1)
    """How far a subject's lightness goes to that of its place."""

    @field_validator("subjects")
    @classmethod
    def _own_names(cls, subjects: tuple[SubjectSettings, ...]) -> tuple[SubjectSettings, ...]:
        names = [subject.name.casefold() for subject in subjects]
        if not names:
            raise ValueError("no subject: add a table [[subjects]] with name and folder")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two subjects are called {twice[0]!r}: give each a name of its own")
        return subjects
