"""P2: peak activations and FLOPs of one training step of the denoiser, ours against the reference's, on fake tensors.

    python benchmarks/activation_memory.py [--case sd15|sdxl|sdxl-checkpointing|all] [--columns one_hot|lse]
    python benchmarks/activation_memory.py --case sd35m|sd35m-checkpointing|flux|flux-checkpointing|transformers [--columns one_hot|lse]

bf16, batch 1, adapters on all attention layers, attention loss on the method's layers; autoencoder, text encoder and
DINOv2 are not in the figure (the reference keeps the last and the first resident besides). Goals: at most 1/3.5 (SD1.5 at
512), 1/2.3 (SDXL at 1024), 1/3.9 (SDXL at 1024, ours with gradient checkpointing). Of transformers, which the reference does not train, ours alone.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import transformer_memory
from bestiary.concepts.denoiser.attention_maps import average_maps
from bestiary.concepts.denoiser.backbone import BACKBONES
from bestiary.concepts.denoiser.denoiser import (
    AttentionMethod,
    AttentionRequest,
    Conditioning,
)
from bestiary.concepts.denoiser.low_rank import LoraSpec
from bestiary.concepts.denoiser.part_attention_loss import part_attention_loss
from bestiary.concepts.denoiser.process import DiscreteProcess
from bestiary.trainer.model.diffusers_denoiser import DenoiserParts, DiffusersDenoiser
from diffusers import UNet2DConditionModel
from memory_meter import MemoryMeter
from reference.partcraft_step import prepare_denoiser
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

PARTS, TOKENS = 8, 77
GIB = 2**30


@dataclass(frozen=True)
class MemoryCase:
    """One comparison."""

    backbone: str
    resolution: int
    checkpointing: bool
    goal: float
    """Largest allowed share of the reference's peak."""


CASES = {
    "sd15": MemoryCase("sd15", 512, False, 1 / 3.5),
    "sdxl": MemoryCase("sdxl", 1024, False, 1 / 2.3),
    "sdxl-checkpointing": MemoryCase("sdxl", 1024, True, 1 / 3.9),
}


@dataclass(frozen=True)
class Measured:
    """Peak bytes of activations and FLOPs (2 per multiply-add) of forward and backward."""

    peak: int
    flops: int


def build_unet(backbone: str) -> UNet2DConditionModel:
    """A bf16 denoiser of the backbone's published shape; fake weights cannot be cast later."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return _unet_of(backbone).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def _unet_of(backbone: str) -> UNet2DConditionModel:
    if backbone == "sd15":
        return UNet2DConditionModel(sample_size=64, attention_head_dim=8, cross_attention_dim=768)
    return UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


@dataclass(frozen=True)
class Inputs:
    """Fake inputs of one step, batch 1."""

    latents: Tensor
    context: Tensor
    pooled: Tensor | None
    masks: Tensor
    positions: Tensor


def _inputs(case: MemoryCase) -> Inputs:
    """Random inputs in the shapes of the case; the context `(1, 77, E)` wants a gradient, as learned vectors do."""
    wide = case.backbone == "sdxl"
    edge, grid = case.resolution // 8, case.resolution // 32
    return Inputs(
        torch.randn(1, 4, edge, edge, dtype=torch.bfloat16),
        torch.randn(1, TOKENS, 2048 if wide else 768, dtype=torch.bfloat16, requires_grad=True),
        torch.randn(1, 1280, dtype=torch.bfloat16) if wide else None,
        torch.ones(1, PARTS, grid, grid),
        torch.arange(1, PARTS + 1)[None],
    )


def measure_ours(case: MemoryCase, columns: AttentionMethod) -> Measured:
    """Our denoiser with adapters, attention columns and both losses, at latents `(1, 4, h, w)`."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        unet = build_unet(case.backbone)
        # only shapes matter here: any falling schedule will do
        schedule = DiscreteProcess(torch.linspace(0.999, 0.005, 1000), "epsilon")
        denoiser = DiffusersDenoiser(replace(BACKBONES[case.backbone]), DenoiserParts(unet, None, None, schedule, {}))
        denoiser.network.adapters.add(LoraSpec(rank=4))
        denoiser.network.set_gradient_checkpointing(case.checkpointing)

        def step(inputs: Inputs) -> Tensor:
            text = Conditioning.of(inputs.context, pooled=inputs.pooled)
            request = AttentionRequest(inputs.positions.unsqueeze(-1), None, columns)
            out = denoiser.network.predict(inputs.latents, torch.tensor([0.501]), text, request)
            # both losses, so that the graph is that of a real step
            maps = average_maps(out.attention, inputs.masks.shape[-1])
            present = torch.ones(1, PARTS, dtype=torch.bool)
            return out.prediction.square().mean() + 0.01 * part_attention_loss(maps, inputs.masks, present)

        return _measure(step, case, denoiser.unet)


