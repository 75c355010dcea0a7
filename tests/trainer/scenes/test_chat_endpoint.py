"""Language models behind an address: layouts and captions through a real server on this machine, and everything that goes wrong."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.set_files import read_records
from bestiary.trainer.__main__ import main
from bestiary.trainer.scenes.chat_endpoint import ChatEndpoint, EndpointFault

KEY = "sk-very-secret"
GOOD = {
    "canvas": [128, 96],
    "scene": "a park",
    "objects": [{"id": "cat", "box": [4, 50, 40, 30]}, {"id": "dog", "box": [70, 40, 50, 40]}],
}


class Server:
    """Answers as its `answer` says, and keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[dict], str | bytes | int] = lambda body: json.dumps(GOOD)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(body)
                server.headers.append(dict(self.headers))
                said = server.answer(body)
                if isinstance(said, int):
                    self.send_response(said)
                    self.send_header("Location", "http://127.0.0.1:1/")
                    self.end_headers()
                    return
                if isinstance(said, str):
                    said = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *args: object) -> None:
                """Says nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def asked(url: str, **options: object) -> str:
    return ChatEndpoint(url, **options).ask([{"role": "user", "content": "hello"}])


def test_a_good_layout_is_used_and_kept_so_that_a_run_needs_no_server(
    recipe, tmp_path, server, build, hashes, monkeypatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    out, options = tmp_path / "pets", ["--layout", "llm", "--llm-model", "m", "--llm-key-env", "MY_KEY", "--count", "2"]
    assert build(recipe, out, *options, "--llm-url", server.url) == 0
    records = list(read_records(out))
    assert [record.layout["made_by"] for record in records] == ["llm", "llm"]
    assert len(server.requests) == 2 and server.requests[0]["model"] == "m"
    assert server.requests[0]["response_format"]["type"] == "json_schema"
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    # the key is in no file
    assert not any(KEY.encode() in path.read_bytes() for path in out.rglob("*") if path.is_file())
    # a set lost, its answers kept: the same files without a single request
    wanted = hashes(out)
    for path in [*out.glob("layouts/*"), *out.glob("images/*")]:
        path.unlink()
    assert build(recipe, out, *options, "--llm-url", server.url) == 0
    assert hashes(out) == wanted and len(server.requests) == 2
    # half a line, left by a process that was killed, costs nothing
    with (out / "layout_cache.jsonl").open("a") as file:
        file.write('{"request": "ab')
    assert build(recipe, out, *options[:-1], "3", "--llm-url", server.url) == 0 and len(server.requests) == 3
    assert len((out / "layout_cache.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("<html>no</html>", "the text holds no box"),
        ("__import__('os').system('touch ran')", "program code, '__import__', which is never run"),
        (json.dumps({"objects": []}), "the text holds no box"),
        (b"<html>busy</html>", "did not answer as an OpenAI-compatible server does, but with '<html>busy"),
        (b'{"choices": []}', "did not answer as an OpenAI-compatible server does"),
        (500, "status 500"),
        (401, "status 401"),
        (302, "status 302"),
    ],
)
def test_answers_of_no_use_are_asked_again_and_then_the_solver_takes_over(
    recipe, tmp_path, server, build, answer, reason
) -> None:
    server.answer = lambda body: answer
    out = tmp_path / "pets"
    assert build(recipe, out, "--count", "1", "--layout", "llm", "--llm-url", server.url) == 0
    record = next(iter(read_records(out)))
    assert record.layout["made_by"] == "solver" and len(server.requests) == 3
    assert reason in record.rejected[0] and "the solver made this one" in record.rejected[0]
    assert "the solver made this one" in (out / "provenance.json").read_text()
    assert main(["scenes", "verify", str(out)]) == 0 and not Path("ran").exists()


@pytest.mark.parametrize(
    "objects",
    [
        [{"id": "cat", "box": [4, 50, 40, 30]}],
        [*GOOD["objects"], {"id": "horse", "box": [1, 1, 9, 9]}],
        [*GOOD["objects"], {"id": "dog", "box": [1, 1, 9, 9]}],
        [{"id": "cat", "box": [60, 50, 40, 30]}, {"id": "dog", "box": [62, 48, 42, 32]}],
        [{"id": "cat", "box": [-30, 80, 40, 30]}, {"id": "dog", "box": [100, 40, 50, 40]}],
    ],
    ids=["missing", "extra", "duplicate", "overlap", "outside"],
)
def test_boxes_that_break_a_rule_are_repaired(recipe, tmp_path, server, build, objects) -> None:
    server.answer = lambda body: f"Sure!\n```json\n{json.dumps({**GOOD, 'objects': objects})}\n```"
    out = tmp_path / "pets"
    assert build(recipe, out, "--count", "1", "--layout", "llm", "--llm-url", server.url) == 0
    record = next(iter(read_records(out)))
    assert record.layout["made_by"] == "llm" and {entry.id for entry in record.objects} == {"cat", "dog"}
    assert max(record.scores.values()) <= 0.15 and record.rejected
    assert all(left >= 0 and top >= 0 for left, top, _, _ in (entry.bbox for entry in record.objects))


def test_a_server_that_knows_no_schema_is_asked_without(server) -> None:
    server.answer = lambda body: 400 if "response_format" in body else "hi"
    endpoint = ChatEndpoint(server.url)
    assert endpoint.ask([{"role": "user", "content": "x"}], schema={"type": "object"}) == "hi"
    assert ["response_format" in body for body in server.requests] == [True, False]


def test_endpoints_that_are_down_slow_or_endless(server, monkeypatch) -> None:
    with pytest.raises(EndpointFault, match=r"127.0.0.1:1/v1/chat/completions cannot be reached"):
        asked("http://127.0.0.1:1/v1")
    server.answer = lambda body: time.sleep(2) or "late"
    with pytest.raises(EndpointFault, match=r"did not answer within 0.2 seconds|timed out"):
        asked(server.url, timeout=0.2)
    server.answer = lambda body: b"x" * 5_000_000
    with pytest.raises(EndpointFault, match="more than 4 MB"):
        asked(server.url)
    for url in ("file:///etc/passwd", "127.0.0.1:80", ""):
        with pytest.raises(BestiaryError, match="is not an address"):
            ChatEndpoint(url)
    with pytest.raises(BestiaryError, match="holds a password"):
        ChatEndpoint("http://me:secret@127.0.0.1/v1")
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(BestiaryError, match="environment variable 'NO_KEY' is not set"):
        ChatEndpoint(server.url, key_env="NO_KEY")


def test_a_layout_alone_through_a_language_model(recipe, tmp_path, server) -> None:
    pictures = [str(tmp_path / "cat/0.png"), str(tmp_path / "dog/0.png")]
    names = {"objects": [{"id": "0", "box": [4, 50, 40, 30]}, {"id": "0_2", "box": [70, 40, 50, 40]}]}
    server.answer = lambda body: json.dumps({**GOOD, **names})
    options = [
        "--width",
        "128",
        "--height",
        "96",
        "--layout",
        "llm",
        "--llm-url",
        server.url,
        "--out",
        str(tmp_path / "l"),
    ]
    assert main(["scenes", "layout", *pictures, *options, "--place", "in a garden"]) == 0
    assert json.loads((tmp_path / "l/000001.json").read_text())["made_by"] == "llm"
    assert "in a garden" in server.requests[0]["messages"][0]["content"]


def test_captions_of_a_set_written_anew(recipe, tmp_path, build, capsys, hashes) -> None:
    out = tmp_path / "pets"
    assert build(recipe, out, "--set", "evaluation.share=0.25", "--set", "evaluation.count=1", "--count", "3") == 0
    before = hashes(out)
    assert main(["scenes", "caption", str(out), "--progress", "off"]) == 0
    assert "0 of 3 captions changed" in capsys.readouterr().out and hashes(out) == before
    trigger = ["--trigger", "cat=sks", "--template", "{subjects}, {place}", "--progress", "off"]
    assert main(["scenes", "caption", str(out), *trigger]) == 0
    assert "3 of 3 captions changed" in capsys.readouterr().out
    assert "sks cat" in (out / "images/000001.txt").read_text() and "sks" in (out / "metadata.jsonl").read_text()
    assert "sks cat" in (out / "eval/images/000001.txt").read_text() and "sks cat" in (out / "index.html").read_text()
    assert main(["scenes", "verify", str(out)]) == 0
    # a build leaves them as they are
    assert build(recipe, out, "--set", "evaluation.share=0.25", "--set", "evaluation.count=1", "--count", "3") == 0
    assert "sks cat" in (out / "images/000001.txt").read_text()


def test_captions_by_a_model_count_where_they_name_everybody(recipe, tmp_path, server, build, capsys) -> None:
    out = tmp_path / "pets"
    assert build(recipe, out, "--count", "3") == 0
    answers = iter(['Caption: "A cat sits by a {blue} dog."', "Two animals.", "The dog looks at a cat."])
    server.answer = lambda body: next(answers)
    options = ["--caption-url", server.url, "--caption-model", "eye", "--trigger", "cat=sks", "--progress", "off"]
    assert main(["scenes", "caption", str(out), *options]) == 0
    texts = [(out / f"images/00000{number}.txt").read_text() for number in (1, 2, 3)]
    assert texts[0] == "A sks cat sits by a {blue} dog.\n" and texts[2] == "The dog looks at a sks cat.\n"
    assert texts[1].startswith("a photo of ") and "sks cat" in texts[1]
    shown = capsys.readouterr()
    assert "scene 000002 keeps the template's caption: the answer does not name" in shown.err
    content = server.requests[0]["messages"][0]["content"]
    assert content[1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert main(["scenes", "verify", str(out)]) == 0
    # again, from what was kept
    assert main(["scenes", "caption", str(out), *options]) == 0
    assert len(server.requests) == 3 and "0 of 3 captions changed" in capsys.readouterr().out


def test_faults_of_captions(recipe, tmp_path, fails, build) -> None:
    (tmp_path / "empty").mkdir()
    fails(["scenes", "caption", str(tmp_path / "empty")], "is no set of scenes")
    fails(["scenes", "caption", str(tmp_path / "none.json")], "no file")
    out = tmp_path / "pets"
    assert build(recipe, out, "--count", "1") == 0
    fails(["scenes", "caption", str(out), "--caption-url", "nowhere"], "is not an address")
    fails(["scenes", "caption", str(out), "--repeat", "7"], "repeat 7")
    (out / "provenance.json").write_text("{}")
    fails(["scenes", "caption", str(out)], "provenance.json cannot be read")
