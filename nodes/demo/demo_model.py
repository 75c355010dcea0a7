"""The embedded miniature models as ComfyUI's MODEL, CLIP and VAE, from the diffusers folders below `demo/`.

The UNet has Stable Diffusion's topology with narrow layers, so ComfyUI's own classes can be used; the properties that its
checkpoint detection would reject (widths, vocabulary, eight latent channels) are passed to them here. The transformer's
network is in `demo_transformer.py`; autoencoder and vocabulary are those of the UNet. Always float32: the
models are tiny, and half precision gains nothing on a CPU. Imported only when its node runs, since it imports ComfyUI's
model code.
"""

from __future__ import annotations

import json
import threading
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypedDict

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.clip_model import CLIPEmbeddings, CLIPTextModel
from comfy.model_patcher import ModelPatcher
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel, SDTokenizer
from torch import Tensor
from torch.nn import functional

from ...concepts.errors import BestiaryError
from ...concepts.files.concept_file import read_tensors
from ...concepts.files.pack import ROOT
from ...demo.creatures import held_out_set
from ..host.comfy_version import fixed_clip_options
from .demo_transformer import TransformerSettings, transformer_model

BASE_MODEL = ROOT / "demo" / "base_model"
BASE_MODEL_DIT = ROOT / "demo" / "base_model_dit"
FOLDERS = {"unet": BASE_MODEL, "dit": BASE_MODEL_DIT}
"""Shape of the denoiser -> folder of the model."""
PREVIEW_DRAWINGS = 6
"""Number of drawings from which the colours of previews are fitted."""

_lock = threading.Lock()
_loaded: dict[Path, tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]] = {}


def load_demo_model(folder: Path = BASE_MODEL) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE of the embedded model; its weights are loaded once per process and shared by all callers.

    Raises:
        BestiaryError: a file of the folder is missing or damaged, or the transformer has not been trained yet.
    """
    if folder == BASE_MODEL_DIT and not folder.is_dir():
        raise BestiaryError(
            f"the embedded transformer is not part of this installation: {folder} does not exist. Train it once, which takes hours on a "
            f"CPU: bestiary demo train-base --shape dit --out {folder}"
        )
    with _lock:
        if folder not in _loaded:
            # ComfyUI runs nodes in inference mode, whose tensors could never be trained
            with torch.inference_mode(False), torch.no_grad():
                network = _transformer if (folder / "transformer").is_dir() else _unet
                _loaded[folder] = network(folder), _clip(folder), _vae(_shared(folder, "vae"))
        model, clip, vae = _loaded[folder]
    return model.clone(), clip.clone(), vae


class LevelWidth:
    """Channel multiplier of a UNet level that yields exactly this width: 96 is not a whole multiple of 64."""

    def __init__(self, channels: int) -> None:
        """`channels` of the level."""
        self.channels = channels

    def __mul__(self, base: int) -> int:
        """The width, independent of the base."""
        return self.channels

    __rmul__ = __mul__


class DemoLatentFormat(comfy.latent_formats.LatentFormat):
    """Eight channels with the scale from the autoencoder's config; previews use a linear map to colours."""

    latent_channels = 8

    def __init__(self, scale_factor: float = 1.0, folder: Path = BASE_MODEL) -> None:
        """`scale_factor`: ratio of denoiser to autoencoder latents; `folder` is read when a preview is drawn."""
        self.scale_factor = scale_factor
        self._folder = folder

    @property
    def latent_rgb_factors(self) -> list[list[float]]:
        """Colour of every channel, `(8, 3)`."""
        return self._colours[:-1]

    @property
    def latent_rgb_factors_bias(self) -> list[float]:
        """Colour of a latent of zeros, `(3,)`."""
        return self._colours[-1]

    @cached_property
    def _colours(self) -> list[list[float]]:
        vae = load_demo_model(self._folder)[2]
        images = torch.stack([torch.from_numpy(drawing.image.copy()) for drawing in held_out_set(PREVIEW_DRAWINGS, 0)])
        latents = vae.encode(images.float() / 255) * self.scale_factor  # (N, 8, h, w)
        # least squares from latents (with a constant 1 for the bias) to the colours of the downsampled drawings
        small = functional.adaptive_avg_pool2d(images.movedim(-1, 1) / 127.5 - 1, latents.shape[2:])  # (N, 3, h, w)
        known = functional.pad(latents.movedim(1, -1).flatten(0, 2), (0, 1), value=1.0)  # (N h w, 9)
        return torch.linalg.lstsq(known.double(), small.movedim(1, -1).flatten(0, 2).double()).solution.tolist()


