"""`bestiary scenes score` and `bestiary evaluate scenes`: do pictures of several subjects show all of them, as they are?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..learning.run.progress_report import progress_callback
from .options import DeviceOption, OutOption, ProgressOption, assignments, checked, existing, page_folder
from .scene_options import scenes
from .use import evaluate

if TYPE_CHECKING:
    from ..evaluation.scene_figures import MeanScores, SceneFigures

ClipOption = Annotated[
    str | None, typer.Option("--clip", metavar="MODEL", help="CLIP: a folder, or a name of the Hugging Face cache.")
]
DetectorOption = Annotated[
    str | None,
    typer.Option("--detector", metavar="MODEL", help="OWLv2: a folder, or a name of the Hugging Face cache."),
]


@scenes.command("score")
def score(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Set that `bestiary scenes build` wrote.")],
    clip: ClipOption = None,
    detector: DetectorOption = None,
    drawn: Annotated[
        bool, typer.Option("--drawn", help="The subjects are creatures of the drawn world; needs no weights.")
    ] = False,
    device: DeviceOption = "auto",
    progress: ProgressOption = "line",
) -> None:
    """Score the pictures of a set: are all subjects found and like themselves, and does the caption fit?

    CP and TI are this program's reading of Gen4Gen's CP-CLIP and TI-CLIP. The scores are written into the records of the set, its page
    and scores.json. Nothing is downloaded: scores whose weights are missing are left out.
    """
    from ...scenes.set_files import EVALUATION, RECORDS
    from ..evaluation.scene_judges import load_scene_judges
    from ..scenes.score_set import score_set
    from ..scenes.set_page import write_set_page

    existing(folder, "folder")
    judges = load_scene_judges(clip, detector, drawn=drawn, device=device)
    # the evaluation first: the card of the whole set names it
    for place in (folder / EVALUATION, folder):
        if place == folder or (place / RECORDS).is_dir():
            figures = score_set(place, judges, title=folder.name, on_scene=progress_callback("score", progress))
            _tell(figures, str(place))
    for columns, remedy in judges.left_out.items():
        typer.echo(f"bestiary: not scored: {columns}. {remedy}", err=True)
    typer.echo(f"open {write_set_page(folder)}")


@evaluate.command("scenes")
def evaluate_scenes(
    pictures: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Pictures with their prompts: from `bestiary compose`, with .txt files, or listed in metadata.jsonl.",
        ),
    ],
    subjects: Annotated[
        Path | None,
        typer.Option("--subjects", help="Folder with a subfolder of pictures for each subject, named after it."),
    ] = None,
    drawn: Annotated[
        list[str] | None,
        typer.Option(
            "--drawn",
            metavar="SPECIES",
            help="Species of the drawn world, whose own judge needs no weights; can be given several times.",
        ),
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Option("--words", metavar="NAME=WORDS", help="Class of a subject, for the detector, such as rex=dog."),
    ] = None,
    clip: ClipOption = None,
    detector: DetectorOption = None,
    out: OutOption = None,
    device: DeviceOption = "auto",
    progress: ProgressOption = "line",
) -> None:
    """Evaluate pictures of several subjects; writes JSON, CSV and an HTML page.

    Prints CP, TI, the share of pictures with all subjects, and extra subjects, for each group of subjects. CP and TI are this program's
    reading of Gen4Gen's CP-CLIP and TI-CLIP. Nothing is downloaded: columns whose weights are missing are left out.
    """
    from ..evaluation.evaluate_scenes import EvaluateScenesSettings
    from ..evaluation.evaluate_scenes import evaluate_scenes as run_evaluation

    out = out and page_folder(out, out, ("evaluation.json",))
    values = {"pictures": existing(pictures, "folder"), "subjects": subjects and existing(subjects, "folder")}
    values |= {"drawn": tuple(drawn or ()), "words": assignments(words, "--words"), "clip": clip}
    values |= {"detector": detector, "out": out, "device": device}
    page, figures = run_evaluation(checked(EvaluateScenesSettings, values), progress_callback("evaluate", progress))
    for name, one in figures.pairs.items():
        typer.echo(f"{name}: {_told(one)}")
    _tell(figures, "all")
    for columns, remedy in figures.left_out.items():
        typer.echo(f"bestiary: not judged: {columns}. {remedy}", err=True)
    typer.echo(f"open {page}")


def _tell(figures: "SceneFigures", called: str) -> None:
    typer.echo(f"{called}: {_told(figures.mean)}")


def _told(scores: "MeanScores") -> str:
    """`12 pictures, CP 0.731, TI 0.290, all subjects in 0.83, 0.08 extra`; what nobody judged is left out."""
    words = [f"{scores['pictures']} pictures"]
    for value, text in (
        (scores["cp"], "CP {:.3f}"),
        (scores["match"], "match {:.3f}"),
        (scores["ti"], "TI {:.3f}"),
        (scores["complete"], "all subjects in {:.0%}"),
        (scores["extra_subjects"], "{:.2f} extra subjects per picture"),
    ):
        words += [] if value is None else [text.format(value)]
    return ", ".join(words)
