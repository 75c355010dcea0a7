"""What a preview of a training shows, whatever samples it: the pictures chosen, their prompts, and where tokens look.

Letters: N pictures, n chosen ones, M parts, S slots of pictures with several things, D width of a vector, g and k the attention grid.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....concepts.denoiser.attention_maps import average_maps
from ....concepts.denoiser.denoiser import Conditioning, PromptPiece
from ....concepts.part_prompt.part_captions import thing_pieces
from ..pictures.contact_sheet import PREVIEW_TILE, contact_sheet, to_image
from ..pictures.heat_maps import heat_map
from .part_objective import PartBatch, PartObjective


def preview_prompts(objective: PartObjective, codes: Tensor, noun: str = "") -> Conditioning:
    """ "a photo of a" and all tokens of each of n pictures with codes `(n, S*M)`, -1 where a part is absent."""
    denoiser, parts = objective.denoiser, objective.projector.num_parts
    prompts, vectors = [], []
    table = objective.projector.collapse()  # (M, K + 1, D)
    for row in codes.tolist():
        shown = [(column % parts, kind) for column, kind in enumerate(row) if kind >= 0]
        things = [sum(kind >= 0 for kind in row[start : start + parts]) for start in range(0, len(row), parts)]
        pieces = [PromptPiece("a photo of a"), *thing_pieces([many for many in things if many], noun)]
        prompts.append(denoiser.text.tokenize([*pieces, *([PromptPiece(noun)] if noun else [])], chunks=1))
        # vectors in the order of the prompt, then zeros
        own = table.new_zeros(codes.shape[1], table.shape[-1])  # (S * M, D)
        own[: len(shown)] = torch.stack([table[part, kind] for part, kind in shown])
        vectors.append(own)
    return denoiser.text.encode(prompts, denoiser.backbone.split_vector(torch.stack(vectors)))


def pictures_sheet(real: Sequence[Image.Image], names: Sequence[str], made: Sequence[Tensor] | Tensor) -> Image.Image:
    """A column per picture: the real one with its name above what its tokens make, n of `(3, H, W)` in 0..1."""
    captions = [*names, *("made from its tokens" for _ in names)]
    return contact_sheet([*real, *map(to_image, made)], captions, columns=len(names), tile=PREVIEW_TILE)


def token_sheet(
    objective: PartObjective,
    batches: PartBatch | Sequence[PartBatch],
    part_names: Sequence[str],
    pictures: Sequence[Image.Image],
) -> Image.Image:
    """One row per part: where its token looks in each picture of the batches; of several things, where any of theirs looks."""
    batches = [batches] if isinstance(batches, PartBatch) else batches
    shares = [share for batch in batches for share in _token_shares(objective, batch)]  # (M, g, k) each
    shown = [codes.reshape(-1, len(part_names)).amax(0) >= 0 for batch in batches for codes in batch.codes]  # (M,) each
    tiles, captions = [], []
    for part, name in enumerate(part_names):
        for share, present, picture in zip(shares, shown, pictures, strict=True):
            tiles.append(heat_map(picture, share[part], PREVIEW_TILE))
            captions.append(name if present[part] else f"{name} (absent)")
    return contact_sheet(tiles, captions, columns=len(pictures), tile=PREVIEW_TILE)


@torch.no_grad()
def _token_shares(objective: PartObjective, batch: PartBatch) -> Tensor:
    """A token's share among the parts `(n, M, g, k)`, which is what the loss compares with the masks."""
    output, _ = objective.predict(batch)
    maps = average_maps(output.attention, (batch.masks.shape[-2], batch.masks.shape[-1]))  # (n, S * M, g, k)
    share = maps / maps.sum(1, keepdim=True).clamp_min(1e-6)
    slots = share.shape[1] // objective.projector.num_parts
    return share if slots == 1 else share.unflatten(1, (slots, -1)).sum(1)


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
