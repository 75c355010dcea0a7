"""OWLv2: where things of given names stand in a picture.

Minderer et al., arXiv 2306.09683. Weights are the user's: a folder in transformers format, or a model of the Hugging Face cache; nothing
is downloaded. Letters: K detections, M names.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2TextConfig, Owlv2VisionConfig

from ...concepts.errors import BestiaryError
from .clip_judge import color_preparation, find_model, loading_model

USUAL_DETECTOR = "google/owlv2-base-patch16-ensemble"
_PADDING = 0.5
"""Grey below and right of the picture, as the model was published: google-research/scenic @ a6c4438,
scenic/projects/owl_vit/notebooks/inference.py. Newer versions of transformers fill with black there."""


@dataclass(frozen=True)
class Detections:
    """What was found, in the model's order."""

    boxes: Tensor
    """`(K, 4)` left, top, width and height in pixels, within the picture."""
    certainty: Tensor
    """`(K,)` 0..1."""
    names: Tensor
    """`(K,)` number of the name that fits best."""


class OwlDetector:
    """An OWLv2 model with its tokenizer and its colours."""

    def __init__(
        self, model: Owlv2ForObjectDetection, tokenizer: CLIPTokenizer, mean: Sequence[float], spread: Sequence[float]
    ) -> None:
        """`mean` and `spread` are what each of the three colours of `(1, 3, E, E)` is normalised by."""
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self._mean, self._spread = (torch.tensor(list(values)).view(1, 3, 1, 1) for values in (mean, spread))
        sizes = cast(Owlv2Config, model.config)
        self._edge = cast(int, cast(Owlv2VisionConfig, sizes.vision_config).image_size)
        self._most_words = cast(Owlv2TextConfig, sizes.text_config).max_position_embeddings

    @classmethod
    def load(cls, name: str = USUAL_DETECTOR, device: torch.device | str = "cpu") -> "OwlDetector":
        """A detector from a folder, or from "owner/name" of the Hugging Face cache.

        Raises:
            BestiaryError: there is no such model, it is no OWLv2, or its files are broken.
        """
        folder = find_model(name, "OWLv2", USUAL_DETECTOR)
        with loading_model(folder, "an OWLv2"):
            loaded = Owlv2ForObjectDetection.from_pretrained(folder, local_files_only=True, output_loading_info=True)
            # with this option the library gives two things, which its types do not say
            model, report = cast(tuple[Owlv2ForObjectDetection, Mapping[str, Collection[str]]], loaded)
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        # another network's file loads too, with random numbers in place of what it lacks
        if missing := sorted(report["missing_keys"]):
            raise BestiaryError(
                f"{folder} could not be loaded as an OWLv2 model: {len(missing)} tensors such as {missing[0]} are missing; give a "
                f"folder of the model {USUAL_DETECTOR}"
            )
        nn.Module.to(model, device)
        return cls(model, tokenizer, *color_preparation(folder))

    @torch.no_grad()
    def detect(self, picture: Image.Image, names: Sequence[str], least: float = 0.1) -> Detections:
        """Things of M names in a picture whose certainty is above `least`."""
        words = self.tokenizer(
            list(names), padding="max_length", truncation=True, max_length=self._most_words, return_tensors="pt"
        ).to(self.model.device)
        output = self.model(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"], pixel_values=self._prepared(picture)
        )
        certainty, best = output.logits[0].float().sigmoid().cpu().max(dim=-1)  # (places,)
        sure = certainty > least
        return Detections(
            _in_pixels(output.pred_boxes[0].float().cpu()[sure], picture.size), certainty[sure], best[sure]
        )

    def _prepared(self, picture: Image.Image) -> Tensor:
        """Pixels `(1, 3, E, E)` of the picture in the upper left of a grey square."""
        picture = picture.convert("RGB")
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(1, picture.height, picture.width, 3).permute(0, 3, 1, 2).float() / 255
        side = max(picture.size)
        square = functional.pad(pixels, (0, side - picture.width, 0, side - picture.height), value=_PADDING)
        edge = (self._edge, self._edge)
        resized = functional.interpolate(square, edge, mode="bilinear", antialias=True)  # (1, 3, E, E)
        return ((resized - self._mean) / self._spread).to(self.model.device)


def _in_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes `(K, 4)` of middle and size in shares of the square, as left, top, width and height in pixels within the picture."""
    middle, sides = boxes[:, :2] * max(size), boxes[:, 2:] * max(size)
    limit = torch.tensor(size, dtype=boxes.dtype)
    start = (middle - sides / 2).clamp(min=0).minimum(limit)
    end = (middle + sides / 2).clamp(min=0).minimum(limit)
    return torch.cat([start, end - start], dim=1)
