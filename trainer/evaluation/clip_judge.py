"""CLIP as a judge of pictures: how like each other pictures are (CLIP-I), and how like a text (CLIP-T).

Radford et al., arXiv 2103.00020; the usual measure of personalised generation, with ViT-B/32. Weights are the user's: a folder in
transformers format, or a model of the Hugging Face cache; nothing is downloaded. Letters: N pictures, M texts, F features.
"""

import json
import logging
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig
from transformers.utils import logging as transformers_logging

from ...concepts.errors import BestiaryError
from ..model.backbones import HUB_NAME

logger = logging.getLogger("bestiary")
USUAL_CLIP = "openai/clip-vit-base-patch32"
"""The model that published figures are made with."""
_MEAN, _SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_PREPARATION = "preprocessor_config.json"
_AT_ONCE = 32


class ClipJudge:
    """A CLIP model with its tokenizer and its way of cutting pictures."""

    def __init__(
        self, model: CLIPModel, tokenizer: CLIPTokenizer, mean: Sequence[float], spread: Sequence[float]
    ) -> None:
        """`mean` and `spread` are what each of the three colours of `(N, 3, E, E)` is normalised by."""
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self._mean, self._spread = (torch.tensor(list(values)).view(1, 3, 1, 1) for values in (mean, spread))
        sizes = cast(CLIPConfig, model.config)
        self._edge = cast(int, cast(CLIPVisionConfig, sizes.vision_config).image_size)
        self._most_words = cast(CLIPTextConfig, sizes.text_config).max_position_embeddings

    @classmethod
    def load(cls, name: str, device: torch.device | str = "cpu") -> "ClipJudge":
        """A judge from a folder, or from "owner/name" of the Hugging Face cache.

        Raises:
            BestiaryError: there is no such model, it is no CLIP with both halves, or its files are broken.
        """
        folder = find_clip(name)
        with loading_model(folder, "a CLIP"):
            model = CLIPModel.from_pretrained(folder, local_files_only=True)
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        nn.Module.to(model, device)
        return cls(model, tokenizer, *color_preparation(folder))

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features `(N, F)` of length 1."""
        found = []
        for start in range(0, len(pictures), _AT_ONCE):
            some = torch.stack(
                [middle_square(picture, self._edge) for picture in pictures[start : start + _AT_ONCE]]
            )  # (n, 3, E, E)
            pixels = ((some - self._mean) / self._spread).to(self.model.device)
            # pooled and projected into the space that pictures and texts share
            hidden = self.model.vision_model(pixel_values=pixels).pooler_output  # (n, H)
            found.append(F.normalize(self.model.visual_projection(hidden), dim=-1).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features `(M, F)` of length 1; texts are cut at what the model can read."""
        words = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._most_words, return_tensors="pt"
        )
        hidden = self.model.text_model(**words.to(self.model.device)).pooler_output  # (M, H)
        return F.normalize(self.model.text_projection(hidden), dim=-1).cpu()


def middle_square(picture: Image.Image, edge: int, shorter: int | None = None) -> Tensor:
    """The middle square `(3, edge, edge)` in 0..1 of a picture whose shorter side becomes `shorter`; None is the edge."""
    width, height = picture.size
    wanted = shorter or edge
    scale = wanted / min(width, height)
    # the longer side is rounded down, as in the published preparation
    across, down = (wanted if side == min(width, height) else int(side * scale) for side in (width, height))
    resized = picture.convert("RGB").resize((across, down), Image.Resampling.BICUBIC)
    left, top = ((side - edge) // 2 for side in (across, down))
    square = resized.crop((left, top, left + edge, top + edge))
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(edge, edge, 3)
    return pixels.permute(2, 0, 1).float() / 255


@contextmanager
def loading_model(folder: Path, called: str) -> Iterator[None]:
    """What libraries raise about a model's folder becomes one sentence, and their progress bars are not shown.

    Raises:
        BestiaryError: what was raised inside.
    """
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except pickle.UnpicklingError as fault:
        # the fault's own text explains how to switch the protection off, so it is not repeated
        raise BestiaryError(
            f"{folder} was not loaded: a .bin file in it is broken or asks for more than tensors. Such a file can run "
            "programs; get the model in safetensors format"
        ) from fault
    except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as fault:
        raise BestiaryError(f"{folder} could not be loaded as {called} model: {str(fault).splitlines()[0]}") from fault
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def find_clip(name: str) -> Path:
    """`find_model` for CLIP."""
    return find_model(name, "CLIP", USUAL_CLIP)


def find_model(name: str, called: str, usual: str) -> Path:
    """Folder of a model: a path, or "owner/name" if the Hugging Face cache holds it.

    Args:
        called: what messages call such models.
        usual: name of the one that most use.

    Raises:
        BestiaryError: it is neither; the message says how to get one.
    """
    if Path(name).is_dir():
        return Path(name)
    # never downloaded here: the cache is only looked at
    try:
        if HUB_NAME.fullmatch(name) and not Path(name).exists():
            return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as fault:
        raise BestiaryError(
            f"{called} model {name!r} is neither a folder here nor in the Hugging Face cache: fetch it once with: hf download {name}"
        ) from fault
    raise BestiaryError(
        f"no {called} model {name!r}: give a folder in transformers format, or a name such as {usual} after: hf download {usual}"
    )


def color_preparation(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and spread of colours from the model's own settings, or the usual ones."""
    path = folder / _PREPARATION
    if not path.is_file():
        return _MEAN, _SPREAD
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        mean, spread = ([float(value) for value in settings[name]] for name in ("image_mean", "image_std"))
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise BestiaryError(f"{path} does not say image_mean and image_std: {type(fault).__name__}: {fault}") from fault
    # a spread of 0 would divide by nothing
    if len(mean) != 3 or len(spread) != 3 or min(spread) <= 0:
        raise BestiaryError(f"{path}: image_mean {mean} and image_std {spread} are not three colours each")
    return mean, spread
