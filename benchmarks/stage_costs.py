"""P7: what disjoint stages cost beside one prompt, counted over every sampler, scheduler and number of steps of ComfyUI.

ComfyUI's own code samples with stages as ranges of a conditioning. In place of a network stands a module that notes what each
evaluation is given and answers at once. One prompt costs one evaluation of two rows (positive, negative) whenever a sampler asks
for a prediction, which is checked with one prompt for every sampler and scheduler; with stages each such request must cost the
same, and tell exactly one stage. Prints one JSON object: what cost more or less, what was told no stage or several, what was
told another stage than its timestep's, and schedules that are no numbers in ComfyUI itself.

    python benchmarks/stage_costs.py [--stages 10] [--steps 50] [--samplers euler heun] [--processes 2] [--out counts.json]

With `--out` every finished sampler is kept there and not counted again. Letters: B rows of an evaluation, T tokens, E their width.
"""

import argparse
import collections
import json
import time
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import torch
import typer
from bench_attention_capture import import_comfyui
from bestiary.concepts.files.atomic_file import write_text
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from torch import Tensor, nn

NEGATIVE = -1.0
GUIDANCE = 3.0
Evaluation = tuple[float, tuple[float, ...]]
"""Timestep, and what each row was told."""


@dataclass
class Tally:
    """What was counted over many combinations."""

    combinations: int = 0
    evaluations: int = 0
    rows: int = 0
    costs_differ: list[str] = field(default_factory=list)
    """Combinations that cost more or less with stages than with one prompt."""
    not_one_stage: list[str] = field(default_factory=list)
    """Combinations with an evaluation that no stage, or more than one, was told to."""
    other_stage: dict[str, int] = field(default_factory=dict)
    """Timestep -> evaluations that were told the stage beside the timestep's own."""
    no_schedule: list[str] = field(default_factory=list)
    """Combinations for which ComfyUI itself gives no numbers as noise levels."""

    def add(self, other: "Tally") -> None:
        """Take in what was counted elsewhere."""
        for name, value in vars(other).items():
            if isinstance(value, dict):
                for timestep, count in value.items():
                    self.other_stage[timestep] = self.other_stage.get(timestep, 0) + count
            else:
                setattr(self, name, getattr(self, name) + value)


class NotingNetwork(nn.Module):
    """Stands in for the network of a model: notes its evaluations, request by request."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.requests: list[list[Evaluation]] = []
        """The evaluations that each request of a sampler led to."""

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, **_: object) -> Tensor:
        """Half of `x` `(B, C, H, W)`, whatever the prompt `(B, T, E)` says."""
        self.requests[-1].append((float(timesteps[0]), tuple(context[:, 0, 0].tolist())))
        return x * 0.5

    def asked(self, predict: Callable[..., Tensor], *arguments: object, **options: object) -> Tensor:
        """Stands around ComfyUI's prediction of noise."""
        self.requests.append([])
        return predict(*arguments, **options)

    def taken(self) -> list[list[Evaluation]]:
        """What was noted since the last call."""
        requests, self.requests = self.requests, []
        return requests


