"""Tiny SD3 and Flux models with random weights: the same ones in diffusers' classes and in ComfyUI's own.

SD3 goes through ComfyUI's stock loader, which takes as many layers as heads and hidden channels in multiples of 64. Its text is 4096 wide whatever the
encoders are, so the T5 of these models has few words.
"""

from __future__ import annotations

import atexit
import copy
from functools import cache
from typing import Any

import torch
from torch import nn

T5_WORDS = 500
"""Rows of the wide T5's table, which all pieces share: a whole one would take 500 MB."""
CLIP_L, CLIP_G, FLUX_T5 = 32, 64, 24
"""Widths of the tiny text encoders."""
SD3_SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rms norms": {"qk_norm": "rms_norm"},
    "dual attention": {"qk_norm": "rms_norm", "dual_attention_layers": (0,)},
}


def random_weights(model: nn.Module, spread: float) -> nn.Module:
    """The same random numbers in every session; norms and gates too, so that every weight matters."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own = torch.randn(parameter.shape, generator=rng) * spread
            parameter.copy_(own + 1 if "norm" in name and name.endswith(("weight", "scale")) else own)
    return model.eval().requires_grad_(False)


@cache
def sd3_reference(shape: str = "dual attention") -> nn.Module:
    """diffusers' SD3 with two blocks of two heads."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=64, num_attention_heads=2,
        joint_attention_dim=4096, caption_projection_dim=128, pooled_projection_dim=CLIP_L + CLIP_G, pos_embed_max_size=8, **SD3_SHAPES[shape],
    )  # fmt: skip
    return random_weights(model, 0.04)


@cache
def flux_reference(guidance: bool = True) -> nn.Module:
    """diffusers' Flux with two blocks of each kind."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=FLUX_T5,
        pooled_projection_dim=CLIP_L, guidance_embeds=guidance, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return random_weights(model, 0.12)


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@cache
def sd3_model(shape: str = "dual attention") -> Any:
    """`sd3_reference` as a MODEL."""
    import comfy.sd

    model = comfy.sd.load_diffusion_model_state_dict(_weights(sd3_reference(shape)), {"dtype": torch.float32})
    assert type(model.model).__name__ == "SD3"
    return model


@cache
def flux_model(guidance: bool = True) -> Any:
    """`flux_reference` as a MODEL of ComfyUI's own class, whose detection takes no such widths."""
    import comfy.ldm.flux.model
    import comfy.model_detection
    import comfy.model_patcher
    import comfy.supported_models

    kind = comfy.supported_models.Flux if guidance else comfy.supported_models.FluxSchnell
    sizes = {
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": CLIP_L, "context_in_dim": FLUX_T5,
        "hidden_size": 32, "mlp_ratio": 4.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000,
        "qkv_bias": True, "guidance_embed": guidance,
    }  # fmt: skip
    # newer cores ask more of a Flux
    if "txt_ids_dims" in comfy.ldm.flux.model.FluxParams.__annotations__:
        sizes["txt_ids_dims"] = []
    config = kind(sizes)
    config.set_inference_dtype(torch.float32, None)
    weights = comfy.model_detection.convert_diffusers_mmdit(_weights(flux_reference(guidance)), "")
    model = config.get_model(weights, "")
    missing, left_over = model.diffusion_model.load_state_dict(weights, strict=False)
    assert not missing and not left_over, (missing, left_over)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def _clip_config(width: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": 3, "hidden_size": width, "num_attention_heads": 2, "intermediate_size": 2 * width, "hidden_act": "quick_gelu",
        "max_position_embeddings": 77, "eos_token_id": 49407,
    }  # fmt: skip


def _t5_config(width: int, words: int) -> dict[str, Any]:
    return {
        "num_layers": 2,
        "num_decoder_layers": 2,
        "d_model": width,
        "d_kv": 8,
        "d_ff": 16,
        "num_heads": 2,
        "vocab_size": words,
    }


def _clip(target: Any, t5: dict[str, Any]) -> Any:
    import comfy.sd

    sizes = {
        "clip_l_model_config": _clip_config(CLIP_L),
        "clip_g_model_config": _clip_config(CLIP_G),
        "t5xxl_model_config": t5,
    }
    clip = comfy.sd.CLIP(target, embedding_directory=[], model_options={**sizes, "dtype": torch.float32})
    random_weights(clip.cond_stage_model, 0.2)
    # states of a wide encoder would be so large that rounding grows from step to step
    random_weights(clip.cond_stage_model.t5xxl, 0.2 * (FLUX_T5 / t5["d_model"]) ** 0.5)
    _share_rows(clip.cond_stage_model.t5xxl.transformer.shared)
    return clip


