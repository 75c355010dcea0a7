"""Tests of the example workflows: previews, values, conversion, runs through the queue and by comfy-cli, and old releases."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image, ImageStat

ROOT = Path(__file__).parent.parent.parent
WORKFLOWS, TWINS = ROOT / "example_workflows", ROOT / "tests" / "workflows"
RELEASES = sorted((TWINS / "released").glob("*"))
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
NEED_FILES = {
    "sd15_mix_parts": {("CheckpointLoaderSimple", "ckpt_name"), ("BestiaryLoadDictionary", "file")},
    "deepfloyd_if_cascade": {("CheckpointLoaderSimple", "ckpt_name"), ("BestiaryLoadIF", "folder")},
    "scene_sdxl_inpaint": {
        ("UNETLoader", "unet_name"),
        ("DualCLIPLoader", "clip_name1"),
        ("DualCLIPLoader", "clip_name2"),
        ("VAELoader", "vae_name"),
        ("LoadImage", "image"),
    },
    "scene_qwen_edit": {("UNETLoader", "unet_name"), ("CLIPLoader", "clip_name"), ("VAELoader", "vae_name")},
}
"""Values that name files which people bring themselves."""
TYPES = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
COMFY = shutil.which("comfy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
needs_comfy_cli = pytest.mark.skipif(COMFY is None, reason="comfy-cli is not there: pip install comfy-cli")


def workflow_of(name: str, folder: Path = WORKFLOWS) -> dict:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def twin_of(name: str, folder: Path = TWINS) -> dict:
    return json.loads((folder / f"{name}.api.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def object_info(server) -> dict:
    return server.get("/object_info").json()


@pytest.fixture(scope="module")
def maker() -> Iterator[object]:
    """The script that writes the examples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        import make_workflows

        yield make_workflows


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_example_has_a_small_preview_and_a_twin(name):
    content = (WORKFLOWS / f"{name}.jpg").read_bytes()
    assert len(content) <= 60_000
    preview = Image.open(io.BytesIO(content)).convert("RGB")
    assert preview.size == (640, 480)
    assert max(ImageStat.Stat(preview).stddev) > 10
    assert twin_of(name)


def test_the_template_to_start_with_stands_first(server):
    listed = server.get("/workflow_templates").json()["ComfyUI-Bestiary"]
    assert listed == ["mix_four_species", *sorted(set(NAMES) - {"mix_four_species"})]
    assert server.get("/api/workflow_templates").json()["ComfyUI-Bestiary"] == listed


def test_nothing_else_lies_beside_the_examples():
    assert {path.name for path in WORKFLOWS.iterdir()} == {
        f"{name}.{kind}" for name in NAMES for kind in ("json", "jpg")
    }
    assert {path.name for path in TWINS.glob("*.json")} == {f"{name}.api.json" for name in NAMES}


def test_the_files_are_what_the_script_makes_of_the_shipped_dictionary(maker, object_info):
    """Fails after the dictionary changed; then run docs/make_workflows.py again."""
    assert set(NAMES) == set(maker.EXAMPLES)
    shipped = maker.read_shipped()
    for name in NAMES:
        graph, _ = maker.build(name, object_info, shipped)
        assert graph.ui() == workflow_of(name), name
        # names of core nodes change between ComfyUIs: the titles of ours are in the first
        assert untitled(graph.api()) == untitled(twin_of(name)), name


def untitled(api: dict) -> dict:
    return {number: {key: value for key, value in node.items() if key != "_meta"} for number, node in api.items()}


def test_a_misspelt_input_or_node_stops_the_script(maker, object_info):
    graph = maker.Graph("wrong", object_info, "0")
    graph.group("group", "parts")
    with pytest.raises(KeyError, match="has no input 'knid'"):
        graph.add("BestiaryPart", knid="3")
    with pytest.raises(KeyError, match="no node 'BestiaryPrat'"):
        graph.add("BestiaryPrat")
    with pytest.raises(KeyError, match="has no output 'parrot'"):
        graph.add("BestiaryPart")["parrot"]


