"""Random-weight diffusers folders of Stable Diffusion's shapes, narrow enough to run in milliseconds."""

import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

TEXT_WIDTH = 32
SECOND_TEXT_WIDTH = 64
VOCABULARY_MERGES = ("b i", "bi r", "bir d</w>", "h e", "a d</w>", "he ad</w>", "r e", "re d</w>", "o f</w>")


@pytest.fixture(scope="session", autouse=True)
def short_discovery() -> Iterator[None]:
    """A learned foreground takes 40 steps a round instead of 300, which are most of a discovery's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bestiary.concepts.part_map.foreground._TRAINING_STEPS", 40)
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, t5_tokenizer: Path) -> Callable[[str], Path]:
    """`tiny_folder("sd15" | "sd2" | "sdxl" | "bestiary-demo" | "sd3" | "flux")` -> a diffusers folder, made once per session."""
    made: dict[str, Path] = {}

    def folder(backbone: str) -> Path:
        if backbone not in made:
            made[backbone] = tmp_path_factory.mktemp("models") / backbone
            with torch.random.fork_rng():
                torch.manual_seed(0)
                if backbone in ("sd3", "flux"):
                    _write_transformer_folder(backbone, made[backbone], t5_tokenizer)
                else:
                    _write_folder(backbone, made[backbone])
        return made[backbone]

    return folder


@pytest.fixture(scope="session")
def tiny_denoiser(tiny_folder: Callable[[str], Path]) -> Callable[..., object]:
    """`tiny_denoiser(backbone)` -> a fresh float32 CPU denoiser over `tiny_folder(backbone)`."""

    def load(backbone: str, dtype: str = "fp32") -> object:
        from bestiary.trainer.model.backbones import load_denoiser

        return load_denoiser(tiny_folder(backbone), device="cpu", dtype=dtype)

    return load


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a CLIP model with random weights that looks at squares of 32 pixels."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("models") / "clip"
    vocabulary = _write_tokenizer(folder, "<|endoftext|>")
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = {**shared, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": 24}
        vision = {**shared, "image_size": 32, "patch_size": 8}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    return folder


def _write_folder(backbone: str, folder: Path) -> None:
    _unet(backbone).save_pretrained(folder / "unet")
    _vae(backbone).save_pretrained(folder / "vae")
    _write_text(folder, "", TEXT_WIDTH, backbone)
    components = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    components |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    if backbone == "sdxl":
        _write_text(folder, "_2", SECOND_TEXT_WIDTH, backbone)
        components["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        components["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    components["scheduler"] = ["diffusers", _write_scheduler(folder, backbone)]
    pipeline = "StableDiffusionXLPipeline" if backbone == "sdxl" else "StableDiffusionPipeline"
    index = {"_class_name": pipeline, "_diffusers_version": "0.34.0", **components}
    if backbone == "sdxl":
        index["force_zeros_for_empty_prompt"] = True
    (folder / "model_index.json").write_text(json.dumps(index))


T5_WIDTH = TEXT_WIDTH + SECOND_TEXT_WIDTH


def _write_transformer_folder(backbone: str, folder: Path, t5_tokenizer: Path) -> None:
    """Stable Diffusion 3 (three blocks) or Flux.1 (two of two streams, one of one) with guidance, all text encoders, and the real process."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel, SD3Transformer2DModel
    from transformers import T5Config, T5EncoderModel

    if backbone == "sd3":
        transformer = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=3, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=T5_WIDTH, caption_projection_dim=16, pooled_projection_dim=T5_WIDTH, pos_embed_max_size=8,
            qk_norm="rms_norm",
        )  # fmt: skip
    else:
        transformer = FluxTransformer2DModel(
            in_channels=64, num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=T5_WIDTH, pooled_projection_dim=TEXT_WIDTH, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip
    # gates start at zero: every weight shall matter
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    transformer.save_pretrained(folder / "transformer")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(32,) * 4,
        layers_per_block=1, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609,
        use_quant_conv=False, use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")  # fmt: skip
    _write_text(folder, "", TEXT_WIDTH, backbone)
    if backbone == "sd3":
        _write_text(folder, "_2", SECOND_TEXT_WIDTH, backbone)
    suffix = "_3" if backbone == "sd3" else "_2"
    config = T5Config(
        vocab_size=32_128, d_model=T5_WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", dropout_rate=0.0
    )  # fmt: skip
    T5EncoderModel(config).save_pretrained(folder / f"text_encoder{suffix}")
    shutil.copytree(t5_tokenizer, folder / f"tokenizer{suffix}")
    process = {"shift": 3.0} if backbone == "sd3" else {"shift": 3.0, "use_dynamic_shifting": True}
    FlowMatchEulerDiscreteScheduler(**process).save_pretrained(folder / "scheduler")
    kind = "StableDiffusion3Pipeline" if backbone == "sd3" else "FluxPipeline"
    parts = {
        part: ["transformers", "CLIPTextModel"] for part in ("text_encoder", "text_encoder_2", f"text_encoder{suffix}")
    }
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, **parts}))


