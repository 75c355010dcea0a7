"""Columns of joint attention: every form against plain fused attention and against the explicit softmax, paired in one process.

    python benchmarks/bench_joint_columns.py [--shape flux|sd3|both] [--pairs 5] [--threads 1]
    python benchmarks/bench_joint_columns.py --step [--pairs 5] [--threads 1]

Times are process CPU seconds of one attention call in float32, sampling (no gradient) and training (forward and backward), at a quarter of
the picture's edge: 6 heads, 1,024 image places. Every round times all variants in turn, every other round backwards; a ratio is the median of
those to the plain call of the same round, and the second plain call is the noise floor. Bytes are the peak of all new tensors in bf16 at the
model's full shape for 1,024 pixels, on fake tensors. Goals: training text shares at most 1.25 times plain (flux) and 1.6 times (sd3), their
peak at most 1/30 of explicit (flux), all columns within 1e-6 of the softmax, sampling bit-identical.

`--step` times a whole step instead, forward and backward to a learned vector and a LoRA, without maps and with those of one block in twelve,
which is two of the 24 of Stable Diffusion 3.5 Medium: its width, twelve blocks, 1,024 image places and 154 of text. Goal: at most 1.03 times.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

import find_bestiary  # noqa: F401  # isort: skip

from bestiary.concepts.denoiser.backbone import get_backbone
from bestiary.concepts.denoiser.denoiser import AttentionRequest, Conditioning
from bestiary.concepts.denoiser.joint_columns import JointKeys, attend_jointly
from bestiary.concepts.denoiser.low_rank import LoraSpec
from bestiary.concepts.denoiser.process import FlowProcess
from bestiary.trainer.model.sd3_denoiser import SD3Network
from diffusers import SD3Transformer2DModel
from memory_meter import MemoryMeter
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

MIB = 2**20
Attention = Callable[[Tensor, Tensor, Tensor, Tensor, JointKeys], tuple[Tensor, Tensor]]
"""From q, k, v `(B, H, T, d)` and columns `(B, P, K)` to output `(B, H, T, d)` and columns `(B, N, P)`."""


@dataclass(frozen=True)
class Shape:
    """One attention layer."""

    heads: int
    image: int
    text: int
    width: int
    parts: int
    columns: int
    """Columns of a token: two in SD3, one in Flux."""
    text_first: bool


TIMED = {
    "flux": Shape(6, 1024, 128, 128, 8, 1, True),
    "sd3": Shape(6, 1024, 154, 64, 16, 2, False),
}
FULL = {
    "flux": Shape(24, 4096, 512, 128, 8, 1, True),
    "sd3": Shape(24, 4096, 154, 64, 16, 2, False),
}
GOALS = {"flux": 1.25, "sd3": 1.6}
GOAL_BYTES, GOAL_ERROR, GOAL_STEP = 1 / 30, 1e-6, 1.03


def plain(q: Tensor, k: Tensor, v: Tensor, columns: Tensor, keys: JointKeys) -> tuple[Tensor, Tensor]:
    """No columns at all: `(B, H, T, d)` and nothing."""
    return functional.scaled_dot_product_attention(q, k, v), q.new_zeros(1)


def explicit(form: str) -> Attention:
    """Every probability written out, in the asked form; columns `(B, N, P)`."""

    def attention(q: Tensor, k: Tensor, v: Tensor, columns: Tensor, keys: JointKeys) -> tuple[Tensor, Tensor]:
        total = k.shape[2]
        probabilities = ((q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5).softmax(-1)  # (B, H, T, T)
        text = probabilities[:, :, keys.image_rows(total), keys.text_rows(total)]  # (B, H, N, L)
        if form == "text":
            text = text / text.sum(-1, keepdim=True)
        mean = text.mean(1)  # (B, N, L)
        index = columns.flatten(1).unsqueeze(1).expand(-1, mean.shape[1], -1)  # (B, N, P * K)
        picked = mean.gather(2, index).unflatten(2, columns.shape[1:]).sum(-1)  # (B, N, P)
        return probabilities.to(v.dtype) @ v, picked

    return attention


def ours(form: str, method: str) -> Attention:
    """One of our forms; `(B, H, T, d)` and `(B, N, P)`."""

    def attention(q: Tensor, k: Tensor, v: Tensor, columns: Tensor, keys: JointKeys) -> tuple[Tensor, Tensor]:
        return attend_jointly(q, k, v, columns, keys, form=form, method=method)

    return attention


SAMPLING: Mapping[str, Attention] = {
    "plain": plain,
    "plain again": plain,
    "explicit": explicit("text"),
    "text, scores beside": ours("text", "lse"),
    "joint, call beside": ours("joint", "lse"),
    "text, one call": ours("text", "one_hot"),
    "joint, one call": ours("joint", "one_hot"),
    "output": ours("output", "lse"),
}
TRAINING: Mapping[str, Attention] = {
    name: own for name, own in SAMPLING.items() if name not in ("text, scores beside", "joint, call beside")
}


def inputs(shape: Shape, dtype: torch.dtype, *, gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, JointKeys]:
    """Random q, k, v `(1, H, T, d)`, columns `(1, P, K)`, and where the text stands."""
    size = (1, shape.heads, shape.image + shape.text, shape.width)
    q, k, v = (torch.randn(size, dtype=dtype, requires_grad=gradient) for _ in range(3))
    columns = torch.arange(shape.parts * shape.columns).view(1, shape.parts, shape.columns)
    return q, k, v, columns, JointKeys(shape.text, shape.text_first)


def call(attention: Attention, shape: Shape, dtype: torch.dtype, *, training: bool) -> Callable[[], None]:
    """One evaluation, with the backward pass of output and columns in training."""
    torch.manual_seed(0)
    given = inputs(shape, dtype, gradient=training)

    def run() -> None:
        if not training:
            with torch.no_grad():
                attention(*given)
            return
        output, columns = attention(*given)
        (output.sum() + columns.sum()).backward()
        for tensor in given[:3]:
            tensor.grad = None

    return run


def times(
    variants: Mapping[str, Attention], shape: Shape, pairs: int, *, training: bool
) -> dict[str, dict[str, float]]:
    """Median seconds, and the median ratio to the plain call of the same round."""
    runs = {name: call(own, shape, torch.float32, training=training) for name, own in variants.items()}
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(pairs):
        for name in runs if turn % 2 else reversed(list(runs)):
            started = time.process_time()
            runs[name]()
            seconds[name].append(time.process_time() - started)
    return {
        name: {
            "seconds": round(statistics.median(own), 4),
            "ratio": round(statistics.median(a / b for a, b in zip(own, seconds["plain"], strict=True)), 3),
        }
        for name, own in seconds.items()
    }


def peak(attention: Attention, shape: Shape, *, training: bool) -> float:
    """MiB of all new tensors that live at once, q, k and v not counted."""
    with FakeTensorMode():
        q, k, v, columns, keys = inputs(shape, torch.bfloat16, gradient=training)
        meter = MemoryMeter()
        meter.ignore([q, k, v, columns])
        with meter, torch.set_grad_enabled(training):
            output, maps = attention(q, k, v, columns, keys)
            if training:
                torch.autograd.grad(output.float().mean() + maps.mean(), [q, k, v], allow_unused=True)
    return meter.peak / MIB


def errors(shape: Shape) -> dict[str, float | bool]:
    """Largest difference of columns from the softmax in float32, and whether sampling leaves the output as it is."""
    torch.manual_seed(0)
    given = inputs(shape, torch.float32, gradient=False)
    bare = plain(*given)[0]
    report: dict[str, float | bool] = {}
    for form in ("text", "joint"):
        theirs = explicit(form)(*given)[1]
        for method in ("one_hot", "lse"):
            output, columns = ours(form, method)(*given)
            report[f"{form} {method}"] = float((columns - theirs).abs().max())
            if method == "lse":
                report[f"{form} output identical"] = torch.equal(output, bare)
    return report


def measure(name: str, pairs: int) -> dict[str, object]:
    """All figures of a shape."""
    training = times(TRAINING, TIMED[name], pairs, training=True)
    bytes_sampling = {key: round(peak(own, FULL[name], training=False), 1) for key, own in SAMPLING.items()}
    bytes_training = {key: round(peak(own, FULL[name], training=True), 1) for key, own in TRAINING.items()}
    found = errors(TIMED[name])
    share = bytes_training["text, one call"] / bytes_training["explicit"]
    ratio = training["text, one call"]["ratio"]
    differences = [value for value in found.values() if not isinstance(value, bool)]
    return {
        "shape": name,
        "sampling": times(SAMPLING, TIMED[name], pairs, training=False),
        "training": training,
        "mib_full_sampling": bytes_sampling,
        "mib_full_training": bytes_training,
        "largest_difference": found,
        "explicit_over_text_bytes": round(1 / share, 1),
        "met": {
            "time": ratio <= GOALS[name],
            "bytes": share <= GOAL_BYTES if name == "flux" else None,
            "exact": max(differences) <= GOAL_ERROR,
            "identical": all(value for value in found.values() if isinstance(value, bool)),
        },
    }


def step_ratio(pairs: int) -> dict[str, object]:
    """CPU seconds of a training step without maps and with those of one block, and the median ratio of neighbouring steps."""
    torch.manual_seed(0)
    shape, heads, blocks, layer = TIMED["sd3"], FULL["sd3"].heads, 12, "transformer_blocks.6.attn"
    record = get_backbone("sd3")
    pooled = sum(encoder.width for encoder in record.text_encoders if encoder.pooled)
    width, edge = heads * shape.width, 2 * int(shape.image**0.5)
    transformer = SD3Transformer2DModel(
        sample_size=edge, num_layers=blocks, num_attention_heads=heads, attention_head_dim=shape.width, joint_attention_dim=record.context_width,
        caption_projection_dim=width, pooled_projection_dim=pooled, pos_embed_max_size=edge, qk_norm="rms_norm",
    )  # fmt: skip
    network = SD3Network(record, transformer, FlowProcess(3.0))
    adapters = network.adapters.add(LoraSpec(16, 16.0))
    context = torch.randn(1, shape.text, record.context_width, requires_grad=True)
    latents, times = torch.randn(1, 16, edge, edge), torch.tensor([0.5])
    columns = torch.arange(shape.parts * shape.columns).view(1, shape.parts, shape.columns)
    text = Conditioning.of(context, columns, pooled=torch.randn(1, pooled))
    request = AttentionRequest(columns, (layer,), method="one_hot")

    def run(asked: AttentionRequest | None) -> float:
        started = time.process_time()
        made = network.predict(latents, times, text, asked)
        loss = made.prediction.square().mean() + sum(maps.mean() for maps in made.attention.values())
        torch.autograd.grad(loss, [context, *adapters.values()], allow_unused=True)
        return time.process_time() - started

    run(None), run(request)
    seconds: dict[str, list[float]] = {"plain": [], "maps": [], "plain again": []}
    for turn in range(pairs):
        order = [("plain", None), ("maps", request), ("plain again", None)]
        for name, asked in order if turn % 2 else reversed(order):
            seconds[name].append(run(asked))
    plain_of = list(zip(seconds["plain"], seconds["plain again"], strict=True))
    ratios = [own / statistics.mean(pair) for own, pair in zip(seconds["maps"], plain_of, strict=True)]
    return {
        "seconds": {name: round(statistics.median(own), 3) for name, own in seconds.items()},
        "ratio": round(statistics.median(ratios), 4),
        "plain again": round(statistics.median(b / a for a, b in plain_of), 4),
        "met": statistics.median(ratios) <= GOAL_STEP,
    }


def main() -> None:
    """Print one JSON object per shape, or one of a whole step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=(*TIMED, "both"), default="both")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--step", action="store_true", help="time a whole training step")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.step:
        sys.stdout.write(json.dumps(step_ratio(arguments.pairs), indent=1) + "\n")
        return
    for name in TIMED if arguments.shape == "both" else (arguments.shape,):
        sys.stdout.write(json.dumps(measure(name, arguments.pairs), indent=1) + "\n")


if __name__ == "__main__":
    main()