@pytest.mark.parametrize("name", NAMES)
def test_blocks_lie_inside_their_groups_and_not_on_each_other(name):
    workflow = workflow_of(name)
    frames = [group["bounding"] for group in workflow["groups"]]
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    for x, y, width, height in boxes:
        assert any(
            x >= left and y - 30 >= top and x + width <= left + wide and y + height <= top + tall
            for left, top, wide, tall in frames
        )
    for number, (x, y, width, height) in enumerate(boxes):
        for left, top, wide, tall in boxes[:number]:
            assert x >= left + wide or left >= x + width or y - 30 >= top + tall or top - 30 >= y + height


# --- values --------------------------------------------------------------------------------------------------------


def faults_of(twin: dict, object_info: dict, free: set[tuple[str, str]] = frozenset()) -> list[str]:
    """What is wrong with a graph in API form, by the server's own list of nodes; `free` values are not looked at."""
    faults = []
    for number, node in twin.items():
        kind = node["class_type"]
        if kind not in object_info:
            faults.append(f"{number}: no node {kind}")
            continue
        asked = object_info[kind]["input"]
        declared = {**asked.get("required", {}), **asked.get("optional", {})}
        faults += [f"{number}: {kind} has no input {name}" for name in node["inputs"] if name not in declared]
        faults += [f"{number}: {kind} lacks {name}" for name in asked.get("required", {}) if name not in node["inputs"]]
        for name, value in node["inputs"].items():
            if name in declared and (kind, name) not in free:
                faults += [
                    f"{number}: {kind} {name} {fault}"
                    for fault in _value_faults(value, declared[name], twin, object_info)
                ]
    return faults


def _value_faults(value: object, spec: list, twin: dict, object_info: dict) -> list[str]:
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if isinstance(value, list):
        source = twin.get(value[0])
        if source is None or source["class_type"] not in object_info:
            return [f"is linked to nothing, {value}"]
        given = object_info[source["class_type"]]["output"][value[1]]
        return [] if "*" in (kind, given) or given == kind else [f"is linked to a {given}"]
    choices = kind if isinstance(kind, list) else options.get("options")
    if choices is not None:
        return [] if value in choices else [f"{value!r} is no choice"]
    if kind not in TYPES or not isinstance(value, TYPES[kind]) or (kind != "BOOLEAN" and isinstance(value, bool)):
        return [f"{value!r} is no {kind}"]
    outside = kind in ("INT", "FLOAT") and not options.get("min", value) <= value <= options.get("max", value)
    return [f"{value!r} is out of range"] if outside else []


@pytest.mark.parametrize("name", NAMES)
def test_every_node_and_value_is_known_to_the_server(name, object_info):
    assert faults_of(twin_of(name), object_info, NEED_FILES.get(name, frozenset())) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda node: node["inputs"].update(kidn="3"), "BestiaryPart has no input kidn"),
        (lambda node: node["inputs"].pop("kind"), "BestiaryPart lacks kind"),
        (lambda node: node["inputs"].update(weight=99), "BestiaryPart weight 99 is out of range"),
        (lambda node: node["inputs"].update(weight="1"), "BestiaryPart weight '1' is no FLOAT"),
        (lambda node: node["inputs"].update(dictionary=["2", 0]), "BestiaryPart dictionary is linked to a MODEL"),
        (lambda node: node.update(class_type="BestiaryPrat"), "no node BestiaryPrat"),
    ],
)
def test_a_misspelt_workflow_is_found(change, fault, object_info):
    twin = twin_of("mix_four_species")
    change(next(node for node in twin.values() if node["class_type"] == "BestiaryPart"))
    assert any(fault in found for found in faults_of(twin, object_info))


