"""Judge pictures of several subjects, however they were made: is everybody there, like themselves, and is the prompt followed?

CP and TI are our reading of CP-CLIP and TI-CLIP (Gen4Gen, arXiv 2402.15504). Columns whose weights are not here are left out and named.
Creatures of the drawn world have a judge of their own, which needs none.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...concepts.files.atomic_file import check_writable, write_text
from ..learning.pictures.image_files import read_image
from .scene_cases import known_subjects, read_cases
from .scene_figures import SceneFigures, score_picture
from .scene_judges import load_scene_judges
from .scenes_page import write_scenes_page

ProgressReport = Callable[[int, int], None]


class EvaluateScenesSettings(BaseModel):
    """What `bestiary evaluate scenes` is given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pictures: Path
    """Folder of pictures with their prompts."""
    subjects: Path | None = None
    """Folder with a subfolder of pictures of each subject alone."""
    drawn: tuple[str, ...] = ()
    """Species of the drawn world that are subjects; then the drawn world's own judge judges."""
    words: Mapping[str, str] = Field(default_factory=dict)
    """Class of a subject by its name, as a detector is asked for it."""
    clip: str | None = None
    """Folder of a CLIP model, or its name in the Hugging Face cache; None takes the usual one if it is there."""
    detector: str | None = None
    """The same of OWLv2."""
    out: Path | None = None
    """Folder of the result; None makes one beside the pictures."""
    device: str = "auto"
    """Where to run."""

    @model_validator(mode="after")
    def _somebody(self) -> "EvaluateScenesSettings":
        if self.subjects is None and not self.drawn:
            raise ValueError(
                "give --subjects (a folder with a subfolder of pictures for each), or --drawn with species"
            )
        return self


def evaluate_scenes(
    settings: EvaluateScenesSettings, on_progress: ProgressReport | None = None
) -> tuple[Path, SceneFigures]:
    """Judge every picture, write `evaluation.json`, `evaluation.csv` and a page; returns the page's path and the figures.

    Raises:
        BestiaryError: no pictures, no subjects, or weights that were named and are missing.
    """
    pictures = settings.pictures.resolve()
    folder = settings.out or pictures.with_name(f"{pictures.name}-evaluation")
    check_writable(folder)
    subjects = known_subjects(settings.subjects, settings.drawn, settings.words)
    cases = read_cases(pictures, subjects)
    judges = load_scene_judges(settings.clip, settings.detector, drawn=bool(settings.drawn), device=settings.device)
    rows = []
    for number, case in enumerate(cases, start=1):
        name = case.path.relative_to(pictures).as_posix()
        rows.append(score_picture(judges, read_image(case.path), name, case.prompt, case.subjects))
        if on_progress:
            on_progress(number, len(cases))
    figures = SceneFigures(rows, judges.models, judges.left_out)
    asked = {"made_by": "bestiary evaluate scenes", "settings": settings.model_dump(mode="json", exclude={"out"})}
    write_text(folder / "evaluation.json", figures.to_json(asked))
    write_text(folder / "evaluation.csv", figures.to_csv())
    return write_scenes_page(folder, pictures, figures), figures