class DemoModelConfig(comfy.supported_models_base.BASE):
    """ComfyUI's configuration of the denoiser."""

    latent_format: type[DemoLatentFormat] | DemoLatentFormat = DemoLatentFormat
    memory_usage_factor = 1.0

    def inpaint_model(self) -> bool:
        """False: ComfyUI takes more than four input channels for inpainting, but here all eight are the latent."""
        return False


class WordTokenizer:
    """The model's vocabulary with the tokenizer interface that ComfyUI expects."""

    whole_words = True
    """A token is a word or a sign, without a mark for the space behind it."""

    def __init__(self, folder: Path) -> None:
        """Reads `tokenizer.json` of the folder."""
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # ComfyUI pads and truncates chunks itself
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @classmethod
    def from_pretrained(cls, folder: Path) -> WordTokenizer:
        """The tokenizer of a folder."""
        return cls(folder)

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Token ids with start and end."""
        return {"input_ids": self._tokenizer.encode(text).ids}

    @property
    def unk_token_id(self) -> int:
        """Token id of words that are not in the vocabulary."""
        number = self._tokenizer.token_to_id(self._tokenizer.model.unk_token)
        if number is None:
            raise BestiaryError(
                "the vocabulary of the embedded model has no token for unknown words: install Bestiary again"
            )
        return number

    def get_vocab(self) -> dict[str, int]:
        """Word -> id."""
        return self._tokenizer.get_vocab()


class UnetSettings(TypedDict):
    """Used entries of diffusers' config.json of a UNet."""

    block_out_channels: list[int]
    layers_per_block: int
    down_block_types: list[str]
    up_block_types: list[str]
    sample_size: int
    in_channels: int
    out_channels: int
    cross_attention_dim: int
    use_linear_projection: bool
    attention_head_dim: int


class TextSettings(TypedDict):
    """Used entries of transformers' config.json of a CLIP text encoder."""

    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int


class AutoencoderSettings(TypedDict):
    """Used entries of diffusers' config.json of an autoencoder."""

    scaling_factor: float


class FlowSettings(TypedDict):
    """Used entries of diffusers' scheduler_config.json of a flow."""

    shift: float


def unet_config(config: UnetSettings) -> dict[str, object]:
    """ComfyUI's UNet configuration from diffusers' config.json, for UNets with cross-attention on every level."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    if not all("CrossAttn" in block for block in [*config["down_block_types"], *config["up_block_types"]]):
        raise BestiaryError(
            f"the UNet has the blocks {', '.join(config['down_block_types'])}, expected cross-attention on every level: "
            "install Bestiary again"
        )
    return {
        "image_size": config["sample_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [LevelWidth(width) for width in widths],
        "num_res_blocks": [layers] * len(widths),
        "transformer_depth": [1] * layers * len(widths),
        "transformer_depth_output": [1] * (layers + 1) * len(widths),
        "transformer_depth_middle": 1,
        "context_dim": config["cross_attention_dim"],
        "use_linear_in_transformer": config["use_linear_projection"],
        "use_spatial_transformer": True,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "use_checkpoint": False,
        "legacy": False,
        "adm_in_channels": None,
    }


def _unet(folder: Path) -> ModelPatcher:
    """The UNet; weights `(out, in, ...)` are only renamed."""
    config: UnetSettings = _config(folder, "unet")
    autoencoder: AutoencoderSettings = _config(folder, "vae")
    settings = DemoModelConfig(unet_config(config))
    # diffusers' attention_head_dim is really the number of heads
    settings.unet_config |= {"num_heads": config["attention_head_dim"], "num_head_channels": -1}
    settings.latent_format = DemoLatentFormat(autoencoder["scaling_factor"], folder)
    settings.set_inference_dtype(torch.float32, None)
    names = comfy.utils.unet_to_diffusers(settings.unet_config)
    tensors = read_tensors(folder / "unet" / "diffusion_pytorch_model.safetensors")
    _refuse_unknown(folder / "unet", tensors.keys() - names.keys())
    weights = {names[name]: tensor for name, tensor in tensors.items()}
    model = settings.get_model(weights, "")
    model.load_model_weights(weights, "")
    manager = comfy.model_management
    return ModelPatcher(model, load_device=manager.get_torch_device(), offload_device=manager.unet_offload_device())


def _transformer(folder: Path) -> ModelPatcher:
    """The transformer with its flow."""
    config: TransformerSettings = _config(folder, "transformer")
    flow: FlowSettings = _config(folder, "scheduler", "scheduler_config.json")
    shared = _shared(folder, "vae").parent
    autoencoder: AutoencoderSettings = _config(shared, "vae")
    tensors = read_tensors(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    latent_format = DemoLatentFormat(autoencoder["scaling_factor"], shared)
    model = transformer_model(config, tensors, latent_format, flow["shift"])
    _refuse_unknown(folder / "transformer", set(tensors))
    return model


def _shared(folder: Path, component: str) -> Path:
    """A component's folder; what a model lacks is that of the UNet."""
    return folder / component if (folder / component).is_dir() else BASE_MODEL / component