def measure_reference(case: MemoryCase) -> Measured:
    """The reference's denoiser: float32 adapters around explicit attention, all probabilities formed."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        unet = build_unet(case.backbone)
        grid = case.resolution // 32
        prepare_denoiser(unet, _adapter_shapes(unet), grid)

        def step(inputs: Inputs) -> Tensor:
            added = None
            if inputs.pooled is not None:
                sizes = torch.zeros(1, 6, dtype=torch.bfloat16)
                added = {"text_embeds": inputs.pooled, "time_ids": sizes}
            out = unet(inputs.latents, torch.tensor([500]), inputs.context, added_cond_kwargs=added).sample
            # kept probabilities of all cross-attention layers on the grid, mean over heads, then over layers
            kept = [m.kept.mean(dim=1) for m in unet.modules() if getattr(m, "kept", None) is not None]
            average = torch.stack(kept).mean(dim=0)  # (1, g, g, 77)
            maps = average[..., 1 : PARTS + 1].permute(0, 3, 1, 2).float()  # (1, M, g, g)
            share = maps / maps.sum(dim=1, keepdim=True).clamp(min=1e-6)
            loss = functional.binary_cross_entropy(share.clamp(0, 1), inputs.masks)
            return out.float().square().mean() + 0.01 * loss

        return _measure(step, case, unet)


def _adapter_shapes(unet: nn.Module) -> dict[str, Tensor]:
    """Rank-4 float32 adapters of every attention projection, `(4, in)` and `(out, 4)`, by kohya name."""
    adapters = {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and (".attn1.to_" in name or ".attn2.to_" in name):
            key = "lora_unet_" + name.replace(".", "_")
            adapters[f"{key}.lora_down.weight"] = torch.zeros(4, module.in_features)
            adapters[f"{key}.lora_up.weight"] = torch.zeros(module.out_features, 4)
    return adapters


def _measure(step: Callable[[Inputs], Tensor], case: MemoryCase, unet: nn.Module) -> Measured:
    """Peak and FLOPs of one step, forward and backward, at latents `(1, 4, h, w)`."""
    inputs = _inputs(case)
    # weights and inputs exist before the step and are no activations
    meter = MemoryMeter()
    meter.ignore([list(unet.parameters()), vars(inputs)])
    with FlopCounterMode(display=False) as flops, meter:
        step(inputs).backward()
    return Measured(meter.peak, flops.get_total_flops())


def compare(name: str, columns: AttentionMethod = "one_hot") -> dict[str, object]:
    """Both figures of one case."""
    case = CASES[name]
    theirs, ours = measure_reference(case), measure_ours(case, columns)
    # our share of the reference's peak is what the goal is about
    share = ours.peak / theirs.peak
    return {
        "case": name,
        "columns": columns,
        "gib_reference_ours": [round(theirs.peak / GIB, 3), round(ours.peak / GIB, 3)],
        "reference_over_ours": round(1 / share, 3),
        "goal": round(1 / case.goal, 3),
        "teraflops_reference_ours": [round(theirs.flops / 1e12, 3), round(ours.flops / 1e12, 3)],
        "met": share <= case.goal,
    }


def main() -> None:
    """Print one JSON line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=(*CASES, *transformer_memory.CASES, "all", "transformers"), default="all")
    parser.add_argument("--columns", choices=("one_hot", "lse"), default="one_hot")
    arguments = parser.parse_args()
    groups = {"all": tuple(CASES), "transformers": tuple(transformer_memory.CASES)}
    for name in groups.get(arguments.case, (arguments.case,)):
        figures = compare if name in CASES else transformer_memory.measure
        sys.stdout.write(json.dumps(figures(name, arguments.columns)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
