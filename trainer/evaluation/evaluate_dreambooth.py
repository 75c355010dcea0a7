"""Judge DreamBooth adapters: is the subject kept, is the prompt followed, is the class kept?

Ruiz et al., arXiv 2208.12242, section 4: DINO and CLIP-I, mean cosines of made and real pictures; CLIP-T, of pictures and prompts
without the identifier; PRES, DINO of made pictures of the class and real ones of the subject, lower is better; DIV, mean LPIPS between
pictures of one prompt. Columns whose weights are not here are left out and named. Subjects of the drawn world have a judge of their
own, which needs none.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import check_writable, replacing, write_text
from ..composing.picture_making import SamplingChoice
from ..learning.denoiser.if_folder import is_if_folder, read_if_folder
from ..learning.dreambooth.dreambooth_settings import PLACE
from ..learning.pictures.image_files import read_image
from ..model.backbones import DEMO, choose_device, choose_dtype, find_model, load_denoiser
from ..model.if_denoiser import load_if
from ..model.sampling import SamplingDenoiser
from .clip_judge import USUAL_CLIP, ClipJudge, find_clip
from .drawn_judge import DrawnJudge, color_changes, draw_subject, place_words, species_named
from .dreambooth_page import write_dreambooth_page
from .dreambooth_pictures import Subject, SubjectModel, as_images, load_subject, without_identifier, written_pictures
from .dreambooth_protocol import SubjectPlan, dataset_file, read_protocol, single_plan
from .dreambooth_scores import Figures, Judges, SubjectScores, mean_figures, score_subject
from .left_out import load_or_leave_out
from .likeness_judges import DINO, DinoJudge, LpipsJudge

ProgressReport = Callable[[int, int], None]
DRAWN_PICTURES = 5
UNTOUCHED = "untouched"
"""Folder of the pictures of the class that the bare model makes."""
CSV_COLUMNS: tuple[str, ...] = ("subject", "prompt", "pictures", "dino", "clip_i", "clip_t", "div")


class EvaluateDreamBoothSettings(BaseModel):
    """Settings of `bestiary evaluate dreambooth`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    adapters: Path
    """A LoRA of `bestiary train dreambooth`, or a folder that holds one for every subject: SUBJECT.safetensors or SUBJECT/*.safetensors."""
    images: Path | None = None
    """Real pictures: of the one subject, or google/dreambooth's folder, or a TOML file of subjects."""
    drawn: str | None = None
    """Species of the drawn world that the LoRA shows, judged by the drawn world's own judge."""
    prompts: tuple[str, ...] = ()
    """Prompts with `{}` for the identifier; none takes those of the dataset, or of the drawn world."""
    count: int = Field(default=4, ge=1, le=1000)
    """Pictures of each prompt."""
    class_count: int = Field(default=16, ge=2, le=10_000)
    """Pictures of the class prompt."""
    clip: str | None = None
    """Folder of a CLIP model, or its name in the Hugging Face cache; None takes the usual one if it is there."""
    dino: Path | None = None
    """Checkpoint of the DINO transformer; None takes timm's download if it is there."""
    dino_model: str = DINO
    """timm's name of that transformer."""
    lpips: Path | None = None
    """Folder with the two files of LPIPS; None takes those of installed libraries if they are there."""
    base: str | None = None
    """Base model folder or `demo`; None takes the one the LoRA was trained on."""
    text_encoder: Path | None = None
    """T5 encoder of DeepFloyd IF: a folder or one safetensors file; None takes the base model's own."""
    tokenizer: Path | None = None
    """Folder of T5's tokenizer for DeepFloyd IF; None looks in the base model's folder, then beside the encoder."""
    out: Path | None = None
    """Folder of the result; None makes one named after the LoRA."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the first picture of every prompt."""
    steps: int = Field(default=50, ge=1, le=1000)
    """Denoising steps."""
    guidance: float = Field(default=7.5, ge=0, le=100)
    """Classifier-free guidance."""
    size: int | None = Field(default=None, ge=64, le=2048, multiple_of=8)
    """Edge in pixels; None takes the model's own."""
    device: str = "auto"
    """Where to run."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision."""

    @model_validator(mode="after")
    def _something_real(self) -> "EvaluateDreamBoothSettings":
        if self.images is None and self.drawn is None:
            raise ValueError("give --images (real pictures of the subject, or a dataset), or --drawn with a species")
        return self


