"""What a preview of a training shows, whatever samples it: the pictures chosen, their prompts, and where tokens look.

Letters: N pictures, n chosen ones, M parts, D width of a vector, g the attention grid.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....concepts.denoiser.attention_maps import average_maps
from ....concepts.denoiser.denoiser import Conditioning, PromptPiece
from ..pictures.contact_sheet import PREVIEW_TILE, contact_sheet, to_image
from ..pictures.heat_maps import heat_map
from .part_objective import PartBatch, PartObjective


def preview_prompts(objective: PartObjective, codes: Tensor, noun: str = "") -> Conditioning:
    """ "a photo of a" and all tokens of each of n pictures with codes `(n, M)`, -1 where a part is absent."""
    denoiser = objective.denoiser
    prompts, vectors = [], []
    table = objective.projector.collapse()  # (M, K + 1, D)
    for row in codes.tolist():
        shown = [(part, kind) for part, kind in enumerate(row) if kind >= 0]
        pieces = [PromptPiece("a photo of a"), *(PromptPiece(None) for _ in shown)]
        prompts.append(denoiser.text.tokenize([*pieces, *([PromptPiece(noun)] if noun else [])], chunks=1))
        # vectors in the order of the prompt, then zeros
        own = table.new_zeros(codes.shape[1], table.shape[-1])  # (M, D)
        own[: len(shown)] = torch.stack([table[part, kind] for part, kind in shown])
        vectors.append(own)
    return denoiser.text.encode(prompts, denoiser.backbone.split_vector(torch.stack(vectors)))


def pictures_sheet(real: Sequence[Image.Image], names: Sequence[str], made: Tensor) -> Image.Image:
    """A column per picture: the real one with its name above what its tokens make, `(n, 3, S, S)` in 0..1."""
    captions = [*names, *("made from its tokens" for _ in names)]
    return contact_sheet([*real, *map(to_image, made)], captions, columns=len(names), tile=PREVIEW_TILE)


@torch.no_grad()
def token_sheet(
    objective: PartObjective, batch: PartBatch, part_names: Sequence[str], pictures: Sequence[Image.Image]
) -> Image.Image:
    """One row per part: where its token looks in each of the batch's n pictures."""
    output, _ = objective.predict(batch)
    maps = average_maps(output.attention, batch.masks.shape[-1])  # (n, M, g, g)
    # a token's share among the parts, which is what the loss compares with the masks
    share = maps / maps.sum(1, keepdim=True).clamp_min(1e-6)
    tiles, captions = [], []
    for part, name in enumerate(part_names):
        for column, picture in enumerate(pictures):
            tiles.append(heat_map(picture, share[column, part], PREVIEW_TILE))
            captions.append(name if batch.codes[column, part] >= 0 else f"{name} (absent)")
    return contact_sheet(tiles, captions, columns=len(pictures), tile=PREVIEW_TILE)


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
