"""Which attribute follows which reference, when spectra of four references are mixed by stage, on the drawn world.

For every seed: four references that share nothing (attribute_references.py) are drawn; a spectrum of ten stages and one global
textual inversion are trained on each, equally long and with equally many vectors; then pictures are made of
- each reference alone (what could be followed at all),
- the four mixed by attribute: layout of one, content of the second, material of the third, style of the fourth,
- the same stages filled with the global inversions, and all four global inversions in one plain prompt (to compare),
- a sweep: one reference before stage k, another from it on (which stage carries what in this base model).
Judged by the drawn world's classifiers and the references' truth. Pictures and figures go into a page.

    python benchmarks/spectrum_attributes.py --out results --seeds 0 1 2
    python benchmarks/spectrum_attributes.py --out results --seeds 0 1 2 --portion 4

The figures in benchmarks/README.md: `--vectors 12 --norm free --lr 3 --presets benchmarks/spectrum_presets.txt`.

Every training and every set of pictures is a unit of work; finished ones are never done again and `--portion N` does N more, so
a run may be cut anywhere.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import typer
from attribute_references import ATTRIBUTES, EXPECTED, ROLES, Reference, ReferenceJudge, draw_references, write_drawings
from bestiary.concepts.files.atomic_file import replacing, write_text
from bestiary.concepts.spectrum.attribute_presets import format_presets
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.spectrum_file import load_spectrum
from bestiary.concepts.spectrum.stage_algebra import merge_by_attribute
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.concepts.spectrum.staged_prompt import PromptSources
from bestiary.trainer.composing.picture_making import PictureOrder, SamplingChoice
from bestiary.trainer.composing.staged_pictures import make_staged_pictures, read_presets
from bestiary.trainer.learning.pictures.contact_sheet import contact_sheet
from bestiary.trainer.learning.run.progress_report import progress_callback
from bestiary.trainer.learning.spectrum.spectrum_settings import load_spectrum_recipe
from bestiary.trainer.model.backbones import load_denoiser
from bestiary.trainer.pages.pages import data_uri, figure, paragraph, section, table, write_page
from bestiary.trainer.training.tasks import resume_training
from bestiary.trainer.training.train_spectrum import train_spectrum
from PIL import Image

STAGES = 10
METHODS = {"spectrum": STAGES, "global": 1}
"""Method -> stages it learns; one stage is plain textual inversion."""
MIXES = ("spectrum", "global_staged", "global_prompt")
SWEPT = ("layout", "content")
"""Before and after the stage of the sweep."""


class PortionDone(Exception):
    """As many units as asked for have been done."""


class Work:
    """Units of work with a file each; those whose file exists are passed over."""

    def __init__(self, portion: int | None) -> None:
        self.left = portion

    def unit(self, path: Path, do: Callable[[], Any]) -> None:
        """Do one unit unless `path` exists, and write what it returns there as JSON."""
        if path.is_file():
            return
        if self.left == 0:
            raise PortionDone
        started = time.monotonic()
        result = do()
        write_text(
            path, json.dumps({"seconds": round(time.monotonic() - started, 1), "result": result}, indent=1) + "\n"
        )
        typer.echo(f"{path} ({time.monotonic() - started:.0f} s)")
        self.left = None if self.left is None else self.left - 1


def main() -> None:
    """Do what is left of every seed, then write the report of those that are whole."""
    options = _parse()
    work = Work(options.portion)
    try:
        for seed in options.seeds:
            run_seed(options, work, seed)
    except PortionDone:
        typer.echo("portion done; run again to go on")
    whole = [seed for seed in options.seeds if all(path.is_file() for path in _result_files(options.out, seed))]
    if whole:
        summary = summarise(options, whole)
        write_text(options.out / "spectrum_attributes.json", json.dumps(summary, indent=1) + "\n")
        typer.echo(f"open {write_report(options, summary)}")
        print_summary(summary)
        if options.picture:
            write_picture(options.out / f"seed{whole[-1]}", options.picture)


def run_seed(options: argparse.Namespace, work: Work, seed: int) -> None:
    """Train and judge one seed."""
    folder, references = options.out / f"seed{seed}", draw_references(seed)
    for number, (role, reference) in enumerate(references.items()):
        write_drawings(folder / "references" / role, reference, options.pictures, 100 * seed + number)
        for method, stages in METHODS.items():
            work.unit(
                folder / f"trained-{role}-{method}.json",
                lambda role=role, method=method, stages=stages: train_one(options, folder, role, method, stages, seed),
            )
    bench = Bench(options, folder, references, seed)
    for name, sources, prompt in bench.conditions():
        work.unit(folder / f"{name}.json", lambda name=name, s=sources, p=prompt: bench.judge(name, s(), p))


def train_one(options: argparse.Namespace, folder: Path, role: str, method: str, stages: int, seed: int) -> str:
    """Train one reference by one method, going on where an earlier try was cut; the path of its spectrum."""
    out = folder / "runs" / f"{role}-{method}"
    values = {
        "images.source": folder / "references" / role, "images.cache": folder / "latents", "base.path": options.base,
        "method.stages": stages, "method.vectors": options.vectors, "method.initial_words": "creature",
        "optimizer.steps": options.steps, "optimizer.batch_size": options.batch_size, "run.out": out, "run.name": role,
        "run.seed": seed, "run.preview_every": 0, "run.tensorboard": False, "run.save_every": 100, "run.device": options.device,
        "run.estimate_memory": False,
    }  # fmt: skip
    values |= {"method.norm": options.norm, "optimizer.vector_lr": options.lr}
    report = progress_callback(f"{role} {method}")
    if list((out / "state").glob("step-*.safetensors")):
        return str(resume_training(out, on_progress=report).path)
    return str(train_spectrum(load_spectrum_recipe(None, values), on_progress=report).path)


class Bench:
    """Makes and judges pictures of one seed; the model and the judges are loaded when first needed."""

    def __init__(
        self, options: argparse.Namespace, folder: Path, references: Mapping[str, Reference], seed: int
    ) -> None:
        self.options, self.folder, self.references, self.seed = options, folder, dict(references), seed
        self.presets = read_presets(options.presets)

    def conditions(self) -> Iterator[tuple[str, Callable[[], dict[str, PromptSpectrum]], str]]:
        """(name, spectra to be named, prompt) of every set of pictures."""
        for method in METHODS:
            for role in ROLES:
                yield f"alone-{role}-{method}", lambda r=role, m=method: {"x": self.spectrum(r, m)}, "a photo of a <x>"
        yield "mixed-spectrum", lambda: {"mix": self.mixed("spectrum")}, "a photo of a <mix>"
        yield "mixed-global_staged", lambda: {"mix": self.mixed("global")}, "a photo of a <mix>"
        words = " ".join(f"<{role}>" for role in ROLES)
        yield "mixed-global_prompt", lambda: {r: self.spectrum(r, "global") for r in ROLES}, f"a photo of a {words}"
        for stage in range(1, STAGES):
            prompt = f"a photo of a <before@1-{stage}><after@{stage + 1}-{STAGES}>"
            yield f"sweep-{stage}", self.swept, prompt

    def spectrum(self, role: str, method: str) -> PromptSpectrum:
        """The trained spectrum of a reference."""
        trained = json.loads((self.folder / f"trained-{role}-{method}.json").read_text(encoding="utf-8"))
        return load_spectrum(Path(trained["result"]))

    def mixed(self, method: str) -> PromptSpectrum:
        """All four mixed by attribute."""
        references = {role: self.spectrum(role, method) for role in ROLES}
        return merge_by_attribute(references, self.presets, bounds=StageBounds.equal(STAGES))

    def swept(self) -> dict[str, PromptSpectrum]:
        """The two references of the sweep."""
        return {name: self.spectrum(role, "spectrum") for name, role in zip(("before", "after"), SWEPT, strict=True)}

    def judge(self, name: str, spectra: dict[str, PromptSpectrum], prompt: str) -> dict[str, dict[str, float]]:
        """Make the pictures `(N, 3, 128, 128)` of one condition, keep some on a sheet, and judge them."""
        options = self.options
        if not hasattr(self, "_denoiser"):
            self._denoiser, self._judge = load_denoiser(options.base, device=options.device), ReferenceJudge()
        orders = [PictureOrder(prompt, 1000 * self.seed + number) for number in range(options.judged)]
        choice = SamplingChoice(options.sampling_steps, options.guidance)
        made = make_staged_pictures(self._denoiser, PromptSources(spectra), orders, choice)
        sheet = contact_sheet([p.to_image() for p in made[:8]], [""] * len(made[:8]), columns=8, tile=128)
        with replacing(self.folder / f"{name}.png") as temporary:
            sheet.save(temporary, "PNG")
        return self._judge.follow(torch.stack([picture.image for picture in made]), self.references)


def summarise(options: argparse.Namespace, seeds: list[int]) -> dict[str, Any]:
    """Means over seeds: for each mix attribute -> role -> share; own share of each reference alone; the sweep."""
    results = {seed: _read_seed(options.out, seed) for seed in seeds}

    def mean(name: str, attribute: str, role: str) -> float:
        return round(sum(result[name][attribute][role] for result in results.values()) / len(results), 4)

    mixes = {
        mix: {a: {role: mean(f"mixed-{mix}", a, role) for role in ROLES} for a in ATTRIBUTES} for mix in MIXES
    }  # fmt: skip
    alone = {
        method: {a: round(sum(mean(f"alone-{r}-{method}", a, r) for r in ROLES) / len(ROLES), 4) for a in ATTRIBUTES}
        for method in METHODS
    }
    sweep = {
        str(k): {a: {role: mean(f"sweep-{k}", a, role) for role in SWEPT} for a in ATTRIBUTES} for k in range(1, STAGES)
    }
    won = {
        mix: {
            a: sum(_leader(result[f"mixed-{mix}"][a]) == EXPECTED[a] for result in results.values()) for a in ATTRIBUTES
        }
        for mix in MIXES
    }
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name not in ("out", "picture")
    }
    return {
        "made_by": "benchmarks/spectrum_attributes.py",
        "settings": settings | {"seeds": seeds, "presets": format_presets(read_presets(options.presets))},
        "mixed": mixes,
        "seeds_in_which_the_expected_reference_leads": won,
        "alone": alone,
        "sweep": sweep,
    }


def _leader(shares: Mapping[str, float]) -> str | None:
    """The role with the largest share, None where two have it."""
    best = max(shares.values())
    leaders = [role for role, share in shares.items() if share == best]
    return leaders[0] if len(leaders) == 1 else None


def print_summary(summary: Mapping[str, Any]) -> None:
    """Which reference each attribute follows, by method."""
    seeds = len(summary["settings"]["seeds"])
    for mix, shares in summary["mixed"].items():
        typer.echo(f"\n{mix:<16}" + "".join(f"{role:>10}" for role in ROLES) + "   expected  leads in seeds")
        for attribute in ATTRIBUTES:
            row = "".join(f"{shares[attribute][role]:10.3f}" for role in ROLES)
            won = summary["seeds_in_which_the_expected_reference_leads"][mix][attribute]
            typer.echo(f"{attribute:<16}{row}   {EXPECTED[attribute]:<9} {won} of {seeds}")
    typer.echo("\nalone, own share" + "".join(f"{attribute:>10}" for attribute in ATTRIBUTES))
    for method, shares in summary["alone"].items():
        typer.echo(f"{method:<16}" + "".join(f"{shares[attribute]:10.3f}" for attribute in ATTRIBUTES))


def write_report(options: argparse.Namespace, summary: Mapping[str, Any]) -> Path:
    """A page with the tables and the pictures."""
    body = [
        paragraph(
            f"Seeds {summary['settings']['seeds']}, {options.steps} steps, {options.judged} pictures for each figure."
        )
    ]
    for mix, shares in summary["mixed"].items():
        won = summary["seeds_in_which_the_expected_reference_leads"][mix]
        rows = [[a, *(f"{shares[a][r]:.3f}" for r in ROLES), EXPECTED[a], won[a]] for a in ATTRIBUTES]
        content = [table(["attribute", *ROLES, "expected", "seeds led"], rows)]
        for seed in summary["settings"]["seeds"]:
            folder = options.out / f"seed{seed}"
            content.append(_shown(_reference_sheet(folder), f"references of seed {seed}: {', '.join(ROLES)}"))
            content.append(_shown(folder / f"mixed-{mix}.png", f"mixed, seed {seed}"))
        body.append(section(f"Mixed by stage: {mix}", *content))
    rows = [[method, *(f"{shares[a]:.3f}" for a in ATTRIBUTES)] for method, shares in summary["alone"].items()]
    body.append(section("Each reference alone: share that is its own", table(["method", *ATTRIBUTES], rows)))
    rows = [
        [k, *(f"{s[a][SWEPT[0]]:.2f} / {s[a][SWEPT[1]]:.2f}" for a in ATTRIBUTES)] for k, s in summary["sweep"].items()
    ]
    heading = f"{SWEPT[0]} up to stage k, {SWEPT[1]} after it: shares of the two"
    body.append(section(heading, table(["k", *ATTRIBUTES], rows)))
    return write_page(options.out / "index.html", "Which attribute follows which reference", "\n".join(body))


def _reference_sheet(folder: Path) -> Path:
    """One drawing of every reference side by side."""
    path = folder / "references.png"
    if not path.is_file():
        images = [Image.open(folder / "references" / role / "00.png").convert("RGB") for role in ROLES]
        with replacing(path) as temporary:
            contact_sheet(images, list(ROLES), columns=len(ROLES), tile=128).save(temporary, "PNG")
    return path


def write_picture(folder: Path, path: Path) -> None:
    """Four sheets of one seed below each other: references, one alone, the mixture, and the sweep in the middle."""
    names = ("alone-content-spectrum", "mixed-spectrum", "mixed-global_prompt", f"sweep-{STAGES // 2 - 1}")
    sheets = [Image.open(_reference_sheet(folder)).convert("RGB")]
    sheets += [Image.open(folder / f"{name}.png").convert("RGB") for name in names]
    width, height = max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)
    picture, top = Image.new("RGB", (width, height), sheets[0].getpixel((0, 0))), 0
    for sheet in sheets:
        picture.paste(sheet, (0, top))
        top += sheet.height
    with replacing(path) as temporary:
        picture.save(temporary, "WEBP", quality=80)


def _shown(path: Path, caption: str) -> str:
    return figure(data_uri(Image.open(path).convert("RGB")), caption)


def _result_names() -> list[str]:
    alone = [f"alone-{role}-{method}" for method in METHODS for role in ROLES]
    return [*alone, *(f"mixed-{mix}" for mix in MIXES), *(f"sweep-{k}" for k in range(1, STAGES))]


def _result_files(out: Path, seed: int) -> list[Path]:
    return [out / f"seed{seed}" / f"{name}.json" for name in _result_names()]


def _read_seed(out: Path, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8"))["result"] for path in _result_files(out, seed)}


def _parse(base: str = "demo") -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--portion", type=int, help="units of work to do now; left out: all")
    parser.add_argument("--base", default=base)
    parser.add_argument("--pictures", type=int, default=4, help="drawings of every reference")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--vectors", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1.0, help="learning rate of vectors, in spreads of word embeddings")
    parser.add_argument("--norm", choices=("keep", "clamp", "free"), default="keep")
    parser.add_argument("--judged", type=int, default=48, help="pictures of every figure")
    parser.add_argument("--sampling-steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--presets", type=Path, help="text file with lines such as `layout: 0%%-10%%`")
    parser.add_argument("--picture", type=Path, help="a WebP with the main pictures of the last seed")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
