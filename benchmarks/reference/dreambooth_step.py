"""One step of the LoRA script of huggingface/diffusers, examples/dreambooth/train_dreambooth_lora.py at 58eb52c080, written anew.

What it does in every step: the autoencoder encodes the pictures, the text encoder their sentences; the UNet carries adapters of PEFT;
the batch holds pictures of the thing and then of its class, and the loss is the sum of both means.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor
from transformers import CLIPTextModel

TARGETS = ["to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]


@dataclass(frozen=True)
class DreamBoothRows:
    """Pictures of the thing, then as many of its class, with everything drawn at random."""

    pixels: Tensor
    """`(2 n, 3, H, W)` in -1..1."""
    ids: Tensor
    """`(2 n, 77)` tokens."""
    posterior_noise: Tensor
    noise: Tensor
    """`(2 n, 4, h, w)` each."""
    timesteps: Tensor
    """`(2 n,)` long."""


class DreamBoothReference:
    """The script's step over given modules."""

    def __init__(
        self, unet: UNet2DConditionModel, vae: AutoencoderKL, text: CLIPTextModel, scheduler: DDPMScheduler, rank: int
    ) -> None:
        """Adds fresh adapters to `unet`; alpha is the rank, as in the script."""
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS))
        self.unet, self.vae, self.text, self.scheduler = unet, vae, text, scheduler

    def loss(self, rows: DreamBoothRows, prior_weight: float = 1.0) -> Tensor:
        """Loss of a batch."""
        posterior = self.vae.encode(rows.pixels).latent_dist
        latents = (posterior.mean + posterior.std * rows.posterior_noise) * self.vae.config.scaling_factor
        noised = self.scheduler.add_noise(latents, rows.noise, rows.timesteps)  # type: ignore[arg-type]
        told = self.text(rows.ids)[0]  # (2 n, 77, E)
        prediction = self.unet(noised, rows.timesteps, told).sample
        instance, of_class = prediction.float().chunk(2)
        wanted, wanted_of_class = rows.noise.float().chunk(2)
        return F.mse_loss(instance, wanted) + prior_weight * F.mse_loss(of_class, wanted_of_class)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The adapters."""
        return {name: one for name, one in self.unet.named_parameters() if "lora_" in name}