def evaluate_dreambooth(settings: EvaluateDreamBoothSettings, on_progress: ProgressReport | None = None) -> Path:
    """Make pictures of every subject and prompt, judge them, and write `evaluation.json`, `evaluation.csv` and a page, whose path is returned.

    Pictures that an earlier call with the same settings made in this folder are not made again.

    Raises:
        BestiaryError: files that do not belong together, weights that were named and are missing, or a folder of other settings.
    """
    # everything is found and checked before the first picture
    folder = settings.out or Path(f"{settings.adapters.name.split('.')[0]}-evaluation")
    check_writable(folder)
    subjects = find_subjects(settings.adapters)
    plans = _plans(settings, subjects, folder)
    judges, left_out = load_judges(settings)
    drawn = None if settings.drawn is None else DrawnJudge(species_named(settings.drawn))
    if not any((judges.dino, judges.clip, judges.lpips, drawn)):
        raise BestiaryError(f"nothing can be judged. {'; '.join(left_out.values())}")
    _check_plan(folder, settings, plans)
    base = settings.base or _base_of(subjects[plans[0].name])
    said = {
        prompt.replace(PLACE, subjects[plan.name].identifier)
        for plan in plans
        for prompt in (*plan.prompts, _class_prompt(subjects[plan.name], plan))
    }
    denoiser = _load_base(settings, base, sorted(said), folder)
    model = SubjectModel(denoiser, SamplingChoice(settings.steps, settings.guidance, settings.size))
    maker = _Maker(settings, model, folder / "pictures", _counter(settings, plans, on_progress))
    scores: list[SubjectScores] = []
    drawn_figures: Figures = {}
    for plan in plans:
        subject = subjects[plan.name]
        made, of_class = maker.pictures(subject, plan)
        real = [read_image(path) for path in plan.pictures]
        plain_prompts = [without_identifier(prompt) for prompt in plan.prompts]
        scores.append(score_subject(plan, plain_prompts, judges, real, made, of_class))
        if drawn is not None:
            bare = maker.of_class(Subject(UNTOUCHED, {}, {}, ""), _class_prompt(subject, plan))
            drawn_figures = _drawn_figures(drawn, settings, made, of_class, bare)
    record = {
        "made_by": "bestiary evaluate dreambooth",
        "settings": settings.model_dump(mode="json", exclude={"out"}),
        "base": base,
        "counts": {
            "subjects": len(plans),
            "prompts": [len(plan.prompts) for plan in plans],
            "pictures": sum(len(plan.prompts) for plan in plans) * settings.count,
        },
        "left_out": left_out,
        "mean": mean_figures(scores),
        "subjects": scores,
        **({"drawn": drawn_figures} if drawn_figures else {}),
    }
    write_text(folder / "evaluation.json", json.dumps(record, indent=1) + "\n")
    write_text(folder / "evaluation.csv", csv_text(scores))
    return write_dreambooth_page(folder, scores, mean_figures(scores), left_out, drawn_figures)


def _load_base(
    settings: EvaluateDreamBoothSettings, base: str, prompts: Sequence[str], folder: Path
) -> SamplingDenoiser:
    """The base model; DeepFloyd IF reads all prompts before it is loaded, and keeps their encodings in `folder`."""
    path = find_model(base)
    if not is_if_folder(path):
        return load_denoiser(base, device=settings.device, dtype=settings.dtype)
    if read_if_folder(path).stage != "I":
        raise BestiaryError(
            f"{path} is stage II of DeepFloyd IF, which only enlarges: give a folder of stage I, with a LoRA for it"
        )
    device = choose_device(settings.device)
    return load_if(
        path,
        [*prompts, ""],
        folder / "texts",
        device=device,
        dtype=choose_dtype(settings.dtype, device),
        text_encoder=settings.text_encoder,
        tokenizer=settings.tokenizer,
    )


