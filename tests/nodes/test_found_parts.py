"""Discoveries are kept: edits repeat none, few are kept, and an editor is shown what was found and what became of it."""

import io
from dataclasses import replace

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.parts.part_map import ABSENT
from bestiary.concepts.patch_features import DescriptorFeatures
from bestiary.nodes import found_parts
from bestiary.nodes.discovery_job import DiscoveryChoice
from bestiary.nodes.found_parts import (
    EDGE,
    MOST_KEPT,
    AskedDiscovery,
    Discoveries,
    describe_discovery,
    discover_once,
    labels_of,
    picture_of,
)
from PIL import Image

CHOICE = DiscoveryChoice(num_parts=2, num_kinds=2, seed=4)


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestiary.concepts.parts.foreground._TRAINING_STEPS", 30)


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every discovery; none is kept before a test."""
    counted: list[int] = []
    find = found_parts.find_parts
    monkeypatch.setattr(found_parts, "DISCOVERIES", Discoveries())
    monkeypatch.setattr(found_parts, "find_parts", lambda *given: counted.append(1) or find(*given))
    return counted


def asked(images: torch.Tensor, **changes: object) -> AskedDiscovery:
    return replace(AskedDiscovery([images], None, DescriptorFeatures(image_size=64, grid=8), CHOICE), **changes)


def test_edits_repeat_no_discovery(drawn_images, runs):
    plain, key = discover_once(asked(drawn_images), "", "7")
    names = plain.codebook.part_names
    edited, same = discover_once(asked(drawn_images.clone()), f"rename {names[0]}, beak\ndrop beak:0", "7")
    again, _ = discover_once(asked(drawn_images), "", "7")
    assert runs == [1] and same == key
    assert edited.codebook.part_names[0] == "beak" and again.codebook.part_names == names
    kept = plain.seen[0].maps.codes[:, 0]
    expected = torch.where(kept == 0, ABSENT, torch.where(kept > 0, kept - 1, kept))
    assert torch.equal(edited.seen[0].maps.codes[:, 0], expected)
    assert edited.seen[0].part_names == edited.codebook.part_names
    assert torch.equal(again.images[0], plain.images[0])


def test_what_decides_the_result_makes_another_discovery(drawn_images, runs):
    mask = torch.zeros(8, 128, 128)
    mask[:, 32:96, 32:96] = 1
    model = object()
    others = [
        {"choice": replace(CHOICE, num_parts=3)},
        {"masks": [mask]},
        {"choice": replace(CHOICE, seed=5)},
        {"source": DescriptorFeatures(image_size=32, grid=8)},
        {"model": model},
    ]
    keys = {
        asked(drawn_images).key(),
        asked(drawn_images.flip(0)).key(),
        *(asked(drawn_images, **other).key() for other in others),
    }
    assert len(keys) == 2 + len(others)


def test_only_the_newest_are_kept(drawn_images, runs):
    keys = [discover_once(asked(drawn_images, choice=replace(CHOICE, seed=seed)), "", "7")[1] for seed in range(3)]
    assert len(runs) == 3 > MOST_KEPT
    with pytest.raises(BestiaryError, match="no longer in memory: run the graph again"):
        describe_discovery(keys[0], "")
    assert found_parts.DISCOVERIES.of_node("7") == keys[2]
    assert found_parts.DISCOVERIES.of_node("8") is None
    assert describe_discovery(keys[1], "")["key"] == keys[1]


def test_an_editor_sees_what_was_found_and_what_became_of_it(drawn_images):
    found, key = discover_once(asked(drawn_images), "", "7")
    names, maps = found.codebook.part_names, found.seen[0].maps
    left = [part for part in range(3) if part != found.codebook.background]
    facts = describe_discovery(key, f"merge {names[left[0]]}, {names[left[1]]}")
    assert (facts["pictures"], facts["total"], facts["fault"]) == (8, 8, None)
    assert [part["name"] for part in facts["found"]] == list(names)
    assert sum(part["share"] for part in facts["found"]) == pytest.approx(1, abs=1e-3)
    assert len(facts["edited"]) == 2 and facts["parts"][left[0]] == facts["parts"][left[1]]
    for part, described in enumerate(facts["found"]):
        assert described["background"] == (part == found.codebook.background)
        for kind, entry in enumerate(described["kinds"]):
            rows = (maps.codes[:, part] == kind).nonzero().flatten().tolist()
            assert (entry["count"], entry["example"]) == (len(rows), rows[0] if rows else None)


def test_a_faulty_line_is_told_beside_what_the_lines_before_gave(drawn_images):
    found, key = discover_once(asked(drawn_images), "", "7")
    facts = describe_discovery(key, f"rename {found.codebook.part_names[0]}, beak\ndrop nothing at all")
    assert facts["fault"]["line"] == 2 and "nothing at all" in facts["fault"]["text"]
    assert facts["edited"][0]["name"] == "beak"
    with pytest.raises(BestiaryError, match=r"edits, line 1 \('drop nothing'\)"):
        discover_once(asked(drawn_images), "drop nothing", "7")


def test_pictures_and_labels_are_those_looked_at(drawn_images):
    found, key = discover_once(asked(drawn_images), "", "7")
    picture = Image.open(io.BytesIO(picture_of(key, 3)))
    assert picture.format == "WEBP" and picture.size == (EDGE, EDGE)
    labels = Image.open(io.BytesIO(labels_of(key, 3)))
    assert labels.mode == "L" and list(labels.tobytes()) == found.seen[0].maps.labels[3].flatten().tolist()
    for read in (picture_of, labels_of):
        with pytest.raises(BestiaryError, match="picture 8: the editor shows 0 to 7"):
            read(key, 8)


# --- through the queue ----------------------------------------------------------------------------------------------


def graph(edits: str | None) -> dict:
    values = {"feature_source": "descriptor", "num_parts": 2, "num_kinds": 2, "seed": 5, "flip_foreground": False}
    values |= {} if edits is None else {"edits": edits}
    return {
        "drawn": {"class_type": "BestiaryDemoPictures", "inputs": {"count": 8, "species": 4, "seed": 3}},
        "found": {"class_type": "BestiaryDiscoverParts", "inputs": {"images": ["drawn", 0], **values}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["found", 3]}},
    }


def test_a_graph_shows_its_discovery_to_the_browser(server):
    info = server.get("/object_info/BestiaryDemoPictures").json()["BestiaryDemoPictures"]["input"]
    wanted = {name for place in info.values() for name in place}
    made = graph(None)
    made["drawn"]["inputs"] = {name: value for name, value in made["drawn"]["inputs"].items() if name in wanted}
    for name, spec in info.get("required", {}).items():
        made["drawn"]["inputs"].setdefault(name, spec[1].get("default") if isinstance(spec[0], str) else spec[0][0])
    plain = server.run(made)
    (shown,) = plain["found"]["bestiary_discovered"]
    assert server.get("/bestiary/discovered_by/found").json() == {"key": shown["key"]}
    facts = server.get(f"/bestiary/discovered/{shown['key']}").json()
    name = facts["found"][0]["name"]
    made["found"]["inputs"]["edits"] = f"rename {name}, beak"
    edited = server.run(made)
    assert edited["found"]["bestiary_discovered"] == [shown] and "beak" in edited["report"]["text"][0]
    made["found"]["inputs"]["edits"] = "drop <b>nothing</b>"
    assert "edits, line 1 ('drop <b>nothing</b>')" in server.fail(made)
    # pictures, their caching, and what is not there
    first = server.get(f"/bestiary/discovered/{shown['key']}/picture?number=0")
    assert first.headers["Content-Type"] == "image/webp"
    again = server.get(first.url.removeprefix(server.address), headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304
    assert server.get(f"/bestiary/discovered/{shown['key']}/labels?number=0").headers["Content-Type"] == "image/png"
    assert server.get(f"/bestiary/discovered/{shown['key']}/labels?number=x").status_code == 422
    assert server.get("/bestiary/discovered/00ff").status_code == 404
    long = server.get(f"/bestiary/discovered/{shown['key']}", params={"edits": "#" * 8001})
    assert not long.ok