def _unet(backbone: str) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    cross, plain = "CrossAttn{}Block2D", "{}Block2D"
    levels = {"bestiary-demo": [cross] * 2, "sdxl": [plain, cross, cross]}.get(backbone, [cross] * 3 + [plain])
    settings: dict[str, object] = {
        "sample_size": 16,
        "in_channels": 8 if backbone == "bestiary-demo" else 4,
        "out_channels": 8 if backbone == "bestiary-demo" else 4,
        "down_block_types": tuple(level.format("Down") for level in levels),
        "up_block_types": tuple(level.format("Up") for level in reversed(levels)),
        "block_out_channels": (32, 64, 64, 64)[: len(levels)],
        "layers_per_block": 1 if backbone == "bestiary-demo" else 2,
        "attention_head_dim": 4,
        "cross_attention_dim": TEXT_WIDTH,
    }
    if backbone == "sd2":
        settings |= {"use_linear_projection": True, "attention_head_dim": (2, 4, 4, 4)}
    if backbone == "sdxl":
        settings |= {
            "use_linear_projection": True,
            "transformer_layers_per_block": (1, 2, 3),
            "attention_head_dim": (2, 4, 4),
            "cross_attention_dim": TEXT_WIDTH + SECOND_TEXT_WIDTH,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": SECOND_TEXT_WIDTH + 6 * 8,
        }
    return UNet2DConditionModel(**settings)


def _vae(backbone: str) -> torch.nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        latent_channels=8 if backbone == "bestiary-demo" else 4,
        sample_size=128,
        scaling_factor=0.13025 if backbone == "sdxl" else 0.18215,
    )


def _write_text(folder: Path, suffix: str, width: int, backbone: str) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    second = suffix == "_2"
    vocabulary = _write_tokenizer(
        folder / f"tokenizer{suffix}", "!" if second or backbone == "sd2" else "<|endoftext|>"
    )
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="gelu" if second or backbone == "sd2" else "quick_gelu",
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=1,
    )
    model = (CLIPTextModelWithProjection if second or backbone == "sd3" else CLIPTextModel)(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    if backbone == "sd3" and not second:
        # as published: ComfyUI does not project this one
        torch.nn.init.eye_(model.text_projection.weight)
    model.save_pretrained(folder / f"text_encoder{suffix}")


def _write_tokenizer(folder: Path, pad: str) -> dict[str, int]:
    """A byte-level BPE tokenizer of CLIP's format with a few merges; returns its vocabulary."""
    letters = _printable_bytes()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["".join(merge.split()) for merge in VOCABULARY_MERGES]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *VOCABULARY_MERGES]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "bos_token": "<|startoftext|>",
                "eos_token": "<|endoftext|>",
                "unk_token": "<|endoftext|>",
                "pad_token": pad,
                "model_max_length": 77,
            }
        )
    )
    return vocabulary