def _share_rows(table: nn.Embedding) -> None:
    """Let pieces beyond the table's rows have the rows of others."""
    plain = type(table)

    class Shared(plain):
        def forward(self, ids: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            return super().forward(ids % self.weight.shape[0], *args, **options)

    table.__class__ = Shared


@cache
def sd3_clip(*left_out: str) -> Any:
    """SD3's CLIP with real tokenizers; encoders that are left out (clip_l, clip_g, t5xxl) are missing as in ComfyUI."""
    import comfy.supported_models_base
    import comfy.text_encoders.sd3_clip as kinds

    if left_out:
        clip = sd3_clip().clone()
        clip.cond_stage_model = copy.copy(clip.cond_stage_model)
        clip.cond_stage_model._modules = {**clip.cond_stage_model._modules, **dict.fromkeys(left_out)}
        return clip
    build = kinds.sd3_clip(dtype_t5=torch.float32)
    return _clip(comfy.supported_models_base.ClipTarget(kinds.SD3Tokenizer, build), _t5_config(4096, T5_WORDS))


@cache
def flux_clip() -> Any:
    """Flux's CLIP with real tokenizers."""
    import comfy.supported_models_base
    import comfy.text_encoders.flux as kinds

    target = comfy.supported_models_base.ClipTarget(kinds.FluxTokenizer, kinds.flux_clip(dtype_t5=torch.float32))
    return _clip(target, _t5_config(FLUX_T5, 32128))


@cache
def picture_vae() -> Any:
    """A VAE of 16 latent channels with random weights."""
    import comfy.sd
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    reference = AutoencoderKL(**blocks, block_out_channels=(32,) * 4, layers_per_block=1, latent_channels=16)
    config = {"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32}
    config |= {"ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    params = {"ddconfig": config, "embed_dim": 16}
    vae = comfy.sd.VAE(sd=_weights(random_weights(reference, 0.05)), config={"params": params})
    vae.latent_channels = 16
    return vae


def text_reference(clip: Any, record: Any) -> Any:
    """The text encoders of a CLIP in transformers' classes, with the tokenizers that ComfyUI ships, as a text side of the command line."""
    from pathlib import Path

    import comfy.sd1_clip
    from bestiary.trainer.model.text_conditioning import TextEncoders
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        T5Config,
        T5EncoderModel,
        T5TokenizerFast,
    )

    folder, stage = Path(comfy.sd1_clip.__file__).parent, clip.cond_stage_model
    tokenizers, models = {}, {}
    for spec in record.text_encoders:
        weights = _weights(getattr(stage, spec.name).transformer)
        if spec.name == "t5xxl":
            sizes = {"d_model": spec.width, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
            words = weights["shared.weight"].shape[0]
            config = T5Config(**sizes, vocab_size=words, feed_forward_proj="gated-gelu", is_encoder_decoder=False)
            model = T5EncoderModel(config)
            weights["encoder.embed_tokens.weight"] = weights["shared.weight"]

            class Shared(T5TokenizerFast):
                """Gives pieces beyond the table's rows those of others, as `_share_rows`."""

                rows = words

                def __call__(self, *args: Any, **options: Any) -> Any:
                    read = super().__call__(*args, **options)
                    read["input_ids"] = [number % self.rows for number in read["input_ids"]]
                    return read

            tokenizers[spec.name] = Shared.from_pretrained(folder / "text_encoders" / "t5_tokenizer")
        else:
            config = CLIPTextConfig(**_clip_config(spec.width), projection_dim=spec.width, bos_token_id=49406)
            model = CLIPTextModelWithProjection(config)
            pad = {"clip_l": "<|endoftext|>", "clip_g": "!"}[spec.name]
            tokenizers[spec.name] = CLIPTokenizer.from_pretrained(folder / "sd1_tokenizer", pad_token=pad)
            # ComfyUI does not project this one
            if spec.name == "clip_l":
                weights["text_projection.weight"] = torch.eye(spec.width)
        missing, _ = model.load_state_dict(weights, strict=False)
        assert not missing, missing
        models[spec.name] = model.eval()
    return TextEncoders(record, tokenizers, models)


@atexit.register
def _release() -> None:
    """ComfyUI's models do not survive their modules."""
    for kept in (sd3_model, flux_model, sd3_clip, flux_clip, picture_vae):
        kept.cache_clear()
