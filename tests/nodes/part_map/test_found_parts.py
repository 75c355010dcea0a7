"""Discoveries are kept: edits repeat none, few are kept, and an editor is shown what was found and what became of it."""

import base64
import gc
import io
import sys
import weakref
import zlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features.patch_features import DescriptorFeatures
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_map.part_map import ABSENT
from bestiary.concepts.pictures.part_overlay import part_color
from bestiary.nodes.host.socket_types import NamedCodebook
from bestiary.nodes.part_map import found_parts
from bestiary.nodes.part_map.discovery_job import DiscoveryChoice
from bestiary.nodes.part_map.found_parts import (
    AskedDiscovery,
    describe_discovery,
    discover_once,
    labels_of,
    picture_of,
)
from bestiary.nodes.part_map.kept_discoveries import EDGE, MOST_KEPT, BlockPlace, Discoveries, DiscoveryGone
from bestiary.nodes.part_map.part_drawing import found_overlays, legend
from PIL import Image

CHOICE = DiscoveryChoice(num_parts=2, num_kinds=2, seed=4)


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


HERE = BlockPlace("a workflow", "12:7")


def test_edits_repeat_no_discovery(drawn_images, runs):
    plain, key = discover_once(asked(drawn_images), "", HERE)
    names = plain.codebook.part_names
    edited, same = discover_once(asked(drawn_images.clone()), f"rename {names[0]}, beak\ndrop beak:0", HERE)
    again, _ = discover_once(asked(drawn_images), "", HERE)
    assert runs == [1] and same == key
    assert edited.codebook.part_names[0] == "beak" and again.codebook.part_names == names
    kept = plain.seen[0].maps.codes[:, 0]
    expected = torch.where(kept == 0, ABSENT, torch.where(kept > 0, kept - 1, kept))
    assert torch.equal(edited.seen[0].maps.codes[:, 0], expected)
    # pictures of the kind that is gone do not show the part any more
    assert not (edited.seen[0].maps.labels[kept == 0] == 0).any()
    assert torch.equal(edited.seen[0].maps.labels[kept != 0], plain.seen[0].maps.labels[kept != 0])
    assert edited.seen[0].part_names == edited.codebook.part_names
    assert torch.equal(again.images[0], plain.images[0])


def test_overlays_keep_the_colours_of_the_parts_that_stay(drawn_images):
    plain, key = discover_once(asked(drawn_images), "", HERE)
    first, second = (name for part, name in enumerate(plain.codebook.part_names) if part != plain.codebook.background)
    number = plain.codebook.part_names.index(second)
    edited, _ = discover_once(asked(drawn_images), f"drop {first}", HERE)
    (entry,) = legend(edited.seen[0], 0, lambda picture, part: edited.codebook.part_names[part])
    assert (entry.text, entry.color) == (second, part_color(number))
    # in the picture, too: the patches of the part look as before
    before, after = (found_overlays(found)[0][0] for found in (plain, edited))  # (H', W', 3)
    shown = plain.seen[0].areas(0, (512, 512))[number] == 1  # (H, W)
    assert shown.any() and torch.equal(before[:512][shown], after[:512][shown])
    # as the editor colours them
    described = describe_discovery(key, f"drop {first}")
    assert described["parts"].index(described["parts"][number]) == number


def test_pictures_of_several_sizes_keep_their_maps(drawn_images, runs):
    wide = torch.nn.functional.pad(drawn_images[:3], (0, 0, 20, 20), value=0.5)
    images = [drawn_images, wide]
    plain, _ = discover_once(replace(asked(drawn_images), images=images), "", HERE)
    edited, _ = discover_once(
        replace(asked(drawn_images), images=images), f"rename {plain.codebook.part_names[0]}, beak", HERE
    )
    assert runs == [1]
    for ours, theirs in zip(edited.seen, plain.seen, strict=True):
        assert ours.size == theirs.size and ours.fit == theirs.fit
        assert torch.equal(ours.maps.labels, theirs.maps.labels) and torch.equal(ours.maps.codes, theirs.maps.codes)
    assert [len(seen.maps.labels) for seen in edited.seen] == [8, 3] and edited.seen[1].size == (128, 168)


