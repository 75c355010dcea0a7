"""DeepFloyd IF, stage I and II, over diffusers' UNet: pixels are denoised, T5 states are read, the learned variance is left as it is.

Stage I draws from text; stage II also sees a low picture at its noise level, the extras `guide` and `level` of a conditioning. Letters: B
batch, h and w the picture in pixels, L text states, D their width.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ...concepts.denoiser.adapters import Adapters
from ...concepts.denoiser.denoiser import AttentionRequest, Conditioning, NetworkOutput
from ...concepts.denoiser.image_side import PixelSpace
from ...concepts.denoiser.process import DiscreteProcess
from ...concepts.errors import BestiaryError
from ..learning.denoiser.encoded_texts import EncodedTexts
from ..learning.denoiser.if_folder import COLOURS, LICENCE_NOTE, IFFolder, IFStage, read_if_folder
from ..learning.denoiser.low_picture import GUIDE, LEVEL
from .backbones import discrete_process
from .component_loading import quiet_loading, refuse_quantised, weights_variant
from .denoiser_lora import IF_LAYERS, module_adapters
from .module_network import ModuleNetwork
from .sampling import SamplingDenoiser
from .t5_text import encoded_texts

logger = logging.getLogger("bestiary")


class IFDenoiser(SamplingDenoiser):
    """One stage of DeepFloyd IF; all weights are frozen, adapters are float32 parameters."""

    network: "IFNetwork"

    def __init__(self, folder: IFFolder, unet: UNet2DConditionModel, text: EncodedTexts, device: torch.device) -> None:
        """`unet` on the device, `text` what the sentences of this training say."""
        process = discrete_process(folder.schedule, device)
        super().__init__(folder.backbone, text, PixelSpace(), process, IFNetwork(folder.stage, unet, process))
        self.scheduler_config = dict(folder.schedule)
        self.stage, self.texts = folder.stage, text
        levels = folder.level_schedule
        self.level_alphas = None if levels is None else discrete_process(levels).alphas_cumprod
        """Stage II: how much of the low picture is left at every level `(levels,)`, on the CPU."""


class IFNetwork(ModuleNetwork):
    """The UNet of a stage as a `Network`. Predictions come back in float32, without the variance channels."""

    def __init__(self, stage: IFStage, unet: UNet2DConditionModel, process: DiscreteProcess) -> None:
        """Take over the UNet and freeze it."""
        super().__init__(unet, unet.conv_in)
        self.stage, self.unet, self._process = stage, unet, process
        self.adapters: Adapters = module_adapters(self.unet, lambda: self.device, IF_LAYERS)

    def predict(
        self,
        latents: Tensor,
        times: Tensor,
        conditioning: Conditioning,
        attention: AttentionRequest | None = None,
        features: Sequence[str] = (),
    ) -> NetworkOutput:
        """The noise `(B, 3, h, w)` in noised pictures `(B, 3, h, w)` at times `(B,)`.

        Raises:
            BestiaryError: stage II without a low picture, or attention or features, which are not read of this model.
        """
        if attention is not None or features:
            raise BestiaryError("attention and features of DeepFloyd IF are not read: train parts on Stable Diffusion")
        inputs, level = latents, None
        if self.stage == "II":
            guide, level = conditioning.extras.get(GUIDE), conditioning.extras.get(LEVEL)
            if guide is None or level is None:
                raise BestiaryError("stage II of DeepFloyd IF enlarges a picture, but was given none")
            inputs, level = torch.cat([latents, guide.to(latents)], dim=1), level.to(self.device)  # (B, 6, h, w)
        with torch.autocast(self.device.type, enabled=False):
            output: Tensor = self.unet(
                inputs.to(self.device, self.dtype),
                self._process.timesteps(times).to(self.device, torch.float32),
                encoder_hidden_states=conditioning.context.to(self.device, self.dtype),
                class_labels=level,
                return_dict=False,
            )[0]  # (B, 6, h, w): noise, and the variance that nothing here trains
        return NetworkOutput(output[:, :COLOURS].float())

    def attention_grids(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """None: attention of this model is not read."""
        return {}

    def method_layers(self) -> tuple[str, ...]:
        """None, likewise."""
        return ()

    def feature_grids(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """None, likewise."""
        return {}


def load_if(
    path: Path,
    texts: Sequence[str],
    cache: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    stage: IFStage | None = None,
    text_encoder: Path | None = None,
    tokenizer: Path | None = None,
) -> IFDenoiser:
    """A stage of DeepFloyd IF that knows some sentences; its T5 encoder is gone before its UNet is loaded.

    Args:
        path: diffusers folder of the stage.
        texts: all sentences that will be said, the empty one among them.
        cache: folder in which their encodings are kept.
        device, dtype: where and in what it computes.
        stage: the one that is wanted; None takes what the folder holds.
        text_encoder, tokenizer: in place of the folder's own, see `t5_text.encoded_texts`.

    Raises:
        BestiaryError: the folder is incomplete, of another model or of the other stage, its weights are quantised, or its texts cannot be
            encoded.
    """
    folder = read_if_folder(path)
    if stage is not None and folder.stage != stage:
        raise BestiaryError(
            f"{path} is stage {folder.stage} of DeepFloyd IF ({len(folder.stage) * COLOURS} input channels), but base.stage is {stage}: give a "
            f"folder of stage {stage}, such as IF-{stage}-M-v1.0, or use the recipe dreambooth_if_{folder.stage.lower()}",
            option="base.stage",
        )
    refuse_quantised(path / "unet")
    logger.warning("%s", LICENCE_NOTE)
    text = encoded_texts(
        folder, texts, cache, text_encoder=text_encoder, tokenizer=tokenizer, device=device, dtype=dtype
    )
    unet = read_unet(path / "unet", dtype)
    nn.Module.to(unet, device)
    logger.info("loaded stage %s of DeepFloyd IF from %s on %s in %s", folder.stage, path, device, dtype)
    return IFDenoiser(folder, unet, text, device)


def read_unet(folder: Path, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet of a folder, on the CPU.

    Raises:
        BestiaryError: its weights cannot be read, or are those of another config.
    """
    # the libraries' own method has no type for what it gives with its loading report
    library: Any = UNet2DConditionModel
    try:
        with quiet_loading():
            unet, outcome = library.from_pretrained(
                folder,
                torch_dtype=dtype,
                variant=weights_variant(folder),
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as fault:
        raise BestiaryError(
            f"the weights in {folder} could not be read ({fault}): download the model folder again"
        ) from fault
    odd = [f"{len(outcome[name])} {name.replace('_', ' ')}" for name in outcome if outcome[name]]
    if odd:
        raise BestiaryError(
            f"the weights in {folder} are not those of its config ({', '.join(odd)}): download the model folder again"
        )
    return unet
