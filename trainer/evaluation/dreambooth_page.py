"""The page of a DreamBooth evaluation: real and made pictures first, then the figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from ..pages import pages
from .dreambooth_scores import COLUMNS, Figures, SubjectScores

_MEANING = (
    "DINO and CLIP-I: mean cosine of made and real pictures of the subject. CLIP-T: of made pictures and the prompt without the "
    "identifier. PRES: DINO of pictures of the class and real pictures of the subject; lower is better. DIV: mean LPIPS between pictures "
    "of one prompt; higher is better. The rows of real pictures compare these with each other."
)
_DRAWN_MEANING = (
    "The drawn world's judge. Shares of parts whose colour, pattern and shape are the subject's; of pictures that show the place, and the "
    "changed colour, that the prompt names; and the mean distance between pictures of the class, also as a share of the untouched model's."
)
_SHOWN = 4
_PROMPTS_SHOWN = 8


def write_dreambooth_page(
    folder: Path, scores: Sequence[SubjectScores], mean: Figures, left_out: Mapping[str, str], drawn: Figures
) -> Path:
    """Write `index.html` beside the pictures and return its path."""
    body = [pages.paragraph("Pictures of subjects that were learned from a few photographs.", "lead")]
    if drawn:
        body.append(pages.section("The drawn world", pages.paragraph(_DRAWN_MEANING), _figures(drawn)))
    columns = [name for name in (*COLUMNS, "pres") if name in mean]
    if columns:
        body.append(pages.section("Figures", pages.paragraph(_MEANING), _table(scores, mean, columns)))
    for names, remedy in left_out.items():
        body.append(pages.paragraph(f"Not judged: {names}. {remedy}", "note"))
    body += [pages.section(one["subject"], *_subject(folder, one)) for one in scores]
    return pages.write_page(folder / "index.html", "Evaluation of subjects", "".join(body))


def _table(scores: Sequence[SubjectScores], mean: Figures, columns: Sequence[str]) -> str:
    rows: list[list[object]] = []
    for one in scores:
        values = {**one["mean"], "pres": one["pres"]}
        rows.append([one["subject"], *(values.get(name) for name in columns)])
        real = one["real"]
        against = {"dino": real["dino"], "clip_i": real["clip_i"]}
        rows.append([f"{one['subject']}, real pictures", *(against.get(name) for name in columns)])
    if len(scores) > 1:
        rows.append(["all", *(mean.get(name) for name in columns)])
    return pages.table(["subject", *(name.upper().replace("_", "-") for name in columns)], rows)


def _figures(drawn: Figures) -> str:
    return pages.table([name.replace("_", " ") for name in drawn], [list(drawn.values())])


def _subject(folder: Path, one: SubjectScores) -> list[str]:
    """The first pictures of the first prompts, and of the class."""
    place, parts = folder / "pictures" / one["subject"], []
    for number, row in enumerate(one["prompts"][:_PROMPTS_SHOWN]):
        parts.append(_strip(sorted(place.glob(f"{number:02d}-*.png"))[:_SHOWN], row["prompt"]))
    parts.append(_strip(sorted(place.glob("class-*.png"))[: 2 * _SHOWN], "the class"))
    return parts


def _strip(paths: Sequence[Path], caption: str) -> str:
    figures = [pages.figure(pages.data_uri(Image.open(path).convert("RGB")), "") for path in paths]
    return pages.paragraph(caption) + pages.strip(figures, 2 * _SHOWN)