def test_joined_parts_get_as_many_kinds_as_were_asked_for(drawn_images):
    with torch.inference_mode():  # as nodes run
        found, key = discover_once(asked(drawn_images, choice=replace(CHOICE, num_parts=3)), "", HERE)
        names = [name for name in found.codebook.part_names if name != "background"]
        joined, _ = discover_once(
            asked(drawn_images, choice=replace(CHOICE, num_parts=3)), f"merge {names[0]}, {names[1]}", HERE
        )
    assert joined.codebook.num_kinds[0] == CHOICE.num_kinds
    first = found_parts.DISCOVERIES.get(key).found.found
    means = first.joined(describe_discovery(key, f"merge {names[0]}, {names[1]}")["parts"], 0)
    alone = replace(joined.codebook, part_names=("all",), background=0)
    alone = replace(alone, fine=joined.codebook.fine[:1], kind_centers=joined.codebook.kind_centers[:1])
    assert torch.equal(alone.kind_of(means.means.float(), means.counts)[:, 0], joined.seen[0].maps.codes[:, 0])


class Model:
    """Known by its identity."""


def test_what_decides_the_result_makes_another_discovery(drawn_images, runs):
    mask = torch.zeros(8, 128, 128)
    mask[:, 32:96, 32:96] = 1
    models = [Model(), Model()]
    others = [
        {"choice": replace(CHOICE, num_parts=3)},
        {"masks": [mask]},
        {"choice": replace(CHOICE, seed=5)},
        {"source": DescriptorFeatures(image_size=32, grid=8)},
        *({"model": model} for model in models),
    ]
    keys = {
        asked(drawn_images).key(),
        asked(drawn_images.flip(0)).key(),
        *(asked(drawn_images, **other).key() for other in others),
    }
    assert len(keys) == 2 + len(others)
    assert asked(drawn_images, model=models[0]).key() in keys


def test_a_model_is_not_kept_alive(drawn_images):
    model = Model()
    gone = weakref.ref(model)
    discover_once(asked(drawn_images, model=model), "", HERE)
    del model
    gc.collect()
    assert gone() is None


def test_only_the_newest_are_kept(drawn_images, runs):
    keys = [discover_once(asked(drawn_images, choice=replace(CHOICE, seed=seed)), "", HERE)[1] for seed in range(3)]
    assert len(runs) == 3 > MOST_KEPT
    for read in (describe_discovery, lambda key, text: picture_of(key, 0), lambda key, text: labels_of(key, 0)):
        with pytest.raises(DiscoveryGone, match="no longer in memory: run the graph again"):
            read(keys[0], "")
    assert describe_discovery(keys[1], "")["key"] == keys[1]


def test_a_block_is_known_by_its_workflow_and_number(drawn_images):
    first = discover_once(asked(drawn_images), "", HERE)[1]
    other = discover_once(asked(drawn_images, choice=replace(CHOICE, seed=1)), "", BlockPlace("another", "7"))[1]
    newest = found_parts.DISCOVERIES.newest_of
    assert newest(HERE) == first == newest(BlockPlace("a workflow", ":7"))
    assert newest(BlockPlace("another", "7")) == other
    strangers = [("a workflow", "2"), ("a workflow", "7"), ("", "7"), ("another", "12:7"), ("another", ":7")]
    strangers += [("a workflow", ":2")]
    assert [newest(BlockPlace(*place)) for place in strangers] == [None] * len(strangers)


def test_a_page_finds_its_own_discovery_before_those_of_others(drawn_images):
    pages = [BlockPlace("a workflow", "7", client) for client in ("one page", "another")]
    first = discover_once(asked(drawn_images), "", pages[0])[1]
    second = discover_once(asked(drawn_images, choice=replace(CHOICE, seed=1)), "", pages[1])[1]
    newest = found_parts.DISCOVERIES.newest_of
    assert [newest(page) for page in pages] == [first, second]
    assert newest(BlockPlace("a workflow", "7", "a third")) == second


