"""Tests of the browser's routes against a running server: what they give, cache and refuse."""

import asyncio
import io
import json
import shutil
import struct
import threading
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes import web_routes
from bestiary.nodes.host.concept_folders import SHIPPED
from PIL import Image

SHIPPED_NAME = "creatures.safetensors"


def test_dictionaries_are_listed_without_codebooks(server):
    listed = server.get("/bestiary/dictionaries").json()
    names = {entry["name"]: entry for entry in listed["dictionaries"]}
    assert names[SHIPPED_NAME]["called"] == "creatures"
    assert names[SHIPPED_NAME]["bytes"] == (SHIPPED / SHIPPED_NAME).stat().st_size
    assert listed["more"] == 0 and not any(name.endswith(".parts.safetensors") for name in names)


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_a_dictionary_and_its_thumbnails(server, prefix):
    answer = server.get(f"{prefix}/bestiary/dictionary/{SHIPPED_NAME}")
    assert answer.ok and answer.headers["X-Content-Type-Options"] == "nosniff"
    listed = answer.json()
    tiles = [tile for part in listed["parts"] for tile in part["kinds"]["tiles"]]
    page = server.get(f"{prefix}/bestiary/thumbnails/{SHIPPED_NAME}?page=0")
    assert page.headers["Content-Type"] == "image/webp"
    picture = Image.open(io.BytesIO(page.content))
    assert picture.width == listed["atlas"]["tile"] * listed["atlas"]["columns"]
    assert max(tiles) < listed["atlas"]["pages"] * listed["atlas"]["per_page"]


@pytest.mark.parametrize("route", ["dictionary", "thumbnails"])
def test_the_browser_keeps_what_did_not_change(server, route):
    name = f"cached_{route}.safetensors"
    path = server.folder / "models" / "bestiary" / name
    shutil.copy(SHIPPED / SHIPPED_NAME, path)
    first = server.get(f"/bestiary/{route}/{name}")
    again = server.get(f"/bestiary/{route}/{name}", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    with path.open("ab") as stream:
        stream.write(b"\0")
    changed = server.get(f"/bestiary/{route}/{name}", headers={"If-None-Match": first.headers["ETag"]})
    assert changed.status_code != 304


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "..\\evil", "a" * 5000, "x\0y", "<script>"])
@pytest.mark.parametrize("route", ["dictionary", "thumbnails"])
def test_what_is_not_listed_is_refused(server, route, name):
    answer = server.get(f"/bestiary/{route}/{quote(name, safe='')}")
    assert answer.status_code == 404 and "ETag" not in answer.headers
    assert answer.headers["Content-Type"].startswith("application/json")
    assert str(server.folder) not in answer.json()["error"]


@pytest.mark.parametrize("page", ["-1", "x", "99", "1e3", "９", "9" * 50])
def test_a_page_that_is_not_there_is_refused(server, page):
    answer = server.get(f"/bestiary/thumbnails/{SHIPPED_NAME}", params={"page": page})
    assert answer.status_code == 422 and "page" in answer.json()["error"]


def test_a_hostile_file_is_told_without_this_machines_folders(server):
    path = server.folder / "models" / "bestiary" / "giant.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 50) + b"{}")
    try:
        answer = server.get("/bestiary/dictionary/giant.safetensors")
    finally:
        path.unlink()
    assert answer.status_code == 422
    assert answer.json()["error"] == "giant.safetensors is not a safetensors file, or is truncated (10 bytes)"


@pytest.fixture
def run(server):
    """Folder of a run with one log line and one preview."""
    folder = server.folder / "output" / "bestiary" / "seen"
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "config.resolved.toml").write_text("[optimizer]\nsteps = 9\n")
    (folder / "log.jsonl").write_text('{"step": 3, "loss": 0.25}\n')
    Image.new("RGB", (4, 4)).save(folder / "samples" / "step-0000003.png")
    return folder


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_a_run_and_its_pictures(server, run, prefix):
    for route in ("run", "newest_run"):
        answer = server.get(f"{prefix}/bestiary/{route}/seen")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.json()["curves"] == {"loss": [0.25]} and answer.json()["total"] == 9
        again = server.get(f"{prefix}/bestiary/{route}/seen", headers={"If-None-Match": answer.headers["ETag"]})
        assert again.status_code == 304
    picture = server.get(f"{prefix}/bestiary/run_picture/seen", params={"step": 3})
    assert picture.headers["Content-Type"] == "image/png" and Image.open(io.BytesIO(picture.content)).size == (4, 4)
    assert "ETag" in picture.headers
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 0.5}\n')
    assert server.get("/bestiary/run/seen").json()["steps"] == [3, 4]


def test_a_name_without_a_run_has_none(server):
    assert server.get("/bestiary/newest_run/nothing").json() == {"run": None}


@pytest.mark.parametrize("name", ["../../evil", "/etc", "seen/samples", "a" * 5000, "x\0y", "<script>"])
@pytest.mark.parametrize("route", ["run", "run_picture"])
def test_what_is_no_run_is_refused(server, run, route, name):
    answer = server.get(f"/bestiary/{route}/{quote(name, safe='')}", params={"step": 3})
    assert answer.status_code == 404 and "ETag" not in answer.headers
    assert str(server.folder) not in answer.json()["error"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"step": "x"}, "step must be a non-negative integer, got 'x'"),
        ({"step": "9" * 40}, "must be a non-negative integer"),
        ({"step": "8"}, "run seen has no preview pictures of step 8"),
        ({"step": "3", "sheet": "../log"}, "unknown kind of preview '../log'"),
    ],
)
def test_a_preview_that_is_not_there_is_refused(server, run, asked, words):
    answer = server.get("/bestiary/run_picture/seen", params=asked)
    assert answer.status_code == 404 and words in answer.json()["error"]


