"""Tiny random diffusion transformers of ComfyUI's own classes, and samplings with them."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

WIDTH = 32
"""Width of the contexts and of pooled vectors."""
ROPE = {"axes_dim": [8, 12, 12], "theta": 10000}
CONFIGS = {
    "sd3": ("SD3", {
        "in_channels": 16, "pos_embed_scaling_factor": None, "patch_size": 2, "depth": 1, "num_blocks": 5, "adm_in_channels": WIDTH,
        "num_patches": 144, "pos_embed_max_size": 12, "qk_norm": "rms", "x_block_self_attn_layers": [0, 1, 2],
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": 64}},
    }),
    "flux": ("Flux", {
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": WIDTH, "context_in_dim": WIDTH,
        "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 3, "depth_single_blocks": 2, "qkv_bias": True,
        "guidance_embed": True, **ROPE,
    }),
    "qwen_image": ("QwenImage", {
        "image_model": "qwen_image", "in_channels": 64, "num_layers": 4, "attention_head_dim": 32, "num_attention_heads": 2,
        "joint_attention_dim": WIDTH, "axes_dims_rope": (8, 12, 12),
    }),
    "z_image": ("ZImage", {
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 256, "n_layers": 4, "n_refiner_layers": 1, "n_heads": 8,
        "multiple_of": 32, "ffn_dim_multiplier": 1.0, "qk_norm": True, "cap_feat_dim": WIDTH, "axes_dims": [8, 12, 12],
        "axes_lens": [64, 64, 64], "rope_theta": 256.0, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
    }),
    "anima": ("Anima", {
        "image_model": "anima", "max_img_h": 64, "max_img_w": 64, "max_frames": 4, "in_channels": 16, "out_channels": 16,
        "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64, "num_blocks": 4, "num_heads": 2,
        "crossattn_emb_channels": WIDTH, "pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 16,
    }),
}  # fmt: skip
FRAMES = {"qwen_image", "anima"}
"""Families whose latents have a dimension of frames."""
TEXTS = {"sd3": 20, "flux": 24, "qwen_image": 9, "z_image": 11, "anima": 7}
"""Tokens of a prompt."""
EDGE = 8, 12
"""Height and width of the latents."""


@pytest.fixture(scope="session")
def tiny(comfy_modules: None) -> SimpleNamespace:
    """`tiny.model(family)`, kept; `tiny.sample` and `tiny.prompt` with what they use."""
    return SimpleNamespace(
        model=functools.cache(tiny_transformer),
        quantised=functools.partial(tiny_transformer, dtype=torch.float8_e4m3fn),
        prompt=prompt,
        sample=sample,
        texts=TEXTS,
    )


def tiny_transformer(family: str, dtype: torch.dtype = torch.float32) -> object:
    """A MODEL of a family with random weights, kept in `dtype` and computed in float32; the test is skipped where this ComfyUI has no such family."""
    import comfy.ldm.flux.model
    import comfy.model_patcher
    import comfy.supported_models

    name, config = CONFIGS[family]
    if family == "flux" and "txt_ids_dims" in comfy.ldm.flux.model.FluxParams.__dataclass_fields__:
        config = {**config, "txt_ids_dims": []}
    kind = getattr(comfy.supported_models, name, None)
    if kind is None:
        pytest.skip(f"this ComfyUI has no {name}")
    made = kind(dict(config))
    made.set_inference_dtype(dtype, None if dtype == torch.float32 else torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        if family == "anima":
            adapter = "comfy.ldm.anima.model.LLMAdapter"
            import comfy.ldm.anima.model as anima

            sizes = {"source_dim": WIDTH, "target_dim": WIDTH, "model_dim": WIDTH, "num_layers": 1, "num_heads": 2}
            patch.setattr(adapter, functools.partial(anima.LLMAdapter, **sizes))
        model = made.get_model({}, "")
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        tensors = [*model.diffusion_model.named_parameters(), *model.diffusion_model.named_buffers()]
        for key, tensor in tensors:
            if not tensor.is_floating_point() or "freq" in key or "seq" in key:
                continue
            drawn = torch.randn(tensor.shape, generator=noise)
            # weights of norms lie around 1
            is_norm = tensor.ndim == 1 and key.endswith(("weight", "scale"))
            tensor.copy_(
                1 + 0.2 * drawn
                if is_norm
                else drawn * (1.5 / max(1, tensor.shape[-1]) ** 0.5 if tensor.ndim > 1 else 0.1)
            )
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)


def prompt(family: str, seed: int = 1, tokens: int | None = None, **options: object) -> list:
    """A conditioning of random states."""
    noise = torch.Generator().manual_seed(seed)
    count = TEXTS[family] if tokens is None else tokens
    facts: dict[str, object] = {"pooled_output": torch.randn(1, WIDTH, generator=noise)}
    if family == "anima":
        facts["t5xxl_ids"] = torch.randint(2, 30000, (count + 2,), generator=noise, dtype=torch.int)
        facts["t5xxl_weights"] = torch.ones(count + 2)
    return [torch.randn(1, count, WIDTH, generator=noise), {**facts, **options}]


def sample(
    family: str,
    model: object,
    spans: tuple = (),
    steps: int = 1,
    batch: int = 2,
    edge: tuple[int, int] = EDGE,
    positive: list | None = None,
    negative: list | None = None,
    **options: object,
) -> Tensor:
    """A sampling of ComfyUI's with fixed noise; `spans` are those of the positive prompt."""
    import comfy.sample
    from bestiary.nodes.host.socket_types import SPANS_KEY

    positive = [prompt(family, **{SPANS_KEY: spans})] if positive is None else positive
    negative = [prompt(family, seed=2)] if negative is None else negative
    frames = (1,) if family in FRAMES else ()
    noise = torch.randn(batch, 16, *frames, *edge, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, 3.0, "euler", "simple", positive, negative, torch.zeros_like(noise), seed=4,
            disable_pbar=True, **options,
        )  # fmt: skip