def test_what_a_graph_still_holds_is_not_forgotten(drawn_images, runs):
    held, key = discover_once(asked(drawn_images), "", HERE)
    named = NamedCodebook("discovered", held.codebook, held.origin)
    del held
    for seed in range(1, 4):
        discover_once(asked(drawn_images, choice=replace(CHOICE, seed=seed)), "", BlockPlace("a workflow", f"{seed}"))
    gc.collect()
    assert found_parts.DISCOVERIES.newest_of(HERE) == key and describe_discovery(key, "")["fault"] is None
    assert discover_once(asked(drawn_images), "", HERE)[1] == key and len(runs) == 4
    for seed in range(5, 7):
        discover_once(asked(drawn_images, choice=replace(CHOICE, seed=seed)), "", None)
    assert named.origin is not None
    del named
    gc.collect()
    assert not found_parts.DISCOVERIES.has(key)


def test_a_place_names_the_page_that_asked(monkeypatch):
    server = SimpleNamespace(PromptServer=SimpleNamespace(instance=SimpleNamespace(client_id="a page")))
    monkeypatch.setitem(sys.modules, "server", server)
    assert BlockPlace.of("7", None) == BlockPlace("", "7", "a page")


@pytest.mark.parametrize(
    ("node", "png_info", "place"),
    [
        ("7", {"workflow": {"id": "a workflow"}}, BlockPlace("a workflow", "7")),
        ("7", {"workflow": {}}, BlockPlace("", "7")),
        (7, {"workflow": "hand made"}, BlockPlace("", "7")),
        ("7", None, BlockPlace("", "7")),
        ("7" * 500, {"workflow": {"id": ["x"] * 500}}, BlockPlace(str(["x"] * 500)[:100], "7" * 100)),
        (None, {"workflow": {"id": "a workflow"}}, None),
    ],
)
def test_a_place_is_read_from_what_comes_with_a_graph(monkeypatch, node, png_info, place):
    monkeypatch.setitem(sys.modules, "server", None)
    assert BlockPlace.of(node, png_info) == place


def test_faulty_edits_lose_no_discovery(drawn_images, runs):
    with pytest.raises(BestiaryError, match=r"edits, line 1 \('drop nothing'\)"):
        discover_once(asked(drawn_images), "drop nothing", HERE)
    key = found_parts.DISCOVERIES.newest_of(HERE)
    assert describe_discovery(key, "")["fault"] is None
    assert discover_once(asked(drawn_images), "", HERE)[1] == key and runs == [1]


def test_an_editor_sees_what_was_found_and_what_became_of_it(drawn_images):
    found, key = discover_once(asked(drawn_images), "", HERE)
    names, maps = found.codebook.part_names, found.seen[0].maps
    left = [part for part in range(3) if part != found.codebook.background]
    plain = describe_discovery(key, "")
    assert (plain["pictures"], plain["total"], plain["fault"]) == (8, 8, None)
    assert [part["name"] for part in plain["edited"]] == list(names)
    assert sum(part["share"] for part in plain["edited"]) == pytest.approx(1, abs=1e-3)
    for part, described in enumerate(plain["edited"]):
        assert described["background"] == (part == found.codebook.background)
        assert described["share"] == pytest.approx(float((maps.labels == part).float().mean()), abs=1e-4)
        for kind, entry in enumerate(described["kinds"]):
            rows = (maps.codes[:, part] == kind).nonzero().flatten().tolist()
            assert (entry["count"], entry["example"]) == (len(rows), rows[0] if rows else None)
    merged = describe_discovery(key, f"merge {names[left[0]]}, {names[left[1]]}")
    assert len(merged["edited"]) == 2 and merged["parts"][left[0]] == merged["parts"][left[1]]
    assert sum(part["share"] for part in merged["edited"]) == pytest.approx(1, abs=1e-3)


def test_a_faulty_line_is_told_beside_what_the_lines_before_gave(drawn_images):
    found, key = discover_once(asked(drawn_images), "", HERE)
    facts = describe_discovery(key, f"rename {found.codebook.part_names[0]}, beak\ndrop nothing at all")
    assert facts["fault"]["line"] == 2 and "nothing at all" in facts["fault"]["text"]
    assert facts["fault"]["text"].endswith(facts["fault"]["cause"]) and "line 2" not in facts["fault"]["cause"]
    assert facts["edited"][0]["name"] == "beak"


