"""P6: what recording part attention costs a sampler in ComfyUI's own modules, against nothing and against full maps.

    COMFYUI_PATH=... python benchmarks/bench_attention_capture.py [--width 64] [--pairs 8] [--layers auto]

An SD1.5-shaped UNet with random weights (16 cross-attention layers; --width 320 is the full size) evaluates prompts with
guidance at 512 pixels. Every round times four runs in turn: bare, recorded, bare again, and with all probabilities kept
in float32 per head and layer (DAAM-like). The second bare run against the first is the noise floor.
"time_share_inside" times the recording itself: less exposed to noise, but blind to caches that it cools.
Goals: at most 1 % time, at most 1/1000 of the bytes kept, latents exactly equal.
The narrower the model, the larger the share of the recording: convolutions grow with the square of the width.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

PARTS = 4
GOAL_TIME, GOAL_BYTES = 0.01, 1e-3
TOKENS, TEXT_WIDTH = 77, 768


def import_comfyui() -> None:
    """Makes ComfyUI importable, on the CPU."""
    place = Path(os.environ.get("COMFYUI_PATH", Path.home() / "comfy" / "ComfyUI"))
    sys.path.insert(0, str(place))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    # fused attention, as on graphics cards: the bare run is then at its fastest, and the share at its largest
    args.use_pytorch_cross_attention = True


def build_model(width: int) -> object:
    """A MODEL of SD1.5's shape with `width` channels in its first level and random weights."""
    import comfy.model_patcher
    import comfy.supported_models

    # what tells ComfyUI that this is SD1.5, then the shape of its blocks
    known = {
        "context_dim": TEXT_WIDTH,
        "model_channels": width,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
    }
    shape = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "use_spatial_transformer": True,
        "legacy": False,
        "use_checkpoint": False,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "use_temporal_resblock": False,
    }
    # ComfyUI's own class for SD1.5, told of another width
    kind = type("Shaped", (comfy.supported_models.SD15,), {"unet_config": known})
    config = kind({**shape, **known})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    torch.manual_seed(0)
    for parameter in model.diffusion_model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


