"""A real ComfyUI for the graph tests: its modules inside this process, and a server on its own folders beside it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).parent.parent.parent


def find_comfyui() -> Path | None:
    """COMFYUI_PATH, the ComfyUI in whose custom_nodes this pack lies, or where comfy-cli puts it; None without one."""
    places = [ROOT.parent.parent, Path.home() / "comfy" / "ComfyUI"]
    if given := os.environ.get("COMFYUI_PATH"):
        places = [Path(given)]
    return next((place for place in places if (place / "main.py").exists() and (place / "comfy").is_dir()), None)


COMFYUI = find_comfyui()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder needs ComfyUI."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("comfyui")
            if COMFYUI is None:
                item.add_marker(pytest.mark.skip("no ComfyUI: set COMFYUI_PATH or put one at ~/comfy/ComfyUI"))


@pytest.fixture(scope="session", autouse=True)
def comfy_modules() -> None:
    """Makes `import comfy...`, `comfy_api`, `folder_paths` and `nodes` give ComfyUI's, on the CPU."""
    if COMFYUI is None or "folder_paths" in sys.modules:
        return
    sys.path.insert(0, str(COMFYUI))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True


@dataclass
class ComfyServer:
    """A running ComfyUI and the folders it uses."""

    address: str
    folder: Path
    """Base directory: models/, input/, output/, user/."""
    process: subprocess.Popen
    log: Path

    def get(self, path: str, **options: object) -> requests.Response:
        return requests.get(self.address + path, timeout=60, **options)

    def post(self, path: str, **options: object) -> requests.Response:
        return requests.post(self.address + path, timeout=60, **options)

    def submit(self, graph: dict) -> str:
        """Queues an API-format graph and returns its id; raises RuntimeError with the server's words if it is refused."""
        answer = self.post("/prompt", json={"prompt": graph, "client_id": "tests"})
        if answer.status_code != 200:
            raise RuntimeError(answer.text)
        return answer.json()["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = 120) -> dict:
        """History entry of a queued graph once it ended, well or badly."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            entry = self.get(f"/history/{prompt_id}").json().get(prompt_id)
            if entry and entry["status"]["status_str"] in ("success", "error"):
                return entry
            time.sleep(0.05)
        raise TimeoutError(f"no end after {seconds} s; log ends: {self.log.read_text()[-2000:]}")

    def run(self, graph: dict, seconds: float = 120) -> dict:
        """Outputs by node id of a graph that must succeed."""
        entry = self.wait(self.submit(graph), seconds)
        if entry["status"]["status_str"] != "success":
            raise RuntimeError(error_message(entry))
        return entry["outputs"]

    def fail(self, graph: dict, seconds: float = 120) -> str:
        """Message of a graph that must fail while it runs."""
        entry = self.wait(self.submit(graph), seconds)
        assert entry["status"]["status_str"] == "error", entry["outputs"]
        return error_message(entry)


def error_message(entry: dict) -> str:
    """What the node that failed said."""
    errors = [fact for name, fact in entry["status"]["messages"] if name == "execution_error"]
    return errors[0]["exception_message"] if errors else str(entry["status"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_server(folder: Path, *extra: str) -> ComfyServer:
    """Starts ComfyUI with this pack alone, on one thread, and waits until it answers."""
    for name in ("models/bestiary", "custom_nodes", "input", "output", "user"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    link = folder / "custom_nodes" / "ComfyUI-Bestiary"
    if not link.exists():
        link.symlink_to(ROOT, target_is_directory=True)
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "main.py", "--cpu", "--port", str(port), "--base-directory", str(folder)]
    command += ["--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:", *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=COMFYUI, env=environment, stdout=file, stderr=subprocess.STDOUT)
    server = ComfyServer(f"http://127.0.0.1:{port}", folder, process, log)
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        try:
            if server.get("/system_stats").ok:
                return server
        except requests.ConnectionError:
            time.sleep(0.2)
    process.kill()
    raise RuntimeError(f"ComfyUI did not start: {log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """One ComfyUI for the whole session, on the embedded model's concept files."""
    running = start_server(tmp_path_factory.mktemp("comfyui"))
    yield running
    running.process.terminate()
    try:
        running.process.wait(20)
    except subprocess.TimeoutExpired:
        running.process.kill()


def image_input(server: ComfyServer, source: Path) -> str:
    """Puts a picture into the server's input folder and returns its name for LoadImage."""
    shutil.copy(source, server.folder / "input" / source.name)
    return source.name


def has_module(name: str) -> bool:
    """Whether a library is installed, without importing it."""
    return importlib.util.find_spec(name) is not None
