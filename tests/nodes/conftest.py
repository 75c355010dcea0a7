"""A real ComfyUI for the graph tests: its modules inside this process, and a server on its own folders beside it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import requests
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent.parent
TRAINING_STEPS = 12
"""Of a learned foreground in one round; a user's discovery takes 300, and most of its time for them."""


def find_comfyui() -> Path | None:
    """The one ComfyUI of this session, None without one.

    COMFYUI_PATH, the ComfyUI in whose custom_nodes this pack lies, where comfy-cli puts it, COMFYUI_PATH_NEW, or the newer one
    beside; `.ci/run` starts a session for each of two.
    """
    conventional = Path.home() / "comfy"
    places = [ROOT.parent.parent, conventional / "ComfyUI"]
    places += [Path(os.environ.get("COMFYUI_PATH_NEW") or conventional / "ComfyUI-new")]
    if given := os.environ.get("COMFYUI_PATH"):
        places = [Path(given)]
    return next((place for place in places if (place / "main.py").exists() and (place / "comfy").is_dir()), None)


COMFYUI = find_comfyui()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Test modules here import ComfyUI, so they are read only where one is there and its tests are asked for."""
    if COMFYUI is None or "not comfyui" in config.option.markexpr:
        return True
    make_importable(COMFYUI)
    return None


def comfyui_version(place: Path) -> str:
    """Such as "0.3.64"."""
    found = re.search(r'"(.+)"', (place / "comfyui_version.py").read_text(encoding="utf-8"))
    return found.group(1) if found else "of an unknown version"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line that says which ComfyUI was tested, or that there was none."""
    if "not comfyui" in config.option.markexpr:
        return
    if COMFYUI is None:
        terminalreporter.write_line(
            "no ComfyUI found: graph tests and browser tests are skipped; COMFYUI_PATH or COMFYUI_PATH_NEW name one"
        )
    else:
        terminalreporter.write_line(f"graph tests on ComfyUI {comfyui_version(COMFYUI)} at {COMFYUI}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """No ComfyUI is no fault."""
    if COMFYUI is None and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder needs ComfyUI."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("comfyui")


def make_importable(place: Path) -> None:
    """Makes `import comfy...`, `comfy_api`, `folder_paths` and `nodes` give ComfyUI's, on the CPU."""
    if str(place) in sys.path:
        return
    sys.path.insert(0, str(place))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True


@pytest.fixture(scope="session", autouse=True)
def comfy_modules() -> None:
    """ComfyUI's modules inside this process; see `make_importable`."""


@pytest.fixture(autouse=True)
def unpatched_models() -> Iterator[None]:
    """Models leave a test with their own weights: what ComfyUI keeps loaded would keep its patches in place."""
    yield
    if management := sys.modules.get("comfy.model_management"):
        management.unload_all_models()


@pytest.fixture(autouse=True)
def quick_discovery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Discoveries inside this process train their foreground as shortly as those of the servers."""
    monkeypatch.setattr("bestiary.concepts.part_map.foreground._TRAINING_STEPS", TRAINING_STEPS)


@pytest.fixture(autouse=True)
def unthrottled_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress bars tell every step: newer ComfyUIs leave out what comes within a moment of the last."""
    if loaded := sys.modules.get("comfy.utils"):
        for limit in ("PROGRESS_THROTTLE_MIN_INTERVAL", "PROGRESS_THROTTLE_MIN_PERCENT"):
            monkeypatch.setattr(loaded, limit, 0, raising=False)


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
        queued = answer.json()
        # one output that is refused keeps the server from no other
        if queued.get("node_errors"):
            self.wait(queued["prompt_id"])
            raise RuntimeError(json.dumps(queued["node_errors"]))
        return queued["prompt_id"]

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

    def latent(self, prefix: str) -> torch.Tensor:
        """The one latent `(N, C, h, w)` that a graph saved under a prefix."""
        (file,) = (self.folder / "output").glob(f"{prefix}_*.latent")
        return load_file(file)["latent_tensor"]

    def refuse(self, graph: dict, ours: str) -> None:
        """The graph is refused: in our words while it runs, or before that by a ComfyUI that looks at menus itself."""
        try:
            said = self.fail(graph)
        except RuntimeError as refused:
            assert "value_not_in_list" in str(refused), refused
            return
        assert ours in said, said


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
        shutil.copy(Path(__file__).parent / "quick_discovery.py", link.parent)
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "main.py", "--cpu", "--port", str(port), "--base-directory", str(folder)]
    command += ["--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:", *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    environment["TRAINING_STEPS"] = str(TRAINING_STEPS)
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


@pytest.fixture(scope="module", autouse=True)
def fresh_folders(request: pytest.FixtureRequest) -> None:
    """Every module finds the server as it started: no file, finished graph or cached result of another module."""
    if not any(
        "server" in name for item in request.session.items if item.path == request.path for name in item.fixturenames
    ):
        return
    running = request.getfixturevalue("server")
    running.post("/free", json={"unload_models": True, "free_memory": True})
    running.post("/history", json={"clear": True})
    for name in ("models/bestiary", "models/embeddings", "input", "output"):
        shutil.rmtree(running.folder / name, ignore_errors=True)
        (running.folder / name).mkdir(parents=True)


def image_input(server: ComfyServer, source: Path) -> str:
    """Puts a picture into the server's input folder and returns its name for LoadImage."""
    shutil.copy(source, server.folder / "input" / source.name)
    return source.name


def has_module(name: str) -> bool:
    """Whether a library is installed, without importing it."""
    return importlib.util.find_spec(name) is not None


# --- models inside this process -------------------------------------------------------------------------------------

TEXT_WIDTH, SECOND_TEXT_WIDTH = 32, 64
"""Channels of CLIP-L and CLIP-G in the narrow models."""
ADM_CHANNELS = SECOND_TEXT_WIDTH + 6 * 256


class Loaded(NamedTuple):
    """What a checkpoint loader node gives."""

    model: object
    clip: object
    vae: object


@dataclass(frozen=True)
class Reference:
    """The same weights in diffusers and transformers modules."""

    unet: torch.nn.Module
    text_encoders: dict[str, torch.nn.Module]
    """clip_l, and for SDXL clip_g."""
    vae: torch.nn.Module


@pytest.fixture(scope="session")
def demo_model(comfy_modules: None) -> Loaded:
    """The embedded model."""
    from bestiary.nodes.demo.demo_model import load_demo_model

    return Loaded(*load_demo_model())


@pytest.fixture(scope="session")
def demo_dit_model(comfy_modules: None) -> Loaded:
    """The embedded transformer."""
    from bestiary.nodes.demo.demo_model import BASE_MODEL_DIT, load_demo_model

    return Loaded(*load_demo_model(BASE_MODEL_DIT))


@pytest.fixture(scope="session")
def sd15_reference() -> Reference:
    """A narrow SD1.5 with random weights: channels (32, 64), text 32 wide."""
    return _reference("sd15")


@pytest.fixture(scope="session")
def sdxl_reference() -> Reference:
    """A narrow SDXL with random weights: channels (32, 64), texts 32 and 64 wide."""
    return _reference("sdxl")


@pytest.fixture(scope="session")
def sd15_model(comfy_modules: None, sd15_reference: Reference) -> Loaded:
    """`sd15_reference` in ComfyUI's own classes."""
    return _comfy_model("sd15", sd15_reference)


@pytest.fixture(scope="session")
def sdxl_model(comfy_modules: None, sdxl_reference: Reference) -> Loaded:
    """`sdxl_reference` in ComfyUI's own classes."""
    return _comfy_model("sdxl", sdxl_reference)


def _reference(backbone: str) -> Reference:
    """Modules of diffusers and transformers with the same random weights in every session."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def text_encoder(kind: type, width: int, act: str) -> torch.nn.Module:
        settings = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width, "hidden_act": act}
        config = CLIPTextConfig(
            num_hidden_layers=3, num_attention_heads=4, bos_token_id=49406, eos_token_id=49407, **settings
        )
        return kind(config).eval()

    is_xl = backbone == "sdxl"
    cross, plain = "CrossAttn{}Block2D", "{}Block2D"
    levels = [plain if is_xl else cross, cross]
    settings = {
        "down_block_types": tuple(level.format("Down") for level in levels),
        "up_block_types": tuple(level.format("Up") for level in reversed(levels)),
        "cross_attention_dim": TEXT_WIDTH + SECOND_TEXT_WIDTH * is_xl,
        "use_linear_projection": is_xl,
    }
    if is_xl:
        settings |= {
            "transformer_layers_per_block": (1, 2),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": ADM_CHANNELS,
        }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=16, layers_per_block=1, block_out_channels=(32, 64), attention_head_dim=4, **settings
        )
        texts = {"clip_l": text_encoder(CLIPTextModel, TEXT_WIDTH, "quick_gelu")}
        if is_xl:
            texts["clip_g"] = text_encoder(CLIPTextModelWithProjection, SECOND_TEXT_WIDTH, "gelu")
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32,) * 4,
            layers_per_block=1,
        )
    return Reference(unet.eval(), texts, vae.eval())


def _comfy_model(backbone: str, reference: Reference) -> Loaded:
    """ComfyUI's classes shrunk to the reference's widths and filled with its weights (spec: nothing is left over)."""
    import comfy.model_patcher
    import comfy.sd
    import comfy.supported_models
    import comfy.utils

    is_xl = backbone == "sdxl"
    known = {
        "context_dim": TEXT_WIDTH + SECOND_TEXT_WIDTH * is_xl,
        "model_channels": 32,
        "use_linear_in_transformer": is_xl,
        "adm_in_channels": ADM_CHANNELS if is_xl else None,
        "use_temporal_attention": False,
    }
    depth = {"transformer_depth": [0, 2] if is_xl else [1, 1], "transformer_depth_middle": 2 if is_xl else 1}
    depth["transformer_depth_output"] = [0, 0, 2, 2] if is_xl else [1] * 4
    fixed = {"image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False}
    fixed |= {"use_checkpoint": False, "num_res_blocks": [1, 1], "channel_mult": [1, 2], "use_temporal_resblock": False}
    fixed |= {"num_classes": "sequential"} if is_xl else {}
    base = getattr(comfy.supported_models, "SDXL" if is_xl else "SD15")
    heads = {"num_heads": 4, "num_head_channels": -1}
    shrunk = type(f"Narrow{base.__name__}", (base,), {"unet_config": known, "unet_extra_config": heads})
    config = shrunk({**fixed, **depth, **known})
    config.set_inference_dtype(torch.float32, None)

    names = comfy.utils.unet_to_diffusers(config.unet_config)
    weights = {names[name]: tensor.clone() for name, tensor in reference.unet.state_dict().items()}
    model = config.get_model(weights, "")
    model.load_model_weights(weights, "")
    device = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
    vae_config = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32}
    vae_config |= {"ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    vae_weights = {name: tensor.clone() for name, tensor in reference.vae.state_dict().items()}
    vae = comfy.sd.VAE(sd=vae_weights, config={"params": {"ddconfig": vae_config, "embed_dim": 4}})
    return Loaded(patcher, _comfy_clip(config, reference), vae)


def _comfy_clip(config: object, reference: Reference) -> object:
    import comfy.sd

    def settings(encoder: torch.nn.Module) -> dict[str, object]:
        names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act")
        return {name: getattr(encoder.config, name) for name in names} | {
            "max_position_embeddings": 77,
            "eos_token_id": 49407,
        }

    shrunk = {f"{name}_model_config": settings(encoder) for name, encoder in reference.text_encoders.items()}
    clip = comfy.sd.CLIP(config.clip_target(), embedding_directory=[], model_options={**shrunk, "dtype": torch.float32})
    for name, encoder in reference.text_encoders.items():
        held = getattr(clip.cond_stage_model, name)
        weights = {
            key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": tensor.clone()
            for key, tensor in encoder.state_dict().items()
        }
        weights.setdefault("text_projection.weight", torch.eye(encoder.config.hidden_size))
        missing, left_over = held.transformer.load_state_dict(weights, strict=False)
        assert not missing and set(left_over) <= {"text_model.embeddings.position_ids"}, (missing, left_over)
    return clip


@pytest.fixture(scope="session")
def drawn_images() -> torch.Tensor:
    """Eight drawn creatures as a graph holds pictures: (8, 128, 128, 3) in 0..1."""
    from bestiary.demo.creatures import held_out_set

    return torch.stack([torch.from_numpy(drawing.image.copy()) for drawing in held_out_set(8, seed=3)]).float() / 255


@pytest.fixture(scope="session")
def small_codebook(drawn_images: torch.Tensor) -> object:
    """A PartCodebook: two parts with two kinds each, two of them named, found in the drawn creatures on an 8 x 8 grid."""
    from bestiary.concepts.features.patch_features import DescriptorFeatures
    from bestiary.concepts.part_map.part_discovery import discover_parts

    source = DescriptorFeatures(image_size=64, grid=8)
    squares = torch.nn.functional.avg_pool2d(drawn_images.permute(0, 3, 1, 2), 2)  # (8, 3, 64, 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bestiary.concepts.part_map.foreground._TRAINING_STEPS", 40)
        codebook, _ = discover_parts(source(squares), spec=source.spec, num_parts=2, num_kinds=2, seed=0)
    return codebook.with_names(("head", "body", "background"), ({0: "cardinal", 1: "blue jay"}, {}, {}))


@pytest.fixture(scope="session")
def diffusers_denoiser(
    comfy_modules: None, sd15_reference: Reference, sdxl_reference: Reference
) -> Callable[[str], object]:
    """`diffusers_denoiser("sd15" | "sdxl" | "demo" | "demo_dit")` -> a float32 denoiser with the weights of the fixture of that kind."""
    import copy
    from dataclasses import replace

    import comfy.sd1_clip
    from bestiary.concepts.denoiser.backbone import get_backbone
    from bestiary.concepts.denoiser.process import DiscreteProcess
    from bestiary.trainer.model.backbones import load_denoiser
    from bestiary.trainer.model.diffusers_denoiser import DenoiserParts, DiffusersDenoiser
    from bestiary.trainer.model.text_conditioning import TextEncoders
    from diffusers import DDIMScheduler
    from transformers import CLIPTokenizer

    def build(kind: str) -> object:
        if kind in ("demo", "demo_dit"):
            return load_denoiser(kind.replace("_", "-"), device="cpu", dtype="fp32")
        reference = {"sd15": sd15_reference, "sdxl": sdxl_reference}[kind]
        record = get_backbone(kind)
        widths = {name: model.config.hidden_size for name, model in reference.text_encoders.items()}
        record = replace(
            record, text_encoders=tuple(replace(spec, width=widths[spec.name]) for spec in record.text_encoders)
        )
        words = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"
        pads = {"clip_l": "<|endoftext|>", "clip_g": "!"}
        tokenizers = {name: CLIPTokenizer.from_pretrained(words, pad_token=pads[name]) for name in widths}
        scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        vae = copy.deepcopy(reference.vae)
        vae.register_to_config(scaling_factor={"sd15": 0.18215, "sdxl": 0.13025}[kind])
        parts = DenoiserParts(
            copy.deepcopy(reference.unet),
            vae,
            TextEncoders(record, tokenizers, dict(reference.text_encoders)),
            DiscreteProcess(scheduler.alphas_cumprod, "epsilon"),
            dict(scheduler.config),
        )
        return DiffusersDenoiser(record, parts)

    return build