def _printable_bytes() -> list[str]:
    """One printable character per byte value, as in GPT-2's byte-level vocabulary: "!" is 0."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(code) for code in own] + [chr(256 + index) for index in range(256 - len(own))]


def _write_scheduler(folder: Path, backbone: str) -> str:
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler

    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    if backbone == "sdxl":
        scheduler = EulerDiscreteScheduler(**settings, timestep_spacing="leading")
    elif backbone == "sd2":
        scheduler = DDIMScheduler(**settings, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction")
    else:
        scheduler = PNDMScheduler(**settings, skip_prk_steps=True, set_alpha_to_one=False)
    scheduler.save_pretrained(folder / "scheduler")
    return type(scheduler).__name__


@pytest.fixture(scope="session")
def make_discovery() -> Callable[..., Path]:
    """`make_discovery(folder, count=6, size=64)` -> a discovery of head, body and background in drawn squares.

    Pictures lie in `folder/pictures`, the discovery in `folder/found`, classes in `folder/labels.csv`. Kinds alternate; picture 1 shows no
    head, picture 2 no part but the background.
    """
    return _write_discovery


def _write_discovery(folder: Path, count: int = 6, size: int = 64) -> Path:
    import numpy as np
    from bestiary.concepts.part_map.foreground import CentroidForeground
    from bestiary.concepts.part_map.part_codebook import PartCodebook
    from bestiary.concepts.part_map.part_map import PartMaps
    from bestiary.concepts.part_map.part_model import CentroidParts
    from bestiary.trainer.learning.discovery.discovery_folder import write_lines, write_maps, write_report
    from PIL import Image

    (folder / "pictures" / "sub").mkdir(parents=True)
    labels = torch.full((count, 8, 8), 2, dtype=torch.uint8)  # (N, 8, 8)
    labels[:, 1:4, 1:4], labels[:, 4:7, 2:6] = 0, 1
    labels[1][labels[1] == 0] = 2
    labels[2] = 2
    codes = torch.stack([torch.arange(count) % 2, torch.arange(count) % 3, torch.zeros(count).long()], dim=1)  # (N, 3)
    codes[1, 0], codes[2, :2] = -1, -1
    rng = np.random.default_rng(0)
    names = [f"sub/{number}.png" if number == 3 else f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        colors = rng.integers(0, 255, (3, 3), dtype=np.uint8)
        cells = colors[labels[number].numpy()]  # (8, 8, 3)
        Image.fromarray(cells).resize((size, size), Image.Resampling.NEAREST).save(folder / "pictures" / name)
    found = folder / "found"
    model = CentroidParts(torch.eye(3), torch.arange(3))
    kinds = torch.eye(3)
    PartCodebook(
        feature_spec={"name": "descriptor"}, width=3, grid=(8, 8), part_names=("head", "body", "background"), background=2,
        foreground=CentroidForeground(torch.eye(2, 3), 0), parts=model, fine=(kinds[:2], kinds, kinds[:1]),
        kind_names=({0: "red", 1: "blue"}, {}, {}),
    ).save(found / "codebook.parts.safetensors")  # fmt: skip
    write_maps(found / "part_maps.safetensors", [PartMaps(labels, codes)], count, (8, 8), 3)
    write_lines(found / "images.txt", names)
    write_report(found, {"images_folder": str(folder / "pictures"), "images_folder_relative": "../pictures"})
    rows = [f"{name},{'wren' if number % 2 else 'lark'}" for number, name in enumerate(names)]
    write_lines(folder / "labels.csv", ["path,class", *rows])
    return found


# --- faults ----------------------------------------------------------------------------------------------------------


class Bomb:
    """Opens a file for writing when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.mark, "w")


@pytest.fixture
def bomb() -> type[Bomb]:
    """`bomb(path)` pickles as a program that makes the file `path`."""
    return Bomb


@pytest.fixture
def fault(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail and returns its only message."""

    def run(*arguments: object, code: int = 2) -> str:
        from bestiary.trainer.__main__ import main

        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        captured = capsys.readouterr()
        ours = [line for line in captured.err.splitlines() if line.startswith("bestiary: ")]
        assert len(ours) == 1 and captured.err.rstrip("\n").endswith(ours[0]), captured.err
        assert "Traceback" not in captured.err and "wrote" not in captured.out and "open " not in captured.out
        return ours[0]

    return run


class FullFile(io.FileIO):
    """A file on a full disk: it can be made, but takes no byte."""

    def write(self, content: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _full(path: str | Path, mode: str, buffering: int, encoding: str | None, newline: str | None) -> io.IOBase:
    raw = FullFile(path, mode.replace("b", "").replace("t", ""))
    binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    return binary if "b" in mode else io.TextIOWrapper(binary, encoding, newline=newline)


def _spoil_writes(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    """Writing below `folder` fails with this error number: EROFS at once, ENOSPC at the first byte."""
    real, real_mkdir = io.open, Path.mkdir
    folder = folder.resolve()

    def below(path: object) -> bool:
        return isinstance(path, str | os.PathLike) and Path(path).resolve().is_relative_to(folder)

    def guarded(
        path: object,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        **options: object,
    ) -> io.IOBase:
        if not below(path) or not set(mode) & set("wax+"):
            return real(path, mode, buffering, encoding, errors, newline, **options)
        if number == errno.EROFS:
            raise OSError(number, os.strerror(number), str(path))
        return _full(path, mode, buffering, encoding, newline)

    def mkdir(self: Path, *args: object, **options: object) -> None:
        if number == errno.EROFS and below(self) and not self.exists():
            raise OSError(number, os.strerror(number), str(self))
        real_mkdir(self, *args, **options)

    monkeypatch.setattr("builtins.open", guarded)
    monkeypatch.setattr(io, "open", guarded)
    monkeypatch.setattr(Path, "open", lambda self, *args, **options: guarded(self, *args, **options))
    monkeypatch.setattr(Path, "mkdir", mkdir)


def _snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def spoil_writes() -> Callable[[pytest.MonkeyPatch, Path, int], None]:
    """`spoil_writes(monkeypatch, folder, errno.EROFS | errno.ENOSPC)`: nothing can be written below the folder."""
    return _spoil_writes


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """`snapshot(folder)` -> every file below it and its content."""
    return _snapshot


@pytest.fixture(scope="session")
def tiny_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision transformer with random weights."""
    from safetensors.torch import save_file

    timm = pytest.importorskip("timm")
    path = tmp_path_factory.mktemp("dino") / "model.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return path