@cache
def noting_model() -> object:
    """A MODEL with the noise levels of Stable Diffusion and no network to wait for."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15({"disable_unet_model_creation": True, "in_channels": 4})
    model = comfy.model_base.BaseModel(config)
    model.diffusion_model = network = NotingNetwork()
    device = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
    patcher.add_wrapper(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, network.asked)
    return patcher


def hasten_comfyui() -> None:
    """Spares time, changes no result: a record type is not made anew for every entry, nor free memory looked up."""
    import comfy.samplers

    made = cache(collections.namedtuple)
    same_type = {"namedtuple": lambda name, fields: made(name, tuple(fields))}
    comfy.samplers.collections = types.SimpleNamespace(**{**vars(collections), **same_type})
    comfy.samplers.model_management.get_free_memory = lambda *_, **__: 1 << 40


def numbered_stages(bounds: StageBounds) -> list:
    """A conditioning whose entries `(1, 1, 1)` say the number of their stage."""
    from bestiary.nodes.spectrum.stage_ranges import stage_percents, staged_entries

    contents = [(torch.full((1, 1, 1), float(stage)), {}) for stage in range(bounds.stages)]
    return staged_entries(contents, stage_percents(bounds))


def sampled(walk: tuple[str, str, int], positive: list) -> list[list[Evaluation]]:
    """What the network was given, by request, while ComfyUI sampled with (sampler, scheduler, steps)."""
    import comfy.samplers

    model, (sampler, scheduler, steps) = noting_model(), walk
    network = model.model.diffusion_model
    network.taken()
    noise = torch.randn(1, 4, 1, 1, generator=torch.Generator().manual_seed(5))
    negative = [[torch.full((1, 1, 1), NEGATIVE), {}]]
    walker = comfy.samplers.KSampler(model, steps, torch.device("cpu"), sampler, scheduler)
    walker.sample(noise, positive, negative, GUIDANCE, latent_image=torch.zeros_like(noise), seed=1, disable_pbar=True)
    return network.taken()


def count_sampler(sampler: str, stages: int, most_steps: int) -> Tally:
    """Counts of a sampler with every scheduler and 1 to `most_steps` steps."""
    import comfy.samplers

    bounds, tally = StageBounds.equal(stages), Tally()
    one, staged = [[torch.zeros(1, 1, 1), {}]], numbered_stages(bounds)
    sampling = noting_model().get_model_object("model_sampling")
    for number, scheduler in enumerate(comfy.samplers.KSampler.SCHEDULERS):
        # with one prompt at one number of steps, another one for every scheduler
        checked = max(2, (7 * number + len(sampler)) % most_steps)
        for steps in range(1, most_steps + 1):
            walk = (sampler, scheduler, steps)
            if not comfy.samplers.calculate_sigmas(sampling, scheduler, steps).isfinite().all():
                tally.no_schedule.append(" ".join(map(str, walk)))
                continue
            requests = sampled(walk, staged)
            plain = [[len(said) for _, said in calls] for calls in sampled(walk, one)] if steps == checked else None
            judge(tally, walk, bounds, requests, plain)
    return tally


def judge(
    tally: Tally,
    walk: tuple[str, str, int],
    bounds: StageBounds,
    requests: list[list[Evaluation]],
    plain: list[list[int]] | None,
) -> None:
    """Take a sampling into the counts; `plain` is the rows of every evaluation, by request, with one prompt."""
    name = " ".join(map(str, walk))
    rows = [[len(said) for _, said in calls] for calls in requests]
    told = [
        (timestep, [value for value in said if value != NEGATIVE]) for calls in requests for timestep, said in calls
    ]
    tally.combinations += 1
    tally.evaluations += len(told)
    tally.rows += sum(map(sum, rows))
    if any(calls != [2] for calls in rows) or plain not in (None, rows):
        tally.costs_differ.append(name)
    if any(len(values) != 1 for _, values in told):
        tally.not_one_stage.append(name)
    own = bounds.stage_of(torch.tensor([timestep for timestep, _ in told]).long()).tolist()
    for (timestep, values), stage in zip(told, own, strict=True):
        if values[:1] != [stage]:
            tally.other_stage[str(int(timestep))] = tally.other_stage.get(str(int(timestep)), 0) + 1


def _count_one(arguments: tuple[str, int, int]) -> Tally:
    """Counts of one sampler in a process of its own."""
    import_comfyui()
    hasten_comfyui()
    torch.set_num_threads(1)
    return count_sampler(*arguments)


def tallies(samplers: Sequence[str], stages: int, most_steps: int, processes: int) -> Iterator[Tally]:
    """Counts of one sampler after the other."""
    work = [(sampler, stages, most_steps) for sampler in samplers]
    if processes == 1:
        yield from map(_count_one, work)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(_count_one, work)


def read_kept(path: Path | None) -> dict[str, dict]:
    """Counts of finished samplers by name, from a run that was cut off or done."""
    return json.loads(path.read_text()) if path and path.is_file() else {}


def main() -> None:
    """Print one JSON object; exit code 1 where stages cost anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=10, help="disjoint stages, 1 to 250")
    parser.add_argument("--steps", type=int, default=50, help="sample with 1 to so many steps")
    parser.add_argument("--samplers", nargs="*", help="these alone; else all of ComfyUI's")
    parser.add_argument("--processes", type=int, default=1, help="processes that share the samplers")
    parser.add_argument("--out", type=Path, help="file that keeps the counts of every finished sampler")
    options = parser.parse_args()
    import_comfyui()
    from comfy.samplers import KSampler

    began, samplers, kept = time.monotonic(), options.samplers or KSampler.SAMPLERS, read_kept(options.out)
    left = [name for name in samplers if name not in kept]
    for name, tally in zip(left, tallies(left, options.stages, options.steps, options.processes), strict=True):
        kept[name] = asdict(tally)
        if options.out:
            write_text(options.out, json.dumps(kept))
    total = Tally()
    for name in samplers:
        total.add(Tally(**kept[name]))
    record = {
        "stages": options.stages,
        "samplers": len(samplers),
        "schedulers": len(KSampler.SCHEDULERS),
        **vars(total),
    }
    # the same for every sampler
    record["no_schedule"] = sorted({" ".join(name.split()[1:]) for name in total.no_schedule})
    typer.echo(json.dumps(record | {"seconds": round(time.monotonic() - began)}, indent=1))
    raise SystemExit(bool(total.costs_differ or total.not_one_stage))


if __name__ == "__main__":
    main()
