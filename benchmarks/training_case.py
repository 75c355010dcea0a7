"""One training micro-step of the reference and of ours, over the same random weights and the same random numbers."""

import copy
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
from bestiary.concepts.denoiser.backbone import BACKBONES
from bestiary.concepts.denoiser.denoiser import AttentionMethod, EncoderLayout
from bestiary.concepts.denoiser.low_rank import LoraSpec
from bestiary.concepts.denoiser.process import DiscreteProcess
from bestiary.concepts.part_dictionary.token_projector import TokenProjector
from bestiary.trainer.learning.parts.part_objective import AttentionLoss, PartBatch, PartObjective
from bestiary.trainer.model.diffusers_denoiser import DenoiserParts, DiffusersDenoiser
from bestiary.trainer.model.text_conditioning import TextEncoders
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from reference.partcraft_step import PartSegmenter, ReferenceBatch, ReferenceStep, prepare_denoiser
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, Dinov2Config, Dinov2Model

PARTS, KINDS = 8, 256
START, END, FIRST_PLACEHOLDER = 49406, 49407, 49408
EDGE = 16
"""Edge of the attention grid the reference reads, whatever the picture's size."""
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


@dataclass(frozen=True)
class CaseSize:
    """How large a case is."""

    resolution: int
    batch: int
    unet_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    text_layers: int = 12
    dino_layers: int = 12


NARROW = {"unet_channels": (64, 128, 256, 256), "vae_channels": (32, 64, 128, 128)}
"""A fifth of Stable Diffusion's width, a quarter of its autoencoder's."""


def sd15_unet(channels: tuple[int, ...], resolution: int) -> UNet2DConditionModel:
    """A denoiser of Stable Diffusion 1.5's shape."""
    return UNet2DConditionModel(
        sample_size=resolution // 8, block_out_channels=channels, attention_head_dim=8, cross_attention_dim=768
    )


def sd15_vae(channels: tuple[int, ...]) -> AutoencoderKL:
    """An autoencoder of Stable Diffusion 1.5's shape."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=2,
        latent_channels=4,
    )


def clip_text_model(layers: int) -> CLIPTextModel:
    """CLIP ViT-L's text encoder with the placeholders' rows, its embeddings of trained size."""
    config = CLIPTextConfig(
        vocab_size=FIRST_PLACEHOLDER + PARTS,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=12,
        eos_token_id=END,
    )
    return CLIPTextModel(config)


class ReferenceMapper(nn.Module):
    """The reference's call order (codes of all parts at once) over the weights of our projector."""

    def __init__(self, projector: TokenProjector) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, codes: Tensor) -> Tensor:
        """`(B, M)` -> `(B, M, D)`."""
        # row part * (K + 1) + kind of the table, for all parts at once
        offsets = torch.arange(PARTS) * (KINDS + 1)
        rows = self.projector.embedding(codes.long() + offsets.reshape(1, -1))  # (B, M, D)
        return self.projector.projection(rows + self.projector.pe.unsqueeze(0).repeat(len(codes), 1, 1))


@dataclass
class TrainingCase:
    """Both steps, ready to run; gradients gather on their parameters."""

    reference: ReferenceStep
    reference_batch: ReferenceBatch
    reference_parameters: dict[str, nn.Parameter]
    ours: PartObjective
    our_batch: PartBatch
    our_parameters: dict[str, nn.Parameter]

    def run_reference(self) -> Tensor:
        """Forward and backward; returns the loss."""
        _clear(self.reference_parameters)
        loss = self.reference(self.reference_batch)
        loss.backward()
        return loss.detach()

    def run_ours(self) -> Tensor:
        """Forward and backward; returns the loss."""
        _clear(self.our_parameters)
        loss = self.ours(self.our_batch).total
        loss.backward()
        return loss.detach()

    def gradient_error(self) -> float:
        """Relative L2 distance of our whole gradient from the reference's, after both have run."""
        difference, size = 0.0, 0.0
        for name, parameter in self.reference_parameters.items():
            theirs = parameter.grad.double()
            difference += float((self.our_parameters[name].grad.double() - theirs).square().sum())
            size += float(theirs.square().sum())
        return (difference / size) ** 0.5


def _clear(parameters: dict[str, nn.Parameter]) -> None:
    for parameter in parameters.values():
        parameter.grad = None