@dataclass(frozen=True)
class _Maker:
    """Makes what is not there yet."""

    settings: EvaluateDreamBoothSettings
    model: SubjectModel
    folder: Path
    tell: Callable[[int], None]

    def pictures(self, subject: Subject, plan: SubjectPlan) -> tuple[list[list[Image.Image]], list[Image.Image]]:
        """Pictures of every prompt, and of the class."""
        settings, place = self.settings, self.folder / plan.name
        seeds = range(settings.seed, settings.seed + settings.count)
        made = [
            written_pictures(self.model, subject, prompt, seeds, place, f"{number:02d}", self.tell)
            for number, prompt in enumerate(plan.prompts)
        ]
        return made, self.of_class(replace(subject, name=plan.name), _class_prompt(subject, plan))

    def of_class(self, subject: Subject, prompt: str) -> list[Image.Image]:
        """Pictures of the class prompt with a subject's adapter."""
        seeds = range(self.settings.seed, self.settings.seed + self.settings.class_count)
        return written_pictures(self.model, subject, prompt, seeds, self.folder / subject.name, "class", self.tell)


def _counter(
    settings: EvaluateDreamBoothSettings, plans: Sequence[SubjectPlan], on_progress: ProgressReport | None
) -> Callable[[int], None]:
    """What is called with the number of new pictures."""
    total = sum(len(plan.prompts) * settings.count + settings.class_count for plan in plans)
    total += settings.class_count if settings.drawn else 0
    done = 0

    def tell(new: int) -> None:
        nonlocal done
        done += new
        if on_progress:
            on_progress(done, total)

    return tell


def find_subjects(path: Path) -> dict[str, Subject]:
    """The adapters of a file or a folder, by the name of their subject.

    Raises:
        BestiaryError: there are none, or a file is no LoRA of a DreamBooth training.
    """
    if path.is_file():
        return {path.stem: load_subject(path)}
    found = {}
    for entry in sorted(path.iterdir()):
        files = (
            [entry] if entry.suffix == ".safetensors" else sorted(entry.glob("*.safetensors")) if entry.is_dir() else []
        )
        files = [file for file in files if not file.stem.endswith("_identifier")]
        if len(files) > 1:
            raise BestiaryError(f"{entry} holds {len(files)} LoRA files: keep one, that of the subject {entry.name}")
        if files:
            found[entry.stem if entry.is_file() else entry.name] = load_subject(files[0])
    if not found:
        raise BestiaryError(
            f"{path} holds no LoRA: give SUBJECT.safetensors files, or run folders named after subjects"
        )
    return found


def load_judges(settings: EvaluateDreamBoothSettings) -> tuple[Judges, dict[str, str]]:
    """The judges whose weights are here, and what to do for those that are not, by column.

    Raises:
        BestiaryError: weights that were named are missing or broken.
    """
    device = choose_device(settings.device)
    left_out: dict[str, str] = {}

    def clip() -> ClipJudge:
        name = settings.clip or USUAL_CLIP
        find_clip(name)
        return ClipJudge.load(name, device)

    def dino() -> DinoJudge:
        return DinoJudge.load(settings.dino, settings.dino_model, device)

    def lpips() -> LpipsJudge:
        return LpipsJudge.load(settings.lpips)

    return Judges(
        load_or_leave_out("dino, pres", settings.dino, dino, left_out),
        load_or_leave_out("clip_i, clip_t", settings.clip, clip, left_out),
        load_or_leave_out("div", settings.lpips, lpips, left_out),
    ), left_out


