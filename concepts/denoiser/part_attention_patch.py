"""What part tokens do in the cross-attention of a sampler: where they look, recorded, and where they may look, masked.

The probabilities of the part tokens alone are formed beside the fused attention, a few heads at a time, so the picture is
untouched and no full probability map is ever kept. A region adds the logarithm of its weight to the scores of its tokens;
the softmax then gives the freed attention to the other words.
Letters: B images, R rows of a batch, N positions of a layer, K context tokens, P parts, T tokens of a part.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .attention_maps import average_maps

SCORE_BYTES = 16 * 2**20
"""Scores that are formed at one time on a graphics card; more heads wait for their turn."""
CACHED_SCORE_BYTES = 3 * 2**19
"""The same on a processor: what stays in its cache is two to three times as quick."""
LEAST_WEIGHT = 1e-4
"""Weight outside of a region at full strength; its logarithm, -9.2, is safe in half precision."""
BLUR_EDGE = 256
"""Masks are blurred at no more than this edge; attention grids are far coarser."""

Area = tuple[int, int, int, int]
"""Part of a latent as ComfyUI writes it: height, width, top, left."""


def token_places(positions: Sequence[Sequence[int]], tokens: int, length: int) -> Tensor:
    """Columns at which the tokens of each part stand, also where a short prompt was repeated to the length of a longer one.

    Args:
        positions: for every part its places in 0..tokens-1; empty for a part that this prompt does not hold.
        tokens: tokens of the prompt as it was encoded.
        length: tokens of the whole context, a multiple of `tokens`.

    Returns:
        `(P, T)` long, filled up with -1.
    """
    # a prompt of 77 beside one of 154 is there twice, and the token's probability is the sum of both
    starts = range(0, length - tokens + 1, tokens)
    rows = [[start + place for place in places for start in starts] for places in positions]
    widest = max([1, *map(len, rows)])
    return torch.tensor([row + [-1] * (widest - len(row)) for row in rows], dtype=torch.long).view(len(rows), widest)


def part_columns(
    q: Tensor, k: Tensor, heads: int, places: Tensor, mask: Tensor | None = None, score_bytes: int | None = None
) -> Tensor:
    """Probability that each position gives to each part: sum over its tokens, mean over heads.

    Args:
        q: `(R, N, heads * d)`, k: `(R, K, heads * d)`, as they go into the attention.
        heads: number of heads.
        places: `(P, T)` long, see `token_places`; the same in all rows.
        mask: what the attention adds to its scores, 2 to 4 dimensions, broadcast to `(R, heads, N, K)`; bool keeps True.
        score_bytes: memory that scores may take at one time, None by the device; at least one head is done at once.

    Returns:
        `(R, P, N)` float32, 0 for a part without tokens.
    """
    rows, queries, width = q.shape
    q = q.view(rows, queries, heads, width // heads).transpose(1, 2)  # (R, H, N, d)
    k = k.view(rows, -1, heads, width // heads).transpose(1, 2) * (width // heads) ** -0.5  # (R, H, K, d)
    mask = None if mask is None else full_mask(mask)
    flat = places.flatten()  # (P * T,)
    total = q.new_zeros((rows, queries, flat.numel()), dtype=torch.float32)  # (R, N, P * T)
    # as many heads at once as their scores (R, H', N, K) fit into the limit
    limit = score_bytes or (CACHED_SCORE_BYTES if q.device.type == "cpu" else SCORE_BYTES)
    at_once = max(1, limit // (4 * rows * queries * k.shape[2]))
    for first in range(0, heads, at_once):
        some = slice(first, first + at_once)
        scores = q[:, some] @ k[:, some].transpose(-1, -2)  # (R, H', N, K)
        # one mask for all heads, or the rows of these heads
        if mask is not None:
            scores = scores + (mask if mask.shape[1] == 1 else mask[:, some])
        # nothing is differentiated here, so the plain softmax is quicker than the log-sum-exp of `attention_columns`
        total += scores.softmax(-1, dtype=torch.float32).index_select(-1, flat.clamp(min=0)).sum(1)
    total *= (flat >= 0) / heads
    return total.unflatten(2, places.shape).sum(-1).transpose(1, 2)  # (R, P, N)


def full_mask(mask: Tensor) -> Tensor:
    """An attention mask as `(R or 1, H or 1, N, K)` numbers to add; True of a bool mask becomes 0, False minus infinity."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
    if mask.ndim == 2:
        mask = mask.unsqueeze(0)
    return mask.unsqueeze(1) if mask.ndim == 3 else mask  # (R, H, N, K)


