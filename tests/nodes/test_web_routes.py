"""Tests of the browser's routes against a running server: what they give, cache and refuse."""

import io
import shutil
import struct
from urllib.parse import quote

import pytest
from bestiary.nodes import web_routes
from bestiary.nodes.concept_folders import SHIPPED
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
    assert answer.json()["error"] == "giant.safetensors is no safetensors file, or it is cut off (10 bytes)"


def test_nothing_but_reading_is_offered(server):
    for method in ("/bestiary/dictionaries", f"/bestiary/dictionary/{SHIPPED_NAME}"):
        assert server.post(method).status_code == 405


def test_without_a_server_no_route_is_offered(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "server", None)
    assert web_routes.add_routes.__wrapped__() is False
