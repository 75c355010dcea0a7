"""Settings of a set of scenes: what a recipe of `kind = "scenes"` may say, with defaults, units and ranges."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from ...concepts.errors import BestiaryError
from ...scenes.cutout import CutoutOptions
from ...scenes.layout_request import supporters
from ...scenes.scene_captions import CaptionOptions
from ...scenes.subject import Subject


class Section(BaseModel):
    """One table of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _number_or_off(value: object) -> object:
    # true would be read as the number 1
    if value is True:
        raise ValueError("give a number, or false to switch this check off")
    return value


Limit = Annotated[float | Literal[False] | None, BeforeValidator(_number_or_off)]
"""A number, `false` to switch the check off, or unset for the default of the mask's source."""


class SubjectSettings(Section):
    """One subject and its pictures."""

    name: str
    """Unique among the subjects, such as `cat`."""
    folder: Path
    """Folder of its pictures; subfolders are read too."""
    words: str = ""
    """What captions call it; the name if empty."""
    size: float | str | None = None
    """Length of its longest side against the other subjects: a number above 0, a noun such as `horse`, or one of tiny, small,
    medium, large and huge."""
    support: str = "ground"
    """`ground`, `sky`, `any` or `on:NAME`."""
    masks: Path | None = None
    """Folder of masks named like the pictures; unset looks beside the pictures."""
    trigger: str = ""
    """Trigger word that captions put before its words."""

    @model_validator(mode="after")
    def _is_a_subject(self) -> "SubjectSettings":
        # name, size and support follow the rules of the record that they end up in
        stand_in(self)
        return self


def stand_in(asked: SubjectSettings) -> Subject:
    """A subject of one pixel with these settings, to check them before any picture is read."""
    pixel = np.full((1, 1, 4), 255, np.uint8)
    return Subject(asked.name, pixel, asked.words, asked.size, asked.support)


class CutoutSettings(Section):
    """How subjects are cut out of their pictures. Unset options keep the default of the mask's source."""

    backend: Literal["", "alpha", "mask", "isnet", "border", "parts"] = ""
    """Only source of masks; empty takes transparency, then a mask file, then IS-Net. `border` and `parts` cut photographs badly."""
    rounds: int = Field(default=1, ge=1, le=8)
    """Times that IS-Net looks at a picture, each time only at what the round before left."""
    bf16: bool = False
    """Run IS-Net in bfloat16: faster on processors that support it."""
    discovery: Path | None = None
    """Folder that `bestiary discover` wrote, for the backend `parts`."""
    largest_only: bool | None = None
    """Keep only the largest connected piece."""
    least_piece: float | None = Field(default=None, ge=0, le=1)
    """Drop pieces smaller than this share of the picture."""
    largest_hole: float | None = Field(default=None, ge=0, le=1)
    """Fill holes up to this share of the subject."""
    snap: float | None = Field(default=None, ge=0, le=0.4)
    """Opacities this close to 0 or 1 become 0 or 1."""
    feather: float | None = Field(default=None, ge=0, le=32)
    """Standard deviation in pixels of the blur of the mask."""
    edge_colours: bool | None = None
    """Estimate the subject's own colours along half transparent edges."""
    longest: int | None = Field(default=None, ge=16, le=8192)
    """Pixels of the longest side of a cut-out; larger ones are reduced."""

    def options(self) -> dict[str, Any]:
        """Fields of `CutoutOptions` that were set."""
        return {
            name: value for name in CutoutOptions.__dataclass_fields__ if (value := getattr(self, name)) is not None
        }