class FullMaps:
    """Keeps every probability of the positive prompt, per head and layer, in float32."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def patched(self, model: object) -> object:
        """A clone of the model that fills `kept`."""
        clone = model.clone()
        clone.model_options["transformer_options"]["optimized_attention_override"] = self._attend
        return clone

    def _attend(
        self, attention: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: object, **kw: object
    ) -> Tensor:
        # at 512 pixels no layer has 77 positions, so the length tells cross-attention
        if k.shape[1] == TOKENS:
            row = kw["transformer_options"]["cond_or_uncond"].index(0)
            q1, k1 = (x[row : row + 1].unflatten(2, (heads, -1)).transpose(1, 2).float() for x in (q, k))
            self.kept.append((q1 @ k1.transpose(-1, -2) * q1.shape[-1] ** -0.5).softmax(-1))  # (1, H, N, 77)
        return attention(q, k, v, heads, *args, **kw)


def sample(model: object, edge: int, steps: int, spans: tuple) -> Tensor:
    """Latents `(1, 4, h, w)` of a core sampling with guidance and fixed noise."""
    import comfy.sample
    from bestiary.nodes.host.socket_types import SPANS_KEY

    # the same prompts and noise in every run
    generator = torch.Generator().manual_seed(1)
    positive, negative, noise = (
        torch.randn(shape, generator=generator)
        for shape in [(1, TOKENS, TEXT_WIDTH), (1, TOKENS, TEXT_WIDTH), (1, 4, edge, edge)]
    )
    conds = [[positive, {SPANS_KEY: spans}]], [[negative, {}]]
    # guidance as usual, so that both prompts are evaluated
    settings = (steps, 7.0, "euler", "normal", *conds, torch.zeros_like(noise))
    with torch.inference_mode():
        return comfy.sample.sample(model, noise, *settings, seed=2, disable_pbar=True)


def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds of the process, which other processes on the core do not lengthen, and the result `(1, 4, h, w)`."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


class Stopwatch:
    """Seconds spent in a method of a class while it is watched."""

    def __init__(self, owner: type, name: str) -> None:
        self.seconds = 0.0
        method = getattr(owner, name)

        def watched(*args: object, **kw: object) -> object:
            start = time.process_time()
            try:
                return method(*args, **kw)
            finally:
                self.seconds += time.process_time() - start

        setattr(owner, name, watched)


def spread(shares: list[float]) -> dict[str, float]:
    """Median and standard error of paired shares."""
    error = statistics.stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else float("nan")
    return {"median": round(statistics.median(shares), 4), "standard_error": round(error, 4)}


def _upper(share: dict[str, float]) -> float:
    """How large a share may be: two standard errors from its median."""
    return abs(share["median"]) + 2 * share["standard_error"]


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="channels of the first level; 320 is SD1.5")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--edge", type=int, default=64, help="edge of the latent")
    parser.add_argument("--layers", default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import_comfyui()
    from bestiary.nodes.attention.attention_record import AttentionRecord
    from bestiary.nodes.attention.attention_sampling import ModelEvaluation
    from bestiary.nodes.attention.model_patching import record_attention
    from bestiary.nodes.host.socket_types import PartSpan

    # four runs of one model: bare, ours, bare again, and with all probabilities kept
    bare, full = build_model(arguments.width), FullMaps()
    record = AttentionRecord(arguments.layers)
    spans = tuple(PartSpan(f"part{i}:0", f"part{i}", (3 + 2 * i,)) for i in range(PARTS))
    models = {"bare": bare, "ours": record_attention(bare, record), "again": bare, "full": full.patched(bare)}
    watch, inside = Stopwatch(ModelEvaluation, "_record"), []
    seconds, latents = {name: [] for name in models}, {}
    for turn in range(-1, arguments.pairs):
        # every other round backwards, so that no run always has a warmer cache
        for name in models if turn % 2 else reversed(models):
            full.kept.clear()
            watch.seconds = 0.0
            spent, latents[name] = timed(lambda m=models[name]: sample(m, arguments.edge, arguments.steps, spans))
            if name == "full":
                full_bytes = sum(4 * kept.numel() for kept in full.kept)
            # the first round warms up
            if turn >= 0:
                seconds[name].append(spent)
                if name == "ours":
                    inside.append(watch.seconds)
    # against the mean of both bare runs, whose difference is the noise
    floor = [(a + b) / 2 for a, b in zip(seconds["bare"], seconds["again"], strict=True)]
    shares = {name: [s / f - 1 for s, f in zip(seconds[name], floor, strict=True)] for name in ("ours", "full")}
    noise = [b / a - 1 for a, b in zip(seconds["bare"], seconds["again"], strict=True)]
    maps = record.find(latents["ours"]).maps
    our_bytes = 4 * maps.numel()
    ours = spread(shares["ours"])
    report = {
        "width": arguments.width,
        "layers": arguments.layers,
        "maps": list(maps.shape),
        "bare_seconds": round(statistics.median(floor), 3),
        "time_share": ours,
        "time_share_inside": spread([part / whole for part, whole in zip(inside, floor, strict=True)]),
        "time_share_full_maps": spread(shares["full"]),
        "noise_floor": spread(noise),
        "bytes_full_ours": [full_bytes, our_bytes],
        "bytes_ratio": our_bytes / full_bytes,
        "latents_equal": torch.equal(latents["ours"], latents["bare"]),
    }
    report["met"] = {
        # the paired difference proves the goal only where two bare runs differ by less than the goal
        "time_paired": max(_upper(ours), _upper(report["noise_floor"])) <= GOAL_TIME,
        "time_inside": _upper(report["time_share_inside"]) <= GOAL_TIME,
        "bytes": report["bytes_ratio"] <= GOAL_BYTES,
        "latents": report["latents_equal"],
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