def test_nothing_but_reading_is_offered(server):
    reading = (f"dictionary/{SHIPPED_NAME}", "run/seen", "newest_run/seen", "run_picture/seen", "newest_discovery/7")
    reading += ("discovered/00ff", "discovered/00ff/picture", "discovered/00ff/labels")
    for method in ("/bestiary/dictionaries", *(f"/bestiary/{route}" for route in reading)):
        assert server.post(method).status_code == 405


def test_without_a_server_no_route_is_offered(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "server", None)
    assert web_routes.add_routes.__wrapped__() is False


@pytest.fixture
def odd_files(server):
    """Links that lead nowhere and round in circles, beside what ComfyUI lists and beside runs."""
    models, runs = server.folder / "models" / "bestiary", server.folder / "output" / "bestiary"
    runs.mkdir(parents=True, exist_ok=True)
    made = {
        models / "dangling.safetensors": models / "nowhere.safetensors",
        models / "circle.safetensors": models / "circle.safetensors",
        models / "round": models,
        runs / "gone": runs / "nowhere",
        runs / "self": runs / "self",
    }
    for link, target in made.items():
        link.symlink_to(target)
    (runs / "half").mkdir()
    (runs / "half" / "config.resolved.toml").symlink_to(runs / "nowhere.toml")
    yield
    for link in made:
        link.unlink()
    shutil.rmtree(runs / "half")


def test_links_that_lead_nowhere_or_round_in_circles_are_passed_over(server, odd_files):
    listed = server.get("/bestiary/dictionaries")
    assert listed.ok and SHIPPED_NAME in {entry["name"] for entry in listed.json()["dictionaries"]}
    for route in ("dictionary", "thumbnails", "spectrum"):
        for name in ("dangling.safetensors", "circle.safetensors"):
            assert server.get(f"/bestiary/{route}/{name}").status_code == 404
    for name in ("gone", "self", "half"):
        assert server.get(f"/bestiary/run/{name}").status_code == 404
        assert server.get(f"/bestiary/newest_run/{name}").json() == {"run": None}
        assert server.get(f"/bestiary/run_picture/{name}?step=1").status_code == 404


@pytest.mark.parametrize("name", ["%ff", "%ed%a0%80", "a%00b", "%2e%2e%2f", "x" * 3000])
def test_names_that_no_file_has_are_no_servers_fault(server, name):
    for route in ("dictionary", "thumbnails", "spectrum", "run", "newest_run", "run_picture", "discovered"):
        assert server.get(f"/bestiary/{route}/{name}").status_code in (200, 404)


HANDLERS = {
    "list_names": {},
    "show_dictionary": {"name": SHIPPED_NAME},
    "show_thumbnails": {"name": SHIPPED_NAME},
    "show_spectrum": {"name": SHIPPED_NAME},
    "show_newest_run": {"name": "seen"},
    "show_run": {"name": "seen"},
    "show_run_picture": {"name": "seen"},
}


def ask(handler: str, match: dict[str, str]) -> object:
    """What a handler answers without a server."""
    request = SimpleNamespace(match_info=match, query={"step": "1"}, headers={}, path=f"/{handler}")
    return asyncio.run(getattr(web_routes, handler)(request))


@pytest.mark.parametrize("handler", HANDLERS)
def test_the_disk_is_looked_at_off_the_event_loop(handler, monkeypatch):
    import os

    threads: set[int] = set()
    stat, scandir = os.stat, os.scandir

    def noted(work):
        def call(*given, **named):
            threads.add(threading.get_ident())
            return work(*given, **named)

        return call

    ask(handler, HANDLERS[handler])  # modules are read once
    monkeypatch.setattr(os, "stat", noted(stat))
    monkeypatch.setattr(os, "scandir", noted(scandir))
    answer = ask(handler, HANDLERS[handler])
    assert answer.status in (200, 404, 422)
    assert threads and threading.get_ident() not in threads


def test_a_file_that_vanishes_between_two_looks_is_told(monkeypatch):
    monkeypatch.setattr(web_routes, "concept_path", lambda name: SHIPPED / "nowhere.safetensors")
    assert ask("show_dictionary", {"name": SHIPPED_NAME}).status == 422
    listed = ask("list_names", {})
    assert listed.status == 200 and json.loads(listed.text)["dictionaries"] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot read /home/eva/my runs/x/config.toml: broken", "config.toml: broken"),
        ("no file 'a/b' in models/bestiary", "no file 'a/b' in models/bestiary"),
        ("D:\\models\\bestiary\\birds.safetensors is broken", "birds.safetensors is broken"),
        ("see https://host/path/page for more", "see https://host/path/page for more"),
        ("half of 1/2/3", "half of 1/2/3"),
    ],
)
def test_messages_name_no_folder_of_the_machine(text, told, monkeypatch):
    monkeypatch.setattr(web_routes, "_folders", lambda: ["/home/eva/my runs", "/home/eva"])
    assert web_routes._plain_fault(BestiaryError(text)).endswith(told)
    assert "/home" not in web_routes._plain_fault(BestiaryError(text))