class PartMapSum:
    """Maps of the parts at one moment of sampling, averaged over layers and prompts on one grid."""

    def __init__(self, images: int, parts: int, grid: tuple[int, int], device: torch.device) -> None:
        """Start at nothing: `images` pictures, `parts` parts, a grid of (height, width) positions."""
        self.total = torch.zeros(images, parts, *grid, device=device)
        """`(B, P, h, w)` sum of all that was added."""
        self.count = torch.zeros(parts, *grid)
        """`(P, h, w)` how often every cell was added to; on the CPU, since it depends on no model output."""

    def add(
        self,
        columns: Tensor,
        size: tuple[int, int],
        held: Sequence[bool],
        area: Area | None = None,
        latent: tuple[int, int] | None = None,
    ) -> None:
        """Add one layer of one prompt.

        Args:
            columns: `(B, P, N)` from `part_columns`.
            size: height and width of the layer, N = height * width.
            held: for every part whether this prompt holds it; the others are not counted.
            area: the prompt acts on this piece of the latent only.
            latent: height and width of the latent, needed with `area`.
        """
        grid = (self.total.shape[-2], self.total.shape[-1])
        # a prompt on a piece of the latent adds to that piece's cells alone
        rows, across = slice(None), slice(None)
        if area is not None and latent is not None:
            rows, across = _cells(area[2], area[0], latent[0], grid[0]), _cells(area[3], area[1], latent[1], grid[1])
            grid = (rows.stop - rows.start, across.stop - across.start)
        maps = average_maps({"": columns.unflatten(2, size)}, grid)  # (B, P, *grid)
        self.total[..., rows, across] += maps
        self.count[:, rows, across] += torch.tensor(held, dtype=torch.float32).view(-1, 1, 1)

    def take_in(self, other: "PartMapSum") -> None:
        """Add what another sum of the same shape `(B, P, h, w)` collected, on whatever device."""
        self.total += other.total.to(self.total.device)
        self.count += other.count

    def mean(self) -> Tensor:
        """`(B, P, h, w)`: mean over what was added, 0 where nothing was."""
        return self.total / self.count.clamp(min=1).to(self.total.device)

    def held(self) -> Tensor:
        """`(P,)` bool: parts that were added at all, by `count` `(P, h, w)`."""
        return self.count.flatten(1).amax(1) > 0


def _cells(start: int, extent: int, whole: int, cells: int) -> slice:
    """Cells of a grid edge that a piece of a latent edge covers; at least one."""
    first = min(round(start * cells / whole), cells - 1)
    return slice(first, max(first + 1, min(cells, round((start + extent) * cells / whole))))


def feathered(mask: Tensor, pixels: float) -> Tensor:
    """A mask with soft edges.

    Args:
        mask: `(B, H, W)` in 0..1.
        pixels: width of the soft edge, 0 leaves it hard.

    Returns:
        `(B, h, w)` in 0..1, at most 256 on the longer edge if it was blurred; an even mask stays even.
    """
    if pixels <= 0 or bool((mask == mask[:1, :1, :1]).all()):
        return mask
    scale = min(1.0, BLUR_EDGE / max(mask.shape[-2:]))
    size = [max(1, round(edge * scale)) for edge in mask.shape[-2:]]
    blurred = functional.interpolate(mask.unsqueeze(1), size, mode="area")  # (B, 1, h, w)
    # two standard deviations each side of the edge; beyond three the bell is nothing
    sigma = pixels * scale / 4
    reach = max(1, round(3 * sigma))
    bell = torch.exp(-torch.arange(-reach, reach + 1, dtype=mask.dtype, device=mask.device).square() / (2 * sigma**2))
    bell = (bell / bell.sum()).view(1, 1, 1, -1)
    for _ in range(2):
        padded = functional.pad(blurred, (reach, reach, 0, 0), mode="replicate")
        blurred = functional.conv2d(padded, bell).transpose(-1, -2)  # rows first, then columns
    return blurred.squeeze(1).clamp(0, 1)  # (B, h, w)


def region_scores(
    mask: Tensor,
    strength: float,
    size: tuple[int, int],
    area: Area | None = None,
    latent: tuple[int, int] | None = None,
) -> Tensor:
    """What a region adds to the scores of its tokens: log((1 - strength) + strength * mask), at least log 1e-4.

    Args:
        mask: `(B, H, W)` in 0..1, any size; the whole mask spans the whole latent.
        strength: 0 adds nothing, 1 keeps the tokens inside altogether.
        size: height and width of the layer.
        area: the prompt acts on this piece of the latent only, and so the layer shows this piece.
        latent: height and width of the latent, needed with `area`.

    Returns:
        `(B, N)` in -9.2..0, N = height * width.
    """
    # the same piece of the mask as of the latent
    if area is not None and latent is not None:
        rows = _cells(area[2], area[0], latent[0], mask.shape[-2])
        mask = mask[:, rows, _cells(area[3], area[1], latent[1], mask.shape[-1])]
    resized = functional.interpolate(mask.float().unsqueeze(1), size, mode="area").flatten(1)  # (B, N)
    return ((1 - strength) + strength * resized).clamp(LEAST_WEIGHT, 1).log()
