"""Which attribute follows which reference on the miniature transformer, mixed by two presets: equal time and equal noise.

The presets of the UNet name shares of its schedule. "Equal time" takes the same shares of the transformer's flow, "equal noise" those at which
the flow has the UNet's signal-to-noise ratio. References, trainings, sweep and judges are those of `spectrum_attributes.py`.

    python benchmarks/dit_spectrum_attributes.py --out results --seeds 0 1 2 --vectors 12 --norm free --lr 3 \\
        --presets benchmarks/spectrum_presets.txt
    python benchmarks/dit_spectrum_attributes.py --out results --seeds 0 --base FOLDER --steps 2 --judged 2 --pictures 1

Every training and every set of pictures is a unit of work, as there.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import find_bestiary  # noqa: F401
import spectrum_attributes
import typer
from attribute_references import ATTRIBUTES, EXPECTED, ROLES
from bestiary.concepts.denoiser.process import DiscreteProcess, FlowProcess
from bestiary.concepts.files.atomic_file import write_text
from bestiary.concepts.spectrum.attribute_presets import Presets, format_presets
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.stage_algebra import merge_by_attribute
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.trainer.base_model.denoiser_shapes import SHAPES, build_scheduler
from bestiary.trainer.model.backbones import load_denoiser
from spectrum_attributes import STAGES, Bench, PortionDone, Work, run_seed

TIME, NOISE = "equal_time", "equal_noise"
MIXES = (TIME, NOISE)


def main() -> None:
    """Do what is left of every seed, then print and write the tables of those that are whole."""
    options = _parse()
    # the same units of work, with one mix for each preset in place of the three there
    spectrum_attributes.Bench = FlowBench
    work = Work(options.portion)
    try:
        for seed in options.seeds:
            run_seed(options, work, seed)
    except PortionDone:
        typer.echo("portion done; run again to go on")
    done = [seed for seed in options.seeds if all(path.is_file() for path in _files(options, seed))]
    if not done:
        return
    summary = summarise(options, done)
    write_text(options.out / "dit_spectrum_attributes.json", json.dumps(summary, indent=1) + "\n")
    print_summary(summary)


class FlowBench(Bench):
    """As there, with the mixes of both presets."""

    def conditions(self) -> Iterator[tuple[str, Callable[[], dict[str, PromptSpectrum]], str]]:
        """(name, spectra to be named, prompt) of every set of pictures."""
        for name, spectra, prompt in super().conditions():
            if not name.startswith("mixed-"):
                yield name, spectra, prompt
        for preset in MIXES:
            yield f"mixed-{preset}", lambda p=preset: {"mix": self.mixed_by(p)}, "a photo of a <mix>"

    def mixed_by(self, preset: str) -> PromptSpectrum:
        """All four mixed by attribute at the boundaries of one preset."""
        presets = self.presets if preset == TIME else at_equal_noise(self.presets, flow_of(self.options))
        references = {role: self.spectrum(role, "spectrum") for role in ROLES}
        return merge_by_attribute(references, presets, bounds=StageBounds.equal(STAGES))


def flow_of(options: argparse.Namespace) -> FlowProcess:
    """The flow of the base model."""
    process = load_denoiser(options.base, device="cpu", dtype="fp32").process
    return process if isinstance(process, FlowProcess) else SHAPES["dit"].process


def at_equal_noise(presets: Presets, flow: FlowProcess) -> dict[str, tuple[tuple[float, float], ...]]:
    """Shares of the UNet's schedule as shares of a flow at which noise is as strong, rounded to whole stages; the ends stay."""
    unet = DiscreteProcess(build_scheduler().alphas_cumprod, "epsilon")

    def moved(share: float) -> float:
        if share in (0, 1):
            return share
        return round(STAGES * (1 - flow.time_of_log_snr(unet.log_snr(1 - share)))) / STAGES

    return {name: tuple((moved(a), moved(b)) for a, b in ranges) for name, ranges in presets.items()}


def summarise(options: argparse.Namespace, seeds: list[int]) -> dict[str, Any]:
    """Means over seeds of the mixes, and of each reference alone."""
    results = {seed: {path.stem: _result(path) for path in _files(options, seed)} for seed in seeds}

    def mean(name: str, attribute: str, role: str) -> float:
        return round(sum(result[name][attribute][role] for result in results.values()) / len(seeds), 4)

    mixed = {mix: {a: {role: mean(f"mixed-{mix}", a, role) for role in ROLES} for a in ATTRIBUTES} for mix in MIXES}
    led = {
        mix: {
            a: sum(spectrum_attributes._leader(r[f"mixed-{mix}"][a]) == EXPECTED[a] for r in results.values())
            for a in ATTRIBUTES
        }
        for mix in MIXES
    }
    alone = {
        method: {a: round(sum(mean(f"alone-{r}-{method}", a, r) for r in ROLES) / len(ROLES), 4) for a in ATTRIBUTES}
        for method in spectrum_attributes.METHODS
    }
    swept = spectrum_attributes.SWEPT
    sweep = {str(k): {a: {r: mean(f"sweep-{k}", a, r) for r in swept} for a in ATTRIBUTES} for k in range(1, STAGES)}
    presets = spectrum_attributes.read_presets(options.presets)
    return {
        "made_by": "benchmarks/dit_spectrum_attributes.py",
        "settings": {name: str(value) for name, value in vars(options).items() if name != "out"},
        "seeds": seeds,
        "presets": {
            TIME: format_presets(presets),
            NOISE: format_presets(at_equal_noise(presets, flow_of(options))),
        },
        "mixed": mixed,
        "seeds_in_which_the_expected_reference_leads": led,
        "alone": alone,
        "sweep": sweep,
    }


def print_summary(summary: Mapping[str, Any]) -> None:
    """Which reference each attribute follows, by preset."""
    for mix, shares in summary["mixed"].items():
        typer.echo(f"\n{summary['presets'][mix]}\n{mix:<16}" + "".join(f"{role:>10}" for role in ROLES) + "   expected")
        for attribute in ATTRIBUTES:
            row = "".join(f"{shares[attribute][role]:10.3f}" for role in ROLES)
            led = summary["seeds_in_which_the_expected_reference_leads"][mix][attribute]
            typer.echo(f"{attribute:<16}{row}   {EXPECTED[attribute]:<9} {led} of {len(summary['seeds'])}")
    for method, shares in summary["alone"].items():
        typer.echo(f"alone, {method:<9}" + "".join(f" {a} {shares[a]:.3f}" for a in ATTRIBUTES))


def _files(options: argparse.Namespace, seed: int) -> list[Any]:
    names = [f"alone-{role}-{method}" for method in spectrum_attributes.METHODS for role in ROLES]
    names += [*(f"mixed-{mix}" for mix in MIXES), *(f"sweep-{k}" for k in range(1, STAGES))]
    return [options.out / f"seed{seed}" / f"{name}.json" for name in names]


def _result(path: Any) -> dict[str, dict[str, float]]:
    return json.loads(path.read_text(encoding="utf-8"))["result"]


def _parse() -> argparse.Namespace:
    return spectrum_attributes._parse(base="demo-dit")


if __name__ == "__main__":
    main()
