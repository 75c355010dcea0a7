"""The example workflows on two versions of ComfyUI: how far the pictures of each are from one another.

    python benchmarks/compare_cores.py --core PATH PYTHON --core PATH PYTHON [--quick] [--only NAME...]

PATH is a ComfyUI, PYTHON an interpreter with its requirements and this pack's. Each core runs the graphs of tests/workflows
as they are, on one thread of the CPU; --quick takes two steps and one picture, as the tests do. Prints the largest difference
of a colour (of 255) over all pictures that a graph shows, and the seconds that each core took.
Goal: at most 2 of 255. Workflows that need files of the user's are left out.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import typer
from PIL import Image

ROOT = Path(__file__).parent.parent
TWINS = ROOT / "tests" / "workflows"
NEED_FILES = ("sd15_mix_parts",)
FEW = {"steps": 2, "batch_size": 1, "count": 10, "num_kinds": 3}
GOAL = 2


@contextmanager
def running(core: Path, python: str, folder: Path) -> Iterator[str]:
    """Address of a ComfyUI with this pack alone, on folders of its own."""
    for name in ("models/bestiary", "custom_nodes", "input", "output", "user"):
        (folder / name).mkdir(parents=True)
    (folder / "custom_nodes" / "ComfyUI-Bestiary").symlink_to(ROOT, target_is_directory=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, "main.py", "--cpu", "--port", str(port), "--base-directory", str(folder)]
    command += ["--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
    with (folder / "server.log").open("wb") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, cwd=core, env=environment, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"{core} did not start:\n{(folder / 'server.log').read_text()[-3000:]}")
            try:
                asked(address, "/system_stats")
                break
            except urllib.error.URLError:
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait()


def asked(address: str, path: str, content: object = None) -> bytes:
    """What a server answers to GET, or to POST where there is content to send as JSON."""
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address + path, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return answer.read()


def pictures_of(address: str, graph: dict) -> dict[str, np.ndarray]:
    """Every picture `(H, W, 3)` that a graph shows, by node and number; raises RuntimeError with the words of one that fails."""
    number = json.loads(asked(address, "/prompt", {"prompt": graph, "client_id": "compare"}))["prompt_id"]
    while not (entry := json.loads(asked(address, f"/history/{number}")).get(number)):
        time.sleep(0.2)
    if entry["status"]["status_str"] != "success":
        raise RuntimeError(str(entry["status"]["messages"][-1])[:500])
    found = {}
    for node, outputs in sorted(entry["outputs"].items()):
        for index, place in enumerate(outputs.get("images", ())):
            content = asked(address, "/view?" + urllib.parse.urlencode(place))
            found[f"{node}.{index}"] = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.int16)
    return found


def run_all(core: Path, python: str, graphs: dict[str, dict]) -> dict[str, tuple[dict[str, np.ndarray], float]]:
    """Pictures and seconds of every graph on one core."""
    results = {}
    with tempfile.TemporaryDirectory() as folder, running(core, python, Path(folder)) as address:
        for name, graph in graphs.items():
            begun = time.perf_counter()
            results[name] = (pictures_of(address, graph), time.perf_counter() - begun)
            typer.echo(f"  {core.name} {name}: {results[name][1]:.1f} s")
    return results


def difference(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    """Largest difference of a colour in 0..255; infinite where other pictures are shown."""
    if first.keys() != second.keys() or any(first[name].shape != second[name].shape for name in first):
        return float("inf")
    return max(float(np.abs(first[name] - second[name]).max()) for name in first)


def main() -> None:
    """Reads the command line, runs both cores one after the other and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", nargs=2, action="append", required=True, metavar=("PATH", "PYTHON"))
    parser.add_argument("--quick", action="store_true", help="two steps and one picture")
    names = sorted(path.name.removesuffix(".api.json") for path in TWINS.glob("*.api.json"))
    parser.add_argument("--only", nargs="*", choices=names, default=[name for name in names if name not in NEED_FILES])
    chosen = parser.parse_args()
    if len(chosen.core) != 2:
        parser.error("--core is needed twice")
    graphs = {name: json.loads((TWINS / f"{name}.api.json").read_text(encoding="utf-8")) for name in chosen.only}
    for graph in graphs.values() if chosen.quick else ():
        for node in graph.values():
            node["inputs"].update({name: value for name, value in FEW.items() if name in node["inputs"]})
    first, second = (run_all(Path(core), os.path.abspath(python), graphs) for core, python in chosen.core)
    typer.echo(f"{'workflow':28} pictures  largest difference  seconds")
    for name in graphs:
        (ours, seconds), (theirs, other) = first[name], second[name]
        typer.echo(f"{name:28} {len(ours):8d}  {difference(ours, theirs):12g} / 255  {seconds:.0f} and {other:.0f}")
    worst = max(difference(first[name][0], second[name][0]) for name in graphs)
    typer.echo(f"worst {worst:g} of 255; the goal is at most {GOAL}")


if __name__ == "__main__":
    main()