def csv_text(scores: Sequence[SubjectScores]) -> str:
    """One row for every prompt, for the real pictures against each other, and for the class."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for one in scores:
        rows: list[Mapping[str, object]] = [*one["prompts"], {"prompt": "real", **one["real"]}]
        rows.append({"prompt": "class", "dino": one["pres"], "pictures": one["class_pictures"]})
        for row in rows:
            writer.writerow({key: row.get(key) for key in CSV_COLUMNS} | {"subject": one["subject"]})
    return text.getvalue()


def _plans(settings: EvaluateDreamBoothSettings, subjects: Mapping[str, Subject], folder: Path) -> list[SubjectPlan]:
    if settings.images is not None and (settings.images.suffix == ".toml" or dataset_file(settings.images)):
        plans = read_protocol(settings.images, settings.prompts)
        missing = [plan.name for plan in plans if plan.name not in subjects]
        if missing == [plan.name for plan in plans]:
            raise BestiaryError(
                f"{settings.adapters} has no LoRA of any subject of {settings.images}: name the files after subjects, such as "
                f"{missing[0]}.safetensors; found {', '.join(subjects)}"
            )
        return [plan for plan in plans if plan.name in subjects]
    if len(subjects) > 1:
        raise BestiaryError(
            f"{settings.adapters} holds {len(subjects)} LoRA files, but the pictures are of one subject: give one of them"
        )
    ((name, subject),) = subjects.items()
    noun = subject.class_noun
    if settings.drawn is None:
        assert settings.images is not None
        return [single_plan(name, noun, settings.images, settings.prompts)]
    pictures = settings.images or _drawings(settings, folder)
    return [single_plan(name, noun, pictures, settings.prompts or _drawn_prompts(settings, noun))]


def _drawings(settings: EvaluateDreamBoothSettings, folder: Path) -> Path:
    """Real pictures of a drawn species."""
    place = folder / "real"
    place.mkdir(parents=True, exist_ok=True)
    for number, drawing in enumerate(draw_subject(species_named(settings.drawn or ""), DRAWN_PICTURES, settings.seed)):
        with replacing(place / f"{number}.png") as temporary:
            Image.fromarray(drawing).save(temporary, "PNG")
    return place


def _drawn_prompts(settings: EvaluateDreamBoothSettings, noun: str) -> tuple[str, ...]:
    """Plain, two places and two colour changes, as captions of the drawn world say them."""
    thing = f"a photo of a {{}} {noun or 'creature'}"
    species = species_named(settings.drawn or "")
    changes = [change.words for change in color_changes(species, 2, settings.seed)]
    return (
        thing,
        *(f"{thing} {place_words(place)}" for place in _DRAWN_PLACES),
        *(f"{thing} {words}" for words in changes),
    )


_DRAWN_PLACES = ("forest", "snow")


def _drawn_figures(
    judge: DrawnJudge,
    settings: EvaluateDreamBoothSettings,
    by_prompt: Sequence[Sequence[Image.Image]],
    of_class: Sequence[Image.Image],
    untouched: Sequence[Image.Image],
) -> Figures:
    """What the drawn world's judge sees; prompts of the user's are judged for the subject alone."""
    images = [as_images(some) for some in by_prompt]
    figures: Figures = dict(judge.fidelity(torch.cat(images)))
    if not settings.prompts:
        changes = color_changes(judge.species, 2, settings.seed)
        places = [judge.place(some, place) for some, place in zip(images[1:3], _DRAWN_PLACES, strict=True)]
        changed = [judge.change(some, change) for some, change in zip(images[3:], changes, strict=True)]
        figures |= {"place": sum(places) / len(places), "change": sum(changed) / len(changed)}
    kind, bare = judge.diversity(as_images(of_class)), judge.diversity(as_images(untouched))
    return figures | {"class_diversity": kind, "class_diversity_of_untouched": kind / bare}


def _class_prompt(subject: Subject, plan: SubjectPlan) -> str:
    return str(subject.notes.get("class_prompt") or plan.class_prompt)


def _base_of(subject: Subject) -> str:
    """The base model a LoRA was trained on.

    Raises:
        BestiaryError: it was trained in a graph, whose model is not known here.
    """
    if subject.notes.get("backbone") == "bestiary-demo":
        return DEMO
    base = str(subject.notes.get("base", ""))
    if not base or base.startswith("MODEL"):
        raise BestiaryError(f"{subject.name} does not say its base model: give it with --base")
    return base


def _check_plan(folder: Path, settings: EvaluateDreamBoothSettings, plans: Sequence[SubjectPlan]) -> None:
    """Pictures of earlier settings must not be judged for these."""
    sampled = ("adapters", "count", "class_count", "base", "seed", "steps", "guidance", "size", "dtype")
    plan = settings.model_dump(mode="json", include=set(sampled)) | {one.name: one.prompts for one in plans}
    text = json.dumps(plan, indent=1, sort_keys=True) + "\n"
    path = folder / "plan.json"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise BestiaryError(f"{folder} holds pictures of other settings ({path.name}): choose another --out")
    write_text(path, text)
