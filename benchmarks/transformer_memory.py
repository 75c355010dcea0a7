"""Peak activations of one training step of SD 3.5 medium and Flux.1 at their published shapes, on fake tensors; called by activation_memory.py.

bf16, batch 1, 1024 px, rank-4 adapters on all attention projections, attention loss on the method's layers, text of ComfyUI's length; autoencoder and
text encoders are not in the figure.
"""

from dataclasses import dataclass

import torch
from bestiary.concepts.denoiser.attention_maps import average_maps
from bestiary.concepts.denoiser.backbone import BACKBONES
from bestiary.concepts.denoiser.denoiser import AttentionMethod, AttentionRequest, Conditioning
from bestiary.concepts.denoiser.low_rank import LoraSpec
from bestiary.concepts.denoiser.part_attention_loss import part_attention_loss
from bestiary.trainer.model.flux_denoiser import FluxDenoiser
from bestiary.trainer.model.sd3_denoiser import SD3Denoiser
from bestiary.trainer.model.transformer_network import TransformerDenoiser, TransformerParts
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from memory_meter import MemoryMeter
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

PARTS, EDGE = 8, 1024
GIB = 2**30


@dataclass(frozen=True)
class TransformerCase:
    """A model at 1024 px."""

    backbone: str
    checkpointing: bool
    text: int
    """Tokens of the context: two kinds of encoders in SD3, T5 alone in Flux."""


CASES = {
    "sd35m": TransformerCase("sd3", False, 77 + 77),
    "sd35m-checkpointing": TransformerCase("sd3", True, 77 + 77),
    "flux": TransformerCase("flux", False, 256),
    "flux-checkpointing": TransformerCase("flux", True, 256),
}


def build_denoiser(backbone: str) -> TransformerDenoiser:
    """A bf16 denoiser of the published shape; fake weights cannot be cast later."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        transformer: nn.Module = _sd35_medium() if backbone == "sd3" else _flux()
    finally:
        torch.set_default_dtype(before)
    kind = SD3Denoiser if backbone == "sd3" else FluxDenoiser
    return kind(BACKBONES[backbone], TransformerParts(transformer))


def _sd35_medium() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64, num_attention_heads=24,
        joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048, pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
    )  # fmt: skip


def _flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(guidance_embeds=True)  # the library's defaults are dev's


def measure(name: str, columns: AttentionMethod) -> dict[str, object]:
    """Peak bytes of activations of a step, forward and backward, and bytes of weights."""
    case = CASES[name]
    with FakeTensorMode(allow_non_fake_inputs=True):
        denoiser = build_denoiser(case.backbone)
        network, backbone = denoiser.network, denoiser.backbone
        network.adapters.add(LoraSpec(rank=4))
        network.set_gradient_checkpointing(case.checkpointing)
        places = torch.arange(1, PARTS + 1)[None, :, None]  # (1, M, 1)
        if case.backbone == "sd3":
            places = torch.cat([places, places + 77], dim=-1)
        pooled = sum(spec.width for spec in backbone.text_encoders if spec.pooled)
        context = torch.randn(1, case.text, backbone.context_width, dtype=torch.bfloat16, requires_grad=True)
        text = Conditioning.of(context, pooled=torch.randn(1, pooled, dtype=torch.bfloat16))
        latents = torch.randn(1, 16, EDGE // 8, EDGE // 8, dtype=torch.bfloat16)
        masks = torch.ones(1, PARTS, EDGE // 16, EDGE // 16)
        weights = [*network.transformer.parameters(), *network.transformer.buffers()]
        meter = MemoryMeter()
        meter.ignore([weights, [context, latents, masks, text.extras["pooled"]]])
        # no FLOPs beside it: their counter holds on to what is recomputed
        with meter:
            out = network.predict(latents, torch.tensor([0.5]), text, AttentionRequest(places, None, columns))
            maps = average_maps(out.attention, masks.shape[-1])
            loss = part_attention_loss(maps, masks, torch.ones(1, PARTS, dtype=torch.bool))
            (out.prediction.square().mean() + 0.01 * loss).backward()
        held = sum(weight.numel() * weight.element_size() for weight in weights)
    return {
        "case": name,
        "columns": columns,
        "read_layers": list(network.method_layers()),
        "gib_activations": round(meter.peak / GIB, 3),
        "gib_weights": round(held / GIB, 3),
    }