def test_pictures_and_labels_are_those_looked_at(drawn_images):
    found, key = discover_once(asked(drawn_images), "", HERE)
    picture = Image.open(io.BytesIO(picture_of(key, 3)))
    assert picture.format == "WEBP" and picture.size == (EDGE, EDGE)
    labels = Image.open(io.BytesIO(labels_of(key, 3)))
    assert labels.mode == "L" and list(labels.tobytes()) == found.seen[0].maps.labels[3].flatten().tolist()
    for read in (picture_of, labels_of):
        with pytest.raises(BestiaryError, match="picture 8 is out of range: the editor shows pictures 0 to 7"):
            read(key, 8)


# --- through the queue ----------------------------------------------------------------------------------------------


def graph(edits: str | None) -> dict:
    values = {"feature_source": "descriptor", "num_parts": 2, "num_kinds": 2, "seed": 5, "flip_foreground": False}
    values |= {} if edits is None else {"edits": edits}
    return {
        "drawn": {"class_type": "BestiaryDemoPictures", "inputs": {"count": 8, "seed": 3}},
        "found": {"class_type": "BestiaryDiscoverParts", "inputs": {"images": ["drawn", 0], **values}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["found", 3]}},
    }


@pytest.fixture(scope="module")
def shown(server) -> dict:
    """What a finished graph tells the browser."""
    (told,) = server.run(graph(None))["found"]["bestiary_discovered"]
    return told


def test_a_graph_shows_its_discovery_to_the_browser(server, shown):
    place = "/bestiary/newest_discovery/found?client=tests"
    assert server.get(place).json() == {"key": shown["key"]} and shown["edits"] == ""
    for stranger in (f"{place}&workflow=another", "/bestiary/newest_discovery/7"):
        assert server.get(stranger).json() == {"key": None}
    name = server.get(f"/bestiary/discovered/{shown['key']}").json()["edited"][0]["name"]
    edited = server.run(graph(f"rename {name}, beak"))
    assert (
        edited["found"]["bestiary_discovered"] == [{**shown, "edits": f"rename {name}, beak"}]
        and "beak" in edited["report"]["text"][0]
    )
    assert "edits, line 1 ('drop <b>nothing</b>')" in server.fail(graph("drop <b>nothing</b>"))


def test_all_that_follows_sees_the_edited_parts(server, shown):
    parts = server.get(f"/bestiary/discovered/{shown['key']}").json()["edited"]
    first, second = [part["name"] for part in parts if not part["background"]][:2]
    made = graph(f"merge {first}, {second}\nrename {first}, thing\nrename thing:0, round")
    made["again"] = {"class_type": "BestiarySegmentParts", "inputs": {"images": ["drawn", 0], "codebook": ["found", 0]}}
    made["names"] = {"class_type": "PreviewAny", "inputs": {"source": ["again", 1]}}
    texts = server.run(made)["names"]["text"]
    assert "thing" in " ".join(texts) and first not in texts and second not in " ".join(texts)


def test_a_dictionary_is_learned_from_the_edited_parts(server, shown):
    parts = server.get(f"/bestiary/discovered/{shown['key']}").json()["edited"]
    first, second = [part["name"] for part in parts if not part["background"]][:2]
    made = graph(f"rename {first}, beak\nrename beak:0, round\ndrop beak:1\ndrop {second}")
    links = {"images": ["drawn", 0], "codebook": ["found", 0], "vae": ["demo", 2], "part_maps": ["found", 1]}
    training = {"name": "edited", "steps": 1, "batch_size": 1, "accumulation": 1, "token_lr": 0.001, "lora_lr": 0.0001}
    training |= {"attention_loss": "bce", "attention_weight": 0.01, "rank": 0, "seed": 0, "preview_every": 0}
    training |= {"recompute": False, "resume": "start anew", "training_set": ["set", 0]}
    model = {name: ["demo", slot] for slot, name in enumerate(("model", "clip", "vae"))}
    made |= {
        "demo": {"class_type": "BestiaryDemoModel", "inputs": {}},
        "set": {"class_type": "BestiaryTrainingImages", "inputs": {**links, "image_size": 0, "mirror": False}},
        "captions": {"class_type": "PreviewAny", "inputs": {"source": ["set", 1]}},
        "learned": {"class_type": "BestiaryTrainParts", "inputs": {**training, **model}},
        "saved": {
            "class_type": "BestiarySaveDictionary",
            "inputs": {"dictionary": ["learned", 0], "filename": "edited"},
        },
    }
    captions = server.run(made)["captions"]["text"][0].splitlines()
    learned = PartDictionary.load(server.folder / "models" / "bestiary" / "edited.safetensors")
    assert [name for n, name in enumerate(learned.part_names) if n != learned.background] == ["beak"]
    assert learned.kind_names[learned.part_names.index("beak")] == {0: "round"}
    # as many pictures show the beak as showed its first kind
    kinds = next(part for part in parts if part["name"] == first)["kinds"]
    assert sum("0:0" in line for line in captions) == kinds[0]["count"] < len(captions)