def build_case(size: CaseSize, columns: AttentionMethod = "one_hot", seed: int = 0) -> TrainingCase:
    """Weights, pictures `(B, 3, H, W)` and random numbers from a seed; no up matrix is zero: all gradients count."""
    # frozen models, the same for both
    torch.manual_seed(seed)
    unet = sd15_unet(size.unet_channels, size.resolution).eval().requires_grad_(False)
    vae = sd15_vae(size.vae_channels).eval().requires_grad_(False)
    text = clip_text_model(size.text_layers).eval().requires_grad_(False)
    dino_config = Dinov2Config(image_size=518, patch_size=14, num_hidden_layers=size.dino_layers)
    dino = Dinov2Model(dino_config).eval().requires_grad_(False)
    # learned weights: ours first, then copies of them for the reference
    projector = TokenProjector(PARTS, KINDS, 768)
    their_unet = copy.deepcopy(unet)  # ours changes the memory layout of its own
    denoiser = _our_denoiser(unet, vae, text)
    adapters = dict(denoiser.network.adapters.add(LoraSpec(rank=4, alpha=4.0)))
    for parameter in adapters.values():
        parameter.data.normal_(std=0.05)
    their_adapters = prepare_denoiser(their_unet, {name: p.data for name, p in adapters.items()}, EDGE)
    their_projector = copy.deepcopy(projector)
    batch, segmenter = _pictures(size, vae, dino)
    step = ReferenceStep(
        unet=their_unet,
        vae=vae,
        text_encoder=text,
        mapper=ReferenceMapper(their_projector),
        segmenter=segmenter,
        scheduler=DDPMScheduler(**SCHEDULE),
        placeholder_ids=range(FIRST_PLACEHOLDER, FIRST_PLACEHOLDER + PARTS),
    )
    # the layers on the reference's grid, whatever the size of the picture
    factor = size.resolution // 8 // EDGE
    layers = tuple(name for name, own in denoiser.attention_factors().items() if own == factor)
    objective = PartObjective(denoiser, projector, adapters, attention=AttentionLoss(0.01, "bce", layers, columns))
    return TrainingCase(
        step,
        batch,
        {**their_adapters, **dict(their_projector.named_parameters())},
        objective,
        _our_batch(batch, vae, segmenter),
        {**adapters, **dict(projector.named_parameters())},
    )


def _our_denoiser(unet: nn.Module, vae: nn.Module, text: nn.Module) -> DiffusersDenoiser:
    backbone = replace(BACKBONES["sd15"])
    tokenizer = SimpleNamespace(bos_token_id=START, eos_token_id=END, pad_token_id=END, unk_token_id=END)
    parts = DenoiserParts(
        unet=unet.to(memory_format=torch.channels_last),
        vae=vae,
        text=TextEncoders(backbone, {"clip_l": tokenizer}, {"clip_l": text}),
        process=DiscreteProcess(DDPMScheduler(**SCHEDULE).alphas_cumprod, "epsilon"),
        scheduler_config=SCHEDULE,
    )
    return DiffusersDenoiser(backbone, parts)


def _pictures(size: CaseSize, vae: nn.Module, dino: nn.Module) -> tuple[ReferenceBatch, PartSegmenter]:
    """Random pictures, captions that name all parts, and a segmenter whose centroids come from their own patches."""
    edge, batch = size.resolution, size.batch
    # smooth random pictures: DINOv2 sees patches that differ
    coarse = torch.randint(0, 256, (batch, 12, 12, 3), dtype=torch.uint8)
    pictures = [Image.fromarray(tile.numpy()).resize((edge, edge), Image.Resampling.BICUBIC) for tile in coarse]
    flat = [torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8) for picture in pictures]
    pixels = torch.stack(flat).view(batch, edge, edge, 3).permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, 3, H, W)
    # start token, all placeholders in a random order, end tokens
    ids = torch.full((batch, 77), END)
    ids[:, 0] = START
    ids[:, 1 : PARTS + 1] = torch.stack([torch.randperm(PARTS) for _ in range(batch)]) + FIRST_PLACEHOLDER
    segmenter = PartSegmenter(dino, torch.randn(2, 768), torch.randn(PARTS, 768))
    noise = torch.randn(2, batch, 4, edge // 8, edge // 8)
    codes = torch.randint(0, KINDS, (batch, PARTS))
    made = ReferenceBatch(pictures, pixels, ids, codes, noise[0], noise[1], torch.randint(0, 1000, (batch,)))
    return made, segmenter


def _our_batch(batch: ReferenceBatch, vae: nn.Module, segmenter: PartSegmenter) -> PartBatch:
    """The same step as our cache would hand it over: moments, masks and places of the tokens are known."""
    with torch.no_grad():
        posterior = vae.encode(batch.pixels).latent_dist
    # what the reference computes in every step is computed once here
    masks, _ = segmenter.masks(batch.pictures)
    prompts = []
    # places of the tokens, and a filler where they stood
    for row in batch.ids:
        placeholders = torch.arange(FIRST_PLACEHOLDER, FIRST_PLACEHOLDER + PARTS)
        positions = (row[None] == placeholders[:, None]).long().argmax(-1)  # (M,)
        ids = torch.where(row >= FIRST_PLACEHOLDER, torch.zeros_like(row), row)[None]  # (1, 77)
        prompts.append({"clip_l": EncoderLayout(ids, positions, torch.ones(1, 77))})
    return PartBatch(
        names=tuple(str(row) for row in range(len(batch.ids))),
        moments=torch.stack([posterior.mean, posterior.logvar], dim=1),
        noise=torch.stack([batch.posterior_noise, batch.noise], dim=1),
        times=(batch.timesteps + 1) / 1000,
        codes=batch.codes,
        prompts=tuple(prompts),
        masks=masks.bool(),
    )
