"""A ComfyUI that is asked for pictures: what is sent, what comes back, and servers that are down, slow or something else."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.set_files import png_bytes
from bestiary.trainer.scenes.comfy_queue import ComfyQueue, checked_workflow, filled_workflow
from bestiary.trainer.scenes.painters import open_painter
from bestiary.trainer.scenes.scene_settings import RepaintSettings
from PIL import Image

WORKFLOW = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "_meta": {"title": "Canvas"}},
    "2": {"class_type": "LoadImage", "inputs": {"image": "b.png"}, "_meta": {"title": "mask"}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "old", "clip": ["9", 1]}, "_meta": {"title": "prompt"}},
    "4": {"class_type": "KSampler", "inputs": {"seed": 1, "denoise": 0.6}, "_meta": {"title": "KSampler"}},
    "5": {"class_type": "RandomNoise", "inputs": {"noise_seed": ["4", 0]}, "_meta": {}},
    "6": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}, "_meta": {"title": "on the way"}},
    "7": {"class_type": "SaveImage", "inputs": {"images": ["4", 0]}, "_meta": {"title": "Result"}},
}


class FakeComfy:
    """Answers as the four routes of ComfyUI do, with a given history."""

    def __init__(self) -> None:
        self.uploads: dict[str, bytes] = {}
        self.prompts: list[dict] = []
        self.picture = np.full((32, 48, 3), 7, np.uint8)
        self.polls = 0
        self.status: dict = {"status_str": "success"}
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.outputs: dict | None = None

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        place = path.split("?")[0].rsplit("/", 1)[0] if path.startswith("/history") else path.split("?")[0]
        if place in self.answers:
            return self.answers[place]
        if place == "/upload/image":
            head, _, rest = body.partition(b"\r\n\r\n")
            name = head.split(b'filename="')[1].split(b'"')[0].decode()
            self.uploads[name] = rest.split(b"\r\n--")[0]
            assert b'name="overwrite"\r\n\r\ntrue' in body and b'name="subfolder"\r\n\r\nbestiary' in body
            return 200, json.dumps({"name": name, "subfolder": "bestiary", "type": "input"}).encode()
        if place == "/prompt":
            self.prompts.append(json.loads(body)["prompt"])
            return 200, b'{"prompt_id": "p1", "node_errors": {}}'
        if place == "/history":
            self.polls += 1
            outputs = self.outputs if self.outputs is not None else {
                "6": {"images": [{"filename": "way.png", "subfolder": "", "type": "temp"}]},
                "7": {"images": [{"filename": "end.png", "subfolder": "x y", "type": "output"}]},
            }  # fmt: skip
            entry = {"p1": {"status": self.status, "outputs": outputs}}
            return 200, json.dumps(entry if self.polls > 1 else {}).encode()
        assert path == "/view?filename=end.png&subfolder=x+y&type=output", path
        return 200, png_bytes(self.picture)


@pytest.fixture
def comfy() -> Iterator[tuple[FakeComfy, str]]:
    """The fake and its address."""
    fake = FakeComfy()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = fake.answer(self.command, self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _reply  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield fake, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    path = tmp_path / "inpaint.json"
    path.write_text(json.dumps(WORKFLOW))
    return path


def test_a_picture_goes_through_the_queue(comfy, workflow: Path) -> None:
    fake, url = comfy
    painter = open_painter(RepaintSettings(mode="comfy", url=url, workflow=workflow))
    canvas = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    mask = np.zeros((32, 48), np.uint8)
    mask[:, 24:] = 255
    assert np.array_equal(painter.paint(canvas, mask, "a photo in a garden", 77), fake.picture)
    (sent,) = fake.prompts
    assert sent["1"]["inputs"]["image"] == "bestiary/canvas.png" and sent["2"]["inputs"]["image"] == "bestiary/mask.png"
    assert sent["3"]["inputs"]["text"] == "a photo in a garden"
    assert sent["4"]["inputs"] == {"seed": 77, "denoise": 0.6} and sent["5"]["inputs"]["noise_seed"] == ["4", 0]
    uploaded = {name: np.asarray(Image.open(io.BytesIO(content))) for name, content in fake.uploads.items()}
    assert np.array_equal(uploaded["canvas.png"], canvas)
    # either output of a Load Image node gives the mask: its picture, or 1 - alpha
    assert np.array_equal(uploaded["mask.png"][..., 0], mask) and np.array_equal(
        255 - uploaded["mask.png"][..., 3], mask
    )


def test_painters_are_named_by_what_they_paint_with(comfy, workflow: Path, tmp_path: Path) -> None:
    _, url = comfy
    first = open_painter(RepaintSettings(mode="comfy", url=url, workflow=workflow)).name
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**WORKFLOW, "4": {**WORKFLOW["4"], "inputs": {"seed": 1, "denoise": 0.8}}}))
    second = open_painter(RepaintSettings(mode="comfy", url=url, workflow=other)).name
    assert first.startswith("comfy ") and first != second


def test_the_workflow_of_the_file_stays_as_it_is() -> None:
    before = json.dumps(WORKFLOW)
    filled_workflow(WORKFLOW, "c", "m", "p", 3)
    assert json.dumps(WORKFLOW) == before


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "is not a workflow"),
        ('{"nodes": [], "links": []}', r"workflow for the editor: save it with Export \(API\)"),
        ("[1]", "is not a workflow of ComfyUI"),
        (json.dumps({"1": WORKFLOW["1"]}), "has 0 Load Image nodes titled mask"),
        (json.dumps({**WORKFLOW, "8": WORKFLOW["1"]}), "has 2 Load Image nodes titled canvas"),
    ],
)
def test_files_that_are_no_such_workflow(content: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(content)
    with pytest.raises(BestiaryError, match=fault):
        checked_workflow(tmp_path / "w.json")


def _seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestiary.trainer.scenes.comfy_queue._PAUSE", 0.01)


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        (
            {"/upload/image": (200, b"<html>hello")},
            "did not answer as ComfyUI does, but with b'<html>hello': check --url",
        ),
        ({"/upload/image": (413, b"too large")}, "ComfyUI refuses /upload/image: 413 too large"),
        ({"/prompt": (400, b'{"error": "no sampler"}')}, 'ComfyUI refuses /prompt: 400 {"error": "no sampler"}'),
        ({"/prompt": (200, b'{"prompt_id": "p1", "node_errors": {"4": "bad"}}')}, 'refuses the workflow: {"4": "bad"}'),
        ({"/view": (200, b"no picture")}, "gave a picture that cannot be read"),
    ],
)
def test_answers_that_are_of_no_use(answers: dict, fault: str, comfy, workflow: Path, monkeypatch) -> None:
    _seldom(monkeypatch)
    fake, url = comfy
    fake.answers = answers
    painter = open_painter(RepaintSettings(mode="comfy", url=url, workflow=workflow))
    with pytest.raises(BestiaryError) as raised:
        painter.paint(np.zeros((32, 48, 3), np.uint8), np.zeros((32, 48), np.uint8), "", 1)
    assert fault in str(raised.value)


def test_failures_within_the_workflow(comfy, monkeypatch) -> None:
    _seldom(monkeypatch)
    fake, url = comfy
    queue = ComfyQueue(url, timeout=5)
    fake.status = {
        "status_str": "error",
        "messages": [["execution_error", {"node_type": "KSampler", "exception_message": "out of memory\n"}]],
    }
    with pytest.raises(BestiaryError, match="failed in ComfyUI at KSampler: out of memory"):
        queue.run(WORKFLOW, (32, 48))
    fake.status, fake.outputs = {"status_str": "success"}, {}
    with pytest.raises(BestiaryError, match="made no picture: end it with a Save Image"):
        queue.run(WORKFLOW, (32, 48))
    fake.outputs = None
    with pytest.raises(BestiaryError, match="picture of 48 x 32 pixels from a canvas of 64 x 32"):
        queue.run(WORKFLOW, (32, 64))
    fake.answers = {"/history": (200, b"{}")}
    with pytest.raises(BestiaryError, match=r"did not finish a workflow within 0.1 seconds"):
        ComfyQueue(url, timeout=0.1).run(WORKFLOW, (32, 48))


def test_addresses_that_nobody_answers_at(unused_port: Callable[[], int]) -> None:
    with pytest.raises(BestiaryError, match="--url 'localhost' is not an address"):
        ComfyQueue("localhost")
    with pytest.raises(BestiaryError, match=r"no ComfyUI answers at http://127.0.0.1:\d+ .*: start it, or check --url"):
        ComfyQueue(f"http://127.0.0.1:{unused_port()}").upload("canvas", np.zeros((8, 8, 3), np.uint8))


@pytest.fixture
def unused_port() -> Callable[[], int]:
    import socket

    def find() -> int:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return listener.getsockname()[1]

    return find
