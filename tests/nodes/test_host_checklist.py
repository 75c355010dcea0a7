"""Tests of what a host and its people expect of any pack: loading, folders, large files, metadata, help, publishing."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bestiary.concepts.files.concept_file import read_header
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.nodes.host.concept_folders import SHIPPED

ROOT = Path(__file__).parent.parent.parent
COMFY = shutil.which("comfy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
SHIPPED_DICTIONARY = SHIPPED / "creatures.safetensors"
MODEL_SPEC = {
    f"modelspec.{name}" for name in ("sai_model_spec", "architecture", "implementation", "title", "resolution")
}
RULES = "S102,S307,E702,S602,S605,S301"
"""What the registry forbids: exec, eval, several statements in a line, shells, pickles."""


def own_folder(server) -> Path:
    return server.folder / "models" / "bestiary"


# --- loading -------------------------------------------------------------------------------------------------------


def test_nodes_is_still_comfyuis_module():
    found = Path(importlib.util.find_spec("nodes").origin)
    assert found.name == "nodes.py" and (found.parent / "comfy").is_dir()


def test_the_pack_is_loaded_without_a_complaint(server):
    lines = server.log.read_text().partition("To see the GUI go to")[0].splitlines()  # what it says before any graph
    assert [line for line in lines if line.rstrip().endswith("ComfyUI-Bestiary") and "seconds" in line]
    assert [line for line in lines if "Bestiary" in line and re.search("FAILED|Error|Warning|Cannot", line)] == []


# --- files ---------------------------------------------------------------------------------------------------------


def test_the_folder_lists_safetensors_alone(server):
    for name in ("owls.webp", "owls.json", "owls.safetensors.tmp", "notes.txt"):
        (own_folder(server) / name).write_bytes(b"")
    listed = server.get("/models/bestiary").json()
    assert "creatures.safetensors" in listed
    assert [name for name in listed if not name.endswith(".safetensors")] == []


def test_a_dictionary_of_ten_thousand_parts_keeps_its_header_small(server):
    count = 10_000
    table = torch.randn(count, 128, generator=torch.Generator().manual_seed(0))  # (R, width)
    names = tuple(f"part of a rather long name {number}" for number in range(count))
    rows = torch.stack([torch.arange(count), torch.zeros(count, dtype=torch.long)], dim=1)  # (R, 2)
    kinds = tuple({0: f"kind {number}"} for number in range(count))
    path = own_folder(server) / "ten_thousand.safetensors"
    PartDictionary("bestiary-demo", names, kinds, None, rows, {"clip_l": table}).save(path)
    with path.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
    assert size < 1024 * 1024
    answer = server.get("/view_metadata/bestiary", params={"filename": path.name})
    assert answer.status_code == 200 and answer.json()["bestiary.kind"]
    part = {"dictionary": ["load", 2], "part": names[-1], "kind": "kind 9999", "weight": 1.0}
    graph = {
        "demo": {"class_type": "BestiaryDemoModel", "inputs": {}},
        "load": {
            "class_type": "BestiaryLoadDictionary",
            "inputs": {"model": ["demo", 0], "clip": ["demo", 1], "file": path.name, "lora_strength": 1.0},
        },
        "part": {"class_type": "BestiaryPart", "inputs": part},
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["part", 1]}},
    }
    assert "kind 9999" in server.run(graph)["show"]["text"][0]
    path.unlink()


def _file_choices(server) -> dict[tuple[str, str], list[str]]:
    """Every choice of our nodes that offers names of files, by node and input."""
    files = set(server.get("/models/bestiary").json())
    found = {}
    for kind, info in server.get("/object_info").json().items():
        for name, spec in {**info["input"].get("required", {}), **info["input"].get("optional", {})}.items():
            options = spec[0] if isinstance(spec[0], list) else (spec[1] if len(spec) > 1 else {}).get("options") or []
            if kind.startswith("Bestiary") and files & set(options):
                found[kind, name] = options
    return found


def _graph_around(server, kind: str, name: str, value: str) -> dict:
    """The node with that value; what it needs besides comes from the embedded model, or is its default."""
    known = server.get("/object_info").json()
    graph = {"demo": {"class_type": "BestiaryDemoModel", "inputs": {}}}
    sources = {"MODEL": ["demo", 0], "CLIP": ["demo", 1], "VAE": ["demo", 2]}
    inputs = {}
    for field, spec in known[kind]["input"].get("required", {}).items():
        choices = spec[0] if isinstance(spec[0], list) else (spec[1] if len(spec) > 1 else {}).get("options")
        inputs[field] = sources.get(str(spec[0])) or (choices[0] if choices else spec[1].get("default", ""))
    outputs = known[kind]["output"]
    graph["node"] = {"class_type": kind, "inputs": {**inputs, name: value}}
    graph["show"] = {"class_type": "PreviewAny", "inputs": {"source": ["node", len(outputs) - 1]}}
    return graph


@pytest.mark.parametrize("name", ["../../evil", "../../evil.safetensors", "/etc/passwd", "..\\..\\evil.safetensors"])
def test_every_choice_of_files_refuses_to_leave_its_folder(server, name):
    for suffix in (".safetensors", ".parts.safetensors"):
        (server.folder / f"evil{suffix}").write_bytes(b"\0" * 64)
    choices = _file_choices(server)
    assert {("BestiaryLoadDictionary", "file"), ("BestiaryLoadCodebook", "codebook_name")} <= set(choices)
    for kind, field in choices:
        graph = _graph_around(server, kind, field, name)
        answer = server.post("/prompt", json={"prompt": graph, "client_id": "tests"})
        said = answer.text if answer.status_code == 400 else server.fail(graph)
        # in our words, or in those of a ComfyUI that looks at menus itself
        assert re.search(r"no [a-z ]+ .+ in models/bestiary|is not a codebook|value_not_in_list", said), (
            f"{kind}: {said}"
        )


def test_every_fingerprint_survives_linked_and_missing_inputs(tmp_path, monkeypatch):
    import folder_paths
    from bestiary.nodes.host.concept_folders import register_folder
    from bestiary.nodes.registration import NODES

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    register_folder()
    for node in NODES:
        names = [one.id for one in node.GET_SCHEMA().inputs or []]
        if "fingerprint_inputs" in vars(node):
            node.fingerprint_inputs()
            node.fingerprint_inputs(**dict.fromkeys(names))


# --- metadata ------------------------------------------------------------------------------------------------------


def test_files_say_what_they_are(server, small_codebook, tmp_path):
    owner = PartDictionary.load(SHIPPED_DICTIONARY)
    owner.save(tmp_path / "dictionary.safetensors")
    small_codebook.save(tmp_path / "codebook.parts.safetensors")
    for path in (*tmp_path.glob("*.safetensors"), *SHIPPED.glob("*.safetensors")):
        metadata = read_header(path).metadata
        assert {"bestiary.format", "bestiary.kind"} <= metadata.keys(), path.name


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, PartDictionary, list[str]]:
    """The shipped dictionary in files for other programs: folder, dictionary, names of the embeddings."""
    from bestiary.trainer.exchange.export_parts import export_dictionary, token_names

    folder, owner = tmp_path_factory.mktemp("export"), PartDictionary.load(SHIPPED_DICTIONARY)
    export_dictionary(owner, folder)
    return folder, owner, token_names(owner)


def test_exports_carry_what_model_spec_demands(exported):
    folder, _, names = exported
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) >= len(names)
    for path in files:
        assert read_header(path).metadata.keys() >= MODEL_SPEC, path.name


def test_exports_in_core_loaders_sample_what_the_dictionary_does(server, exported):
    """LoraLoader and the embeddings folder against Load Part Dictionary: the same latents, to half precision of the LoRA."""
    folder, owner, names = exported
    part, kind = owner.rows[0].tolist()
    for sub in ("embeddings", "loras"):
        (server.folder / "models" / sub).mkdir(exist_ok=True)
    embedding = next(path for path in folder.rglob("*.safetensors") if path.stem == names[0])
    shutil.copy(embedding, server.folder / "models" / "embeddings")
    (lora,) = [path for path in folder.rglob("*.safetensors") if path.parent == folder]
    shutil.copy(lora, server.folder / "models" / "loras")

    demo = {"class_type": "BestiaryDemoModel", "inputs": {}}
    models = {"model": ["demo", 0], "clip": ["demo", 1]}
    core_loader = {"lora_name": lora.name, "strength_model": 1.0, "strength_clip": 1.0}
    loaders = {
        "theirs": ({"class_type": "LoraLoader", "inputs": {**models, **core_loader}}, names[0]),
        "ours": (
            {
                "class_type": "BestiaryLoadDictionary",
                "inputs": {**models, "file": SHIPPED_DICTIONARY.name, "lora_strength": 1.0},
            },
            f"creatures/{owner.part_names[part]}.{kind + owner.id_base}",
        ),
    }
    latents = {}
    for name, (loader, word) in loaders.items():
        graph = {
            "demo": copy.deepcopy(demo),
            "load": loader,
            **_sampling(f"a photo of a embedding:{word} creature", name),
        }
        server.run(graph)
        latents[name] = server.latent(f"export/{name}")
    assert latents["ours"].std() > 0.1
    torch.testing.assert_close(latents["ours"], latents["theirs"], atol=1e-3, rtol=0)
    graph = {"demo": demo, "load": loaders["theirs"][0], **_sampling("a photo of a creature", "plain")}
    server.run(graph)
    assert (latents["ours"] - server.latent("export/plain")).abs().max() > 0.05


def _sampling(text: str, name: str) -> dict:
    """Encode, sample and save a latent, after a node "load" that gives MODEL and CLIP."""
    settings = {"seed": 1, "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    wiring = {"positive": ["text", 0], "negative": ["empty", 0], "latent_image": ["size", 0]}
    return {
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": text}},
        "empty": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": ""}},
        "size": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "sample": {"class_type": "KSampler", "inputs": {"model": ["load", 0], **wiring, **settings}},
        "save": {"class_type": "SaveLatent", "inputs": {"samples": ["sample", 0], "filename_prefix": f"export/{name}"}},
    }


# --- LoRA of a real shape ------------------------------------------------------------------------------------------


def test_a_lora_of_256_tensors_patches_128_layers_of_a_full_sd15():
    """The layout of Stable Diffusion 1.5 without its weights: they stay on the meta device."""
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils
    from bestiary.nodes.denoiser.lora_loading import apply_lora

    known = {"context_dim": 768, "model_channels": 320, "use_linear_in_transformer": False, "adm_in_channels": None}
    fixed = {"image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False}
    shape = {"num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2}
    shape |= {"transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1}
    config = comfy.supported_models.SD15(
        {
            **known,
            **fixed,
            **shape,
            "use_temporal_attention": False,
            "use_temporal_resblock": False,
            "use_checkpoint": False,
        }
    )
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="meta")
    patcher = comfy.model_patcher.ModelPatcher(
        model, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
    )
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    tensors = {}
    for name, ours in comfy.utils.unet_to_diffusers(config.unet_config).items():
        if re.search(r"attn[12]\.to_(q|k|v|out\.0)\.weight$", name):
            rows, columns = shapes[f"diffusion_model.{ours}"]
            key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            tensors |= {f"{key}.lora_up.weight": torch.ones(rows, 1), f"{key}.lora_down.weight": torch.ones(1, columns)}
    assert len(tensors) == 256
    taught, *_ = _as_tuple(apply_lora(patcher, tensors, 1.0))
    assert len(taught.patches) == 128 and not patcher.patches


def _as_tuple(value: object) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def test_a_weight_changes_the_rows_of_its_part_alone(demo_model):
    from bestiary.nodes.host.socket_types import SPANS_KEY
    from bestiary.nodes.part_prompt.part_encoding import encode_part_prompt

    owner = PartDictionary.load(SHIPPED_DICTIONARY)
    part, kind = owner.rows[0].tolist()
    mention = f"<{owner.part_names[part]}:{kind + owner.id_base}>"
    plain, heavy = (
        encode_part_prompt(demo_model.clip, f"a photo of a {text} creature", {"creatures": owner})[0]
        for text in (mention, f"({mention}:1.5)")
    )
    changed = (plain[0] - heavy[0]).abs().amax(dim=(0, 2)).nonzero().flatten()  # (rows,)
    (span,) = heavy[1][SPANS_KEY]
    assert tuple(changed.tolist()) == span.positions


# --- help, words, publishing ---------------------------------------------------------------------------------------


def test_help_pages_are_served_for_every_node(server):
    ids = [name for name in server.get("/object_info").json() if name.startswith("Bestiary")]
    assert len(ids) > 20
    for name in ids:
        answer = server.get(f"/extensions/ComfyUI-Bestiary/docs/{name}.md")
        assert answer.status_code == 200 and answer.text.startswith("# "), name


def test_languages_of_the_pack_are_served(server):
    ours = {path.parent.name for path in (ROOT / "locales").glob("*/*.json")}
    assert ours <= server.get("/i18n").json().keys()


def test_example_workflows_are_offered_as_templates(server):
    offered = server.get("/workflow_templates").json()["ComfyUI-Bestiary"]
    assert set(offered) == {path.stem for path in (ROOT / "example_workflows").glob("*.json")}
    for kind in ("json", "jpg"):
        assert server.get(f"/api/workflow_templates/ComfyUI-Bestiary/{offered[0]}.{kind}").ok


def test_nothing_that_the_registry_forbids():
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", RULES, "--exclude", "*.egg-info", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.skipif(COMFY is None, reason="comfy-cli is not there: pip install comfy-cli")
def test_comfy_cli_would_publish_it(tmp_path):
    names = {name: str(tmp_path) for name in ("HOME", "USERPROFILE", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    environment = {**os.environ, **names, "COMFY_CLI_NO_REMOTE_REFRESH": "1"}
    subprocess.run([COMFY, "--skip-prompt", "tracking", "disable"], env=environment, capture_output=True, cwd=tmp_path)
    done = subprocess.run(
        [COMFY, "--skip-prompt", "node", "validate"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0 and not re.search("warn|error|fail", said, flags=re.IGNORECASE), said[-2000:]


def test_installing_changes_no_package_that_comfyui_brings():
    """Manager and comfy-cli install requirements.txt; packages that ComfyUI itself asks for do not stand there."""
    lines = [line for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines() if line.strip()]
    names = {re.match(r"[\w.-]+", line).group().lower() for line in lines}
    host = Path(importlib.util.find_spec("nodes").origin).parent / "requirements.txt"
    brought = {
        re.match(r"[\w.-]+", line).group().lower() for line in host.read_text().splitlines() if re.match(r"\w", line)
    }
    assert names & {*brought, "torch", "torchvision", "transformers", "safetensors", "kornia", "numpy"} == set()
    assert [
        line for line in lines if "==" in line or "git+" in line or re.search(r"<(?! \"3)", line.split(";")[0])
    ] == []


def test_requirements_of_the_graph_cover_what_the_pack_declares():
    """Every dependency of the package stands in requirements.txt or is brought by ComfyUI: named there, or by what it names."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    host = Path(importlib.util.find_spec("nodes").origin).parent / "requirements.txt"
    lines = host.read_text().splitlines() + (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines += [*importlib.metadata.requires("torch"), *importlib.metadata.requires("transformers")]
    brought = {re.match(r"[\w.-]+", line).group().lower() for line in lines if re.match(r"\w", line)}
    assert {re.match(r"[\w-]+", line).group().lower() for line in project["dependencies"]} - brought == set()