# --- comfy-cli -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    """comfy-cli on settings of its own, without network: (arguments) -> exit code and the last line as JSON."""
    home = tmp_path_factory.mktemp("comfy-cli")
    names = {name: str(home) for name in ("HOME", "USERPROFILE", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    environment = {**os.environ, **names, "COMFY_CLI_NO_REMOTE_REFRESH": "1"}

    def run(*arguments: object, folder: Path = home) -> tuple[int, dict]:
        command = [COMFY, "--skip-prompt", *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
        last = next((line for line in reversed(done.stdout.splitlines()) if line.startswith("{")), "{}")
        return done.returncode, {**json.loads(last), "text": done.stdout + done.stderr}

    run("tracking", "disable")
    return run


@pytest.fixture(scope="module")
def place(server) -> list[str]:
    host, port = server.address.removeprefix("http://").split(":")
    return ["--host", host, "--port", port]


def _conversion(comfy, place: list[str], path: Path) -> dict:
    code, answer = comfy("run", "--workflow", path, *place, "--print-prompt")
    assert code == 0, answer["text"]
    return {number: (node["class_type"], node["inputs"]) for number, node in answer["data"]["prompt"].items()}


@needs_comfy_cli
@pytest.mark.parametrize("name", NAMES)
def test_the_twin_is_what_the_workflow_converts_to(name, comfy, place):
    twin = {number: (node["class_type"], node["inputs"]) for number, node in twin_of(name).items()}
    assert _conversion(comfy, place, WORKFLOWS / f"{name}.json") == twin


@needs_comfy_cli
@pytest.mark.parametrize("name", NAMES)
def test_comfy_cli_finds_no_fault_offline(name, comfy, object_info, tmp_path):
    known = copy.deepcopy(object_info)
    for node in twin_of(name).values():
        for kind, field in NEED_FILES.get(name, ()):
            if node["class_type"] == kind:
                spec = known[kind]["input"]["required"][field]
                (spec[0] if isinstance(spec[0], list) else spec[1]["options"]).append(node["inputs"][field])
    recorded = tmp_path / "object_info.json"
    recorded.write_text(json.dumps(known), encoding="utf-8")
    code, answer = comfy("workflow", "validate", "--workflow", TWINS / f"{name}.api.json", "--input", recorded)
    assert (code, answer["data"]["errors"], answer["data"]["warnings"]) == (0, [], [])


@needs_comfy_cli
def test_one_seed_gives_one_latent_by_queue_and_by_comfy_cli_from_both_forms(
    comfy, place, server, object_info, maker, tmp_path
):
    shipped, latents = maker.read_shipped(), []
    for way in ("queue", "api", "ui"):
        graph, _ = maker.build("mix_four_species", object_info, shipped)
        sampler = next(node for node in graph.nodes if node.kind == "KSampler")
        sampler.inputs["steps"] = 3
        # another name for the dictionary, so that nothing comes out of the server's cache
        next(node for node in graph.nodes if node.kind == "BestiaryLoadDictionary").inputs["name"] = way
        graph.add("SaveLatent", samples=sampler["LATENT"], filename_prefix=f"one_seed/{way}")
        if way == "queue":
            server.run(graph.api())
        else:
            path = tmp_path / f"{way}.json"
            path.write_text(json.dumps(graph.ui() if way == "ui" else graph.api()), encoding="utf-8")
            code, answer = comfy("run", "--workflow", path, "--wait", *place, "--json")
            assert (code, answer["ok"], answer["data"]["status"]) == (0, True, "completed"), answer["text"]
            assert str(sampler.id) in answer["data"]["executed_node_ids"]
            assert len(answer["data"]["outputs_by_node"]) == 2
        (file,) = (server.folder / "output" / "one_seed").glob(f"{way}_*.latent")
        latents.append(safetensors.torch.load_file(file)["latent_tensor"])  # (B, 8, 16, 16)
    assert latents[0].std() > 0.1
    assert torch.equal(latents[1], latents[0]) and torch.equal(latents[2], latents[0])


@needs_comfy_cli
def test_comfy_cli_prints_our_message(comfy, place, tmp_path):
    workflow = workflow_of("mix_four_species")
    part = next(node for node in workflow["nodes"] if node["type"] == "BestiaryPart")
    part["widgets_values"][1] = "unicorn"
    (tmp_path / "wrong.json").write_text(json.dumps(workflow), encoding="utf-8")
    code, answer = comfy("run", "--workflow", tmp_path / "wrong.json", "--wait", *place, "--json")
    assert code != 0 and not answer["ok"]
    assert "BestiaryPart" in answer["error"]["message"] and "unknown kind 'unicorn'" in answer["error"]["message"]


# --- runs ----------------------------------------------------------------------------------------------------------


def quickened(twin: dict) -> dict:
    """The same graph with few steps and pictures, so that it is done in seconds."""
    quick = copy.deepcopy(twin)
    most = {"steps": 2, "batch_size": 1, "count": 10, "num_kinds": 3, "preview_every": 2}
    for node in quick.values():
        found = {name: value for name, value in node["inputs"].items() if name in most and isinstance(value, int)}
        node["inputs"] |= {name: min(value, most[name]) for name, value in found.items()}
        if "more_settings" in node["inputs"]:
            node["inputs"]["more_settings"] += "\nrun.preview_steps = 1\nrun.preview_count = 1"
    return quick


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEED_FILES])
def test_it_runs_through_the_queue(name, server, object_info):
    check_run(quickened(twin_of(name)), server, object_info)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEED_FILES])
