"""What the pack adds to ComfyUI's start: seconds, and which heavy libraries come in with it.

    python benchmarks/bench_import_time.py [--comfyui PATH] [--rounds 5]

Every round is a fresh process that imports ComfyUI's own modules first, as its server does, and then loads the pack as
ComfyUI's loader does: the module, its entry point, the list of nodes, and every node's schema. The best round counts, by CPU time,
which other processes do not lengthen; with a warm file cache and an idle machine the seconds on the wall are the same.
Goal: at most 50 ms (spec P8), none of diffusers, timm, sklearn, peft and accelerate, no further class of transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
GOAL_MS = 50
HEAVY = ("diffusers", "timm", "sklearn", "peft", "accelerate")

PROGRAM = """
import asyncio, importlib.util, json, sys, time
root, comfyui = sys.argv[1:]
sys.path.insert(0, comfyui)
import utils.extra_config, comfy.options
comfy.options.enable_args_parsing(False)
from comfy.cli_args import args
args.cpu = True
import execution, server, nodes, comfy_api.latest, folder_paths
before = set(sys.modules)
wall, cpu = time.perf_counter(), time.process_time()
name = root.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, root + "/__init__.py")
sys.modules[name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
async def load():
    extension = await module.comfy_entrypoint()
    return await extension.get_node_list()
found = asyncio.run(load())
imported = time.perf_counter() - wall
for node in found:
    node.GET_SCHEMA()
print(json.dumps({
    "nodes": len(found), "import_ms": 1000 * imported, "all_ms": 1000 * (time.perf_counter() - wall),
    "cpu_ms": 1000 * (time.process_time() - cpu), "modules": sorted(set(sys.modules) - before)}))
"""


def measure_start(comfyui: Path) -> dict[str, object]:
    """Figures of one fresh process; modules are those that the pack brought in."""
    command = [sys.executable, "-c", PROGRAM, str(ROOT), str(comfyui)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled files are kept, as in use
    done = subprocess.run(command, cwd=comfyui, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ComfyUI at {comfyui} could not be imported: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def heavy_modules(modules: list[str]) -> list[str]:
    """Heavy libraries, and classes of transformers, among newly imported modules."""
    libraries = {name.split(".")[0] for name in modules} & set(HEAVY)
    classes = {".".join(name.split(".")[:3]) for name in modules if name.startswith("transformers.models.")}
    return sorted(libraries | classes)


def own_modules(modules: list[str]) -> set[str]:
    """The pack's own by their place in it, such as nodes.registration; without the pack itself."""
    own = str(ROOT).replace(".", "_x_") + "."
    return {name.removeprefix(own) for name in modules if name.startswith(own)}


def outside_modules(modules: list[str]) -> list[str]:
    """Top-level modules that are not the pack's own."""
    own = str(ROOT).replace(".", "_x_")
    return sorted({name.split(".")[0] for name in modules if not name.startswith(own)})


def main() -> None:
    """Print one JSON line: the best of several rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, default=Path.home() / "comfy" / "ComfyUI")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    # the fastest round counts: slower ones were disturbed
    rounds = [measure_start(options.comfyui) for _ in range(options.rounds)]
    best = min(rounds, key=lambda figures: figures["cpu_ms"])
    report = {
        "nodes": best["nodes"],
        "ms_with_schemas": round(best["all_ms"], 1),
        "ms_import_alone": round(best["import_ms"], 1),
        "cpu_ms": round(best["cpu_ms"], 1),
        "all_rounds_cpu_ms": [round(figures["cpu_ms"], 1) for figures in rounds],
        "goal_ms": GOAL_MS,
        "own": len(own_modules(best["modules"])),
        "heavy": heavy_modules(best["modules"]),
        "others": outside_modules(best["modules"]),
        "met": best["cpu_ms"] <= GOAL_MS and not heavy_modules(best["modules"]),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