def test_edits_of_other_pictures_are_told_where_they_do_not_fit(server, shown):
    parts = server.get(f"/bestiary/discovered/{shown['key']}").json()["edited"]
    made = graph(f"rename {parts[0]['name']}, beak\ndrop part that is not here")
    made["drawn"]["inputs"]["seed"] = 11
    said = server.fail(made)
    assert "edits, line 2 ('drop part that is not here')" in said
    # they were found all the same, and can be looked at
    newer = server.get("/bestiary/newest_discovery/found?client=tests").json()["key"]
    assert newer != shown["key"] and server.get(f"/bestiary/discovered/{newer}/picture?number=0").status_code == 200


def test_pictures_are_kept_by_the_browser_and_what_is_gone_is_not_found(server, shown):
    place = f"/bestiary/discovered/{shown['key']}"
    for what, kind in (("picture", "image/webp"), ("labels", "image/png")):
        first = server.get(f"{place}/{what}?number=0")
        assert first.headers["Content-Type"] == kind
        again = server.get(f"{place}/{what}?number=0", headers={"If-None-Match": first.headers["ETag"]})
        assert again.status_code == 304
        assert server.get(f"{place}/{what}?number=x").status_code == 422
        assert server.get(f"{place}/{what}?number=99").status_code == 422
        assert server.get(f"/bestiary/discovered/00ff/{what}?number=0").status_code == 404
    assert server.get("/bestiary/discovered/00ff").status_code == 404


def packed(text: bytes) -> str:
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return base64.urlsafe_b64encode(squeeze.compress(text) + squeeze.flush()).decode()


def test_long_edits_travel_packed(server, shown):
    place = f"/bestiary/discovered/{shown['key']}"
    name = server.get(place).json()["edited"][0]["name"]
    names = [name, *(f"Schnäbelchen {count}" for count in range(400))]
    text = "\n".join(f"rename {old}, {new}" for old, new in zip(names, names[1:], strict=False))
    assert len(text) > 8190
    facts = server.get(place, params={"packed": packed(text.encode())}).json()
    assert facts["fault"] is None and facts["edited"][0]["name"] == names[-1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no deflate at all", "packed edits of 17 characters cannot be read"),
        (packed(b"\xff\xfe"), "cannot be read"),
        (packed(b"#" * 20_001), "the edits have 20001 characters, the limit is 20000"),
        (packed(b"#" * 50_000_000)[:6000], "the edits have 80001 characters, the limit is 20000"),
    ],
)
def test_packed_edits_that_cannot_be_read_are_refused(server, shown, text, words):
    answer = server.get(f"/bestiary/discovered/{shown['key']}", params={"packed": text})
    assert answer.status_code == 422 and words in answer.json()["error"]


def test_heights_of_parts_in_their_thing():
    # a thing of three rows above a row of background, and a picture that shows nothing
    labels = torch.tensor([[[0, 0], [1, 1], [1, 1], [2, 2]], [[2, 2], [2, 2], [2, 2], [2, 2]]])
    assert [found_parts._height(labels, part, 2) for part in (0, 1, 3)] == [-1.0, 0.5, None]