def _clip(folder: Path) -> comfy.sd.CLIP:
    """The text encoder with token embeddings `(V, D)`, and its tokenizer."""
    config: TextSettings = _config(folder, "text_encoder")
    tensors = read_tensors(folder / "text_encoder" / "model.safetensors")
    # the UNet reads no pooled vector, but ComfyUI needs finite values
    projection = tensors.pop("text_projection.weight", None)  # (D, D)
    target = comfy.supported_models_base.ClipTarget(
        partial(SD1Tokenizer, tokenizer=partial(_tokenizer, _shared(folder, "tokenizer"), config)),
        partial(SD1ClipModel, clip_model=partial(_text_encoder, config, projection is not None)),
    )
    options = {"model_options": {"dtype": torch.float32}, **fixed_clip_options()}
    clip = comfy.sd.CLIP(target, embedding_directory=_embedding_folders(), **options)
    # transformers 4 writes the prefix text_model., version 5 omits it
    weights = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
    known = clip.cond_stage_model.clip_l.transformer.state_dict().keys()
    _refuse_unknown(folder / "text_encoder", weights.keys() - known - {"text_model.embeddings.position_ids"})
    clip.load_sd(
        {**weights, "text_projection.weight": torch.eye(config["hidden_size"]) if projection is None else projection}
    )
    return clip


def _tokenizer(folder: Path, config: TextSettings, **options: object) -> SDTokenizer:
    """ComfyUI's tokenizer, with prompt weights and `embedding:`, for the model's vocabulary."""
    return SDTokenizer(folder, tokenizer_class=WordTokenizer, embedding_size=config["hidden_size"], **options)


def _text_encoder(
    config: TextSettings,
    projected: bool,
    device: str | torch.device,
    dtype: torch.dtype,
    model_options: dict[str, object],
) -> SDClipModel:
    """ComfyUI's text encoder, token ids `(B, L)` -> `(B, L, D)`, with the model's own widths and special tokens; its pooled vector `(B, D)` is `projected` or not."""
    tokens = {"start": config["bos_token_id"], "end": config["eos_token_id"], "pad": config["pad_token_id"]}
    return SDClipModel(
        device=device,
        dtype=dtype,
        textmodel_json_config=dict(config),
        model_class=_SmallVocabularyModel,
        special_tokens=tokens,
        return_projected_pooled=projected,
        model_options=model_options,
    )


class _SmallVocabularyModel(CLIPTextModel):
    """ComfyUI's CLIP with the vocabulary size of the config instead of 49,408."""

    def __init__(self, config: TextSettings, dtype: torch.dtype, device: object, operations: object) -> None:
        super().__init__(config, dtype, device, operations)
        # (V, D) and (L, D)
        self.text_model.embeddings = CLIPEmbeddings(
            config["hidden_size"],
            config["vocab_size"],
            config["max_position_embeddings"],
            dtype=dtype,
            device=device,
            operations=operations,
        )


def _vae(folder: Path) -> comfy.sd.VAE:
    """The autoencoder, pictures `(B, H, W, 3)` to latents `(B, 8, H/8, W/8)` and back."""
    tensors = read_tensors(folder / "diffusion_pytorch_model.safetensors")
    weights: dict[str, Tensor] = {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    for name, tensor in tensors.items():
        side, _, place, rest = name.split(".", 3)
        # ComfyUI's decoder starts with a clamp layer, which shifts all layer numbers by one
        weights[f"taesd_{side}.{int(place) + (side == 'decoder')}.{rest}"] = tensor
    vae = comfy.sd.VAE(sd=weights, dtype=torch.float32)
    _refuse_unknown(folder, weights.keys() - vae.first_stage_model.state_dict().keys())
    return vae


def _embedding_folders() -> list[str]:
    import folder_paths

    return folder_paths.get_folder_paths("embeddings")


def _config(folder: Path, component: str, name: str = "config.json") -> Any:
    """The configuration of one component."""
    path = folder / component / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise BestiaryError(
            f"{component}/{name} of the embedded model cannot be read ({fault}): install Bestiary again"
        ) from fault


def _refuse_unknown(folder: Path, names: set[str]) -> None:
    if names:
        raise BestiaryError(
            f"{folder.name} of the embedded model contains {len(names)} weights that ComfyUI's model does not have, "
            f"such as {min(names)!r}: install Bestiary again"
        )
