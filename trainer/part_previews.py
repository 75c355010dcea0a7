"""What a training looks like on the way: real pictures beside pictures made from their tokens, and where tokens look."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..concepts.atomic_file import replacing
from ..concepts.attention_maps import average_maps
from ..concepts.denoiser import PromptPiece, TextConditioning
from .contact_sheet import contact_sheet
from .heat_maps import heat_map
from .image_files import fit_square, read_image
from .part_objective import PartBatch
from .run_folder import RunFolder
from .sampling import sample_images
from .training_setup import TrainingSetup

TILE = 160
"""Edge of a preview tile in pixels."""


class PartPreviews:
    """Writes `samples/step-N.png` and `samples/step-N-attention.png` of the same few training pictures every time."""

    def __init__(self, setup: TrainingSetup, run: RunFolder) -> None:
        """Choose the pictures: those that together show as many kinds as possible."""
        self._setup, self._run = setup, run
        settings = setup.settings.run
        self._rows = varied_rows(setup.pictures.kinds.codes, settings.preview_count)
        self._settings = settings

    def write(self, step: int, *, sampling_steps: int | None = None) -> None:
        """Write both sheets for the weights as they are now."""
        made = self.sample(sampling_steps or self._settings.preview_steps)  # (n, 3, H, W)
        real = [self._picture(row) for row in self._rows]
        labels = [self._setup.pictures.names[row] for row in self._rows]
        images = [*real, *(_to_image(image) for image in made)]
        captions = [*labels, *("made from its tokens" for _ in labels)]
        sheet = contact_sheet(images, captions, columns=len(labels), tile=TILE)
        self._save(sheet, f"step-{step:07d}.png")
        if self._setup.objective.attention is not None:
            self._save(self._attention_sheet(real), f"step-{step:07d}-attention.png")

    @torch.no_grad()
    def sample(self, steps: int) -> Tensor:
        """Pictures `(n, 3, H, W)` 0..1 of "a photo of a" and all tokens of each chosen picture, seeds 0 to n - 1."""
        denoiser = self._setup.denoiser
        sampled = sample_images(
            denoiser,
            self._encode(),
            None,
            seeds=range(len(self._rows)),
            steps=steps,
            guidance=self._settings.preview_guidance,
            size=self._setup.image_size,
        )
        return sampled.images

    def _encode(self) -> TextConditioning:
        codes = torch.from_numpy(self._setup.pictures.kinds.codes[self._rows])  # (n, M)
        prompts, vectors = [], []
        table = self._setup.objective.projector.collapse()  # (M, K + 1, D)
        for row in codes.tolist():
            shown = [(part, kind) for part, kind in enumerate(row) if kind >= 0]
            pieces = [PromptPiece("a photo of a"), *(PromptPiece(None) for _ in shown)]
            noun = self._setup.settings.captions.noun
            prompts.append(self._setup.denoiser.tokenize([*pieces, *([PromptPiece(noun)] if noun else [])], chunks=1))
            own = table.new_zeros(codes.shape[1], table.shape[-1])  # (M, D)
            own[: len(shown)] = torch.stack([table[part, kind] for part, kind in shown])
            vectors.append(own)
        return self._setup.denoiser.encode_prompts(prompts, torch.stack(vectors))

    @torch.no_grad()
    def _attention_sheet(self, pictures: Sequence[Image.Image]) -> Image.Image:
        """One row per part: where its token looks in each picture at a middling noise level."""
        batch = self._middle_batch()
        output, _ = self._setup.objective.predict(batch)
        maps = average_maps(output.attention, batch.masks.shape[-1])  # (n, M, g, g)
        # a token's share among the parts, which is what the loss compares with the masks
        share = maps / maps.sum(1, keepdim=True).clamp_min(1e-6)
        tiles, captions = [], []
        for part, name in enumerate(self._setup.pictures.kinds.part_names):
            for column, picture in enumerate(pictures):
                tiles.append(heat_map(picture, share[column, part], TILE))
                captions.append(name if batch.codes[column, part] >= 0 else f"{name} (absent)")
        return contact_sheet(tiles, captions, columns=len(pictures), tile=TILE)

    def _middle_batch(self) -> PartBatch:
        """The chosen pictures at a quarter of the noise schedule, all parts in their captions."""
        return self._setup.batches.fixed(self._rows, self._setup.batches.plan.num_timesteps // 4)

    def _picture(self, row: int) -> Image.Image:
        picture = read_image(self._setup.pictures.paths[row], self._setup.image_size)
        return fit_square(picture, self._setup.image_size)

    def _save(self, sheet: Image.Image, name: str) -> None:
        with replacing(self._run.samples / name) as temporary:
            sheet.save(temporary, "PNG")


def varied_rows(codes: np.ndarray, count: int) -> list[int]:
    """Rows of codes (N, M) chosen one after the other, each showing most kinds that no earlier one shows."""
    chosen: list[int] = []
    seen = np.zeros_like(codes, dtype=bool)
    for _ in range(min(count, len(codes))):
        # kinds that would be new, per picture
        gain = ((codes >= 0) & ~seen).sum(1).astype(float)
        gain[chosen] = -1
        row = int(gain.argmax())
        chosen.append(row)
        seen |= codes == codes[row]
    return chosen


def _to_image(image: Tensor) -> Image.Image:
    """`(3, H, W)` in 0..1 -> Pillow."""
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).contiguous().numpy())