class GateSettings(Section):
    """When a mask is refused. Unset limits keep the default of the mask's source; `false` switches a check off."""

    least_area: Limit = None
    """Smallest share of the picture that the subject may cover; 0.005 for IS-Net."""
    most_area: Limit = None
    """Largest share of the picture that the subject may cover; 0.9 for IS-Net."""
    second_piece: Limit = None
    """Largest area of the second piece as a share of the largest; 0.2 for IS-Net."""
    border: Limit = None
    """Largest share of the picture's border that the subject may touch; 0.02 for IS-Net."""
    edge: Limit = None
    """Largest mean width of the soft edge as a share of the subject's edge length; 0.06 for IS-Net."""

    @field_validator("*")
    @classmethod
    def _in_range(cls, value: float | Literal[False] | None) -> float | Literal[False] | None:
        if value is not None and value is not False and not 0 <= value <= 1:
            raise ValueError("give a share from 0 to 1, or false to switch this check off")
        return value

    def limits(self) -> dict[str, float | None]:
        """Fields of `CutoutLimits` that were set; None switches a check off."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: None if value is False else value for name, value in given.items() if value is not None}


class BackgroundSettings(Section):
    """What the subjects stand in front of."""

    mode: Literal["photo", "blur", "noise", "plain"] = "noise"
    """`photo` and `blur` need `folder` or `picture`."""
    folder: Path | None = None
    """Folder of pictures of places."""
    picture: Path | None = None
    """A single picture of a place."""
    color: tuple[int, int, int] = (200, 200, 200)
    """RGB of `plain`, 0 to 255."""
    phrase: str | None = None
    """Words of captions for all places, such as `in a garden`; unset takes them from the name of the place's file."""

    @field_validator("color")
    @classmethod
    def _in_range(cls, color: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(0 <= value <= 255 for value in color):
            raise ValueError("RGB values are 0 to 255")
        return color

    @model_validator(mode="after")
    def _has_places(self) -> "BackgroundSettings":
        if self.folder and self.picture:
            raise ValueError("give either background.folder or background.picture, not both")
        if self.mode in ("photo", "blur") and not (self.folder or self.picture):
            raise ValueError(
                f"background.mode {self.mode!r} needs pictures of places: give background.folder or background.picture, "
                "or set the mode to noise or plain"
            )
        return self


class LayoutSettings(Section):
    """How subjects are laid out."""

    width: int = Field(default=768, ge=64, le=4096)
    """Of the canvas in pixels."""
    height: int = Field(default=768, ge=64, le=4096)
    """Of the canvas in pixels."""
    coverage: float = Field(default=0.22, gt=0, le=1)
    """Largest share of the canvas that the boxes of all subjects take."""
    max_occlusion: float = Field(default=0.15, ge=0, le=1)
    """Largest share of a subject that others may hide."""
    ground: tuple[float, float] = (0.62, 0.97)
    """Where feet may stand, from far to near, as shares of the canvas height from the top."""
    perspective: float = Field(default=0.3, ge=0, lt=1)
    """How much smaller subjects at the far side of the ground are."""
    flip: bool = True
    """Mirror some subjects at random."""
    turn: float = Field(default=0.0, ge=0, le=180)
    """Turn subjects at random up to this many degrees to either side."""
    tries: int = Field(default=16, ge=1, le=1000)
    """Seeds that are tried for a scene before all subjects are put in one row."""

    @field_validator("ground")
    @classmethod
    def _is_a_band(cls, ground: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= ground[0] <= ground[1] <= 1:
            raise ValueError("give two shares of the height from 0 to 1, the smaller first")
        return ground


class CaptionSettings(Section):
    """How scenes are put into words."""

    template: str = "a photo of {subjects} {place}"
    """Must contain `{subjects}`; `{place}` names the place."""
    relations: bool = False
    """Add who stands left of, in front of or on whom."""
    prefix: str = ""
    """Word before the whole caption."""
    repeat: int = Field(default=1, ge=1, le=3)
    """How often the list of subjects is said."""

    @model_validator(mode="after")
    def _is_a_template(self) -> "CaptionSettings":
        CaptionOptions(self.template)
        return self


class EvaluationSettings(Section):
    """Scenes of photographs that the training scenes never show, in the set's folder `eval`."""

    share: float = Field(default=0.0, ge=0, lt=1)
    """Share of each subject's photographs kept for evaluation; 0 makes no evaluation scenes."""
    count: int | None = Field(default=None, ge=1)
    """Evaluation scenes to make; unset makes the same share of `count`."""


class RepaintSettings(Section):
    """Who paints the places of the scenes anew, and what must come of it."""

    mode: Literal["none", "model", "comfy"] = "none"
    """`none` keeps the collages; `model` paints with a model folder, `comfy` with a running ComfyUI."""
    base: str = "demo"
    """Model folder in diffusers' layout, or demo."""
    url: str = ""
    """Address of a ComfyUI, such as http://127.0.0.1:8188."""
    workflow: Path | None = None
    """Workflow of that ComfyUI, saved with Export (API); its Load Image nodes are titled canvas and mask."""
    prompt: str = "a photo {place}"
    """Prompt of the place; the subjects' words are left out on purpose, since a model would paint them again."""
    negative: str = ""
    """What to keep out of the place."""
    strength: float = Field(default=0.6, gt=0, le=1)
    """How noisy the collage is made first, above 0 to 1; 1 forgets the place."""
    steps: int = Field(default=30, ge=1, le=1000)
    """Steps of a whole denoising; `strength` of them are taken."""
    guidance: float = Field(default=6.0, ge=1, le=30)
    """Classifier-free guidance, 1 (none) to 30."""
    feather: int = Field(default=4, ge=0, le=256)
    """Pixels inside a subject's edge over which it passes into the painted place."""
    lightness: float = Field(default=0.0, ge=0, le=1)
    """How far subjects follow a place that became lighter or darker; 0 keeps them exactly."""
    tries: int = Field(default=3, ge=1, le=100)
    """Seeds that are tried before a scene is given up."""
    least_change: float = Field(default=0.02, ge=0, le=1)
    """Least mean change of the place, 0 to 1; 0 switches this check off."""
    least_variation: float = Field(default=0.02, ge=0, le=1)
    """Least standard deviation of the place's colours, 0 to 1: below it the place is empty; 0 switches this check off."""
    most_seam: float = Field(default=4.0, ge=0)
    """Step of lightness across the subjects' edges at most, against the step that the collage has there."""
    most_extra: float = Field(default=0.1, ge=0)
    """Area of a thing outside the subjects at most, as a share of all subjects', where IS-Net looks for things."""
    device: str = "auto"
    """Device by torch's name such as cpu or cuda:1, or auto."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the model."""


class CutSettings(Section):
    """What a recipe says of cutting out, for commands that do nothing else."""

    kind: Literal["scenes"] = "scenes"
    """What the recipe is for."""
    cutout: CutoutSettings = CutoutSettings()
    gate: GateSettings = GateSettings()


class RepaintRecipe(Section):
    """What a recipe says of repainting, for the command that does nothing else."""

    kind: Literal["scenes"] = "scenes"
    """What the recipe is for."""
    repaint: RepaintSettings = RepaintSettings()


class SceneSettings(Section):
    """A whole recipe."""

    kind: Literal["scenes"] = "scenes"
    """What the recipe is for."""
    subjects: tuple[SubjectSettings, ...] = Field(default=(), validate_default=True)
    """At least one."""
    count: int = Field(default=40, ge=1, le=100_000)
    """Scenes to make."""
    per_scene: tuple[Annotated[int, Field(ge=1, le=64)], ...] | None = Field(default=None, min_length=1)
    """Numbers of subjects in a scene, taken in turn; unset is 2, or 1 where there is a single subject."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Number from which every random choice follows."""
    weights: Path | None = None
    """IS-Net weights; unset looks in models/bestiary/segmentation."""
    sources: Path | None = None
    """TOML file with licence and author of every picture."""
    require_licence: bool = False
    """Refuse pictures without a licence."""
    cutout: CutoutSettings = CutoutSettings()
    gate: GateSettings = GateSettings()
    background: BackgroundSettings = BackgroundSettings()
    layout: LayoutSettings = LayoutSettings()
    captions: CaptionSettings = CaptionSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    repaint: RepaintSettings = RepaintSettings()
    shadow: float = Field(default=0.5, ge=0, le=1)
    """Darkness of contact shadows; 0 is none."""
    lightness: float = Field(default=0.0, ge=0, le=1)
    """How far a subject's lightness is moved to that of its place; 0 leaves it."""
    inset: int = Field(default=5, ge=0, le=512)
    """Pixels of a subject's edge that a repaint of the background may change."""

    @field_validator("subjects")
    @classmethod
    def _can_stand_together(cls, subjects: tuple[SubjectSettings, ...]) -> tuple[SubjectSettings, ...]:
        names = [subject.name.casefold() for subject in subjects]
        if not names:
            raise ValueError("no subject: add a table [[subjects]] with name and folder")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two subjects are called {twice[0]!r}: give each a name of its own")
        if any(subject.support.startswith("on:") for subject in subjects):
            supporters([stand_in(subject) for subject in subjects])
        return subjects

    @model_validator(mode="after")
    def _has_enough_subjects(self) -> "SceneSettings":
        if max(self.numbers) > len(self.subjects):
            raise ValueError(
                f"per_scene asks for {max(self.numbers)} subjects in a scene, and the recipe has {len(self.subjects)}: "
                "add subjects or lower per_scene"
            )
        return self

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of subjects in a scene, taken in turn."""
        return self.per_scene or (min(2, len(self.subjects)),)


def settings_of_folder(folder: Path) -> list[dict[str, str]]:
    """Subjects of a folder of photographs: one for each subfolder with files, or the folder itself where it has none.

    Raises:
        BestiaryError: there is no such folder, or it holds nothing.
    """
    from ...scenes.import_gen4gen import object_words
    from ..learning.pictures.image_files import SUFFIXES

    def has_pictures(place: Path) -> bool:
        return any(path.suffix.lower() in SUFFIXES for path in place.rglob("*") if not path.name.startswith("."))

    if not folder.is_dir():
        raise BestiaryError(f"no folder {folder}: give a folder of photographs, one subfolder for each subject")
    places = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    places = [path for path in places if has_pictures(path)]
    loose = [path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]
    if places and loose:
        raise BestiaryError(
            f"{folder} holds subfolders and {len(loose)} pictures beside them ({min(loose)}): "
            "put the pictures of each subject into a subfolder named after it"
        )
    if not places and not loose:
        raise BestiaryError(
            f"{folder} holds no pictures: put the photographs of each subject into a subfolder, such as {folder / 'cat'}"
        )
    return [
        {"name": place.name, "folder": str(place), "words": object_words(place.name)}
        for place in places or [folder.resolve()]
    ]