def test_it_runs_through_the_queue_as_it_is(name, server, object_info):
    check_run(twin_of(name), server, object_info)


def check_run(twin: dict, server, object_info: dict) -> None:
    """The graph ends well, every output node shows something, and its pictures can be opened."""
    outputs = server.run(twin, 1200)
    shown = {number for number, node in twin.items() if object_info[node["class_type"]]["output_node"]}
    assert shown and shown <= set(outputs)
    pictures = [place for entry in outputs.values() for place in entry.get("images", [])]
    assert pictures
    for place in pictures:
        picture = Image.open(io.BytesIO(server.get("/view", params=place).content))
        assert min(picture.size) >= 64


# --- releases ------------------------------------------------------------------------------------------------------


def broken_promises(before: dict, info: dict) -> list[str]:
    """What workflows of an earlier release relied on and a node no longer keeps."""
    asked = info["input"]
    now, then = {**asked.get("required", {}), **asked.get("optional", {})}, {**before["required"], **before["optional"]}
    broken = []
    if list(now)[: len(then)] != list(then):
        broken.append(f"inputs {list(then)} became {list(now)}")
    broken += [f"new input {name} is required" for name in asked.get("required", {}) if name not in before["required"]]
    for name, held in then.items():
        spec = now.get(name, [None])
        found = ["COMBO" if isinstance(spec[0], list) else spec[0], spec[1].get("default") if len(spec) > 1 else None]
        # a saved workflow holds a value for every required menu: what new blocks begin with may change
        menu = name in before["required"] and held[0] == "COMBO"
        same = found[0] == held[0] if menu else found == held
        broken += [] if same else [f"{name} was {held}, is {found}"]
    for field, kept in (("output", before["outputs"]), ("output_is_list", before["lists"])):
        broken += [f"{field} {kept} became {info[field]}"] if info[field][: len(kept)] != kept else []
    return broken


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_workflows_of_earlier_releases_still_fit(release, object_info):
    """Names of parts and kinds in them may be gone with an older dictionary; what the nodes take may not."""
    old = json.loads((release / "interface.json").read_text(encoding="utf-8"))
    broken = {kind: broken_promises(before, object_info[kind]) for kind, before in old.items()}
    assert {kind: faults for kind, faults in broken.items() if faults} == {}
    for path in release.glob("*.api.json"):
        name = path.name.removesuffix(".api.json")
        assert faults_of(twin_of(name, release), object_info, NEED_FILES.get(name, frozenset())) == [], path.name


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda node: node["input"]["required"].pop("kind"), "kind was"),
        (lambda node: node["input"]["required"].update(feather=["FLOAT", {}]), "new input feather is required"),
        (lambda node: node["input"].update(optional={"new": ["INT", {}], **node["input"]["optional"]}), "inputs"),
        (lambda node: node["input"]["required"].update(weight=["INT", {"default": 1}]), "weight was"),
        (lambda node: node["input"]["required"]["weight"][1].update(default=2.0), "weight was"),
        (lambda node: node["output"].reverse(), "output ["),
    ],
)
def test_a_broken_promise_is_found(change, fault, object_info, maker):
    node = copy.deepcopy(object_info["BestiaryPart"])
    before = maker.interface(node)
    before = json.loads(json.dumps(before))
    assert broken_promises(before, node) == []
    node["input"]["optional"]["added_later"] = ["INT", {"default": 0}]
    assert broken_promises(before, node) == []
    change(node)
    assert any(found.startswith(fault) for found in broken_promises(before, node))


@needs_comfy_cli
@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_workflows_of_earlier_releases_load_with_their_values(release, comfy, place):
    for path in sorted(release.glob("*.api.json")):
        name = path.name.removesuffix(".api.json")
        loaded = _conversion(comfy, place, release / f"{name}.json")
        for number, node in twin_of(name, release).items():
            kind, inputs = loaded[number]
            assert kind == node["class_type"]
            # inputs added since then come besides
            assert {field: inputs.get(field) for field in node["inputs"]} == node["inputs"], f"{path.name} {number}"
