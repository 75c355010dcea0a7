"""Biases in channels equal a mask of all queries and keys; places outside of the image and unmarked keys keep their scores."""

import pytest
import torch
from bestiary.concepts.denoiser.bias_channels import with_biases
from bestiary.concepts.denoiser.joint_columns import shares_among
from torch.nn.functional import scaled_dot_product_attention

ROWS, HEADS, TEXT, IMAGE, WIDTH = 2, 3, 5, 7, 8
TOTAL = TEXT + IMAGE


def inputs(regions: int, dtype: torch.dtype = torch.float32) -> tuple:
    noise = torch.Generator().manual_seed(regions)
    q, k, v = (torch.randn(ROWS, HEADS, TOTAL, WIDTH, generator=noise, dtype=dtype) for _ in range(3))
    biases = -9.2 * torch.rand(ROWS, IMAGE, regions, generator=noise)
    marks = torch.zeros(ROWS, TOTAL, regions)
    for number in range(regions):
        marks[:, number % TEXT, number] = 1
    # another prompt of the batch holds the first region's token elsewhere
    marks[1, :, 0] = torch.eye(TOTAL)[3]
    mask = torch.zeros(ROWS, 1, TOTAL, TOTAL)
    mask[:, 0, TEXT:] = biases @ marks.transpose(1, 2)
    return q, k, v, biases, marks, mask


@pytest.mark.parametrize("regions", [1, 2, 9])
@pytest.mark.parametrize("scale", [None, 0.2])
def test_channels_equal_a_mask(regions, scale):
    q, k, v, biases, marks, mask = inputs(regions)
    theirs = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    made = with_biases(q, k, v, biases, marks, slice(TEXT, TOTAL), scale)
    assert made.q.shape[-1] % 8 == 0
    attended = scaled_dot_product_attention(made.q, made.k, made.v, scale=scale)
    assert (made.output(attended) - theirs).abs().max() < 1e-6
    flat = attended.transpose(1, 2).flatten(2)
    assert (made.output(flat) - theirs.transpose(1, 2).flatten(2)).abs().max() < 1e-6


def test_text_queries_are_untouched():
    q, k, v, biases, marks, _ = inputs(1)
    made = with_biases(q, k, v, biases, marks, slice(TEXT, TOTAL))
    ours = made.output(scaled_dot_product_attention(made.q, made.k, made.v))
    theirs = scaled_dot_product_attention(q, k, v)
    assert (ours[:, :, :TEXT] - theirs[:, :, :TEXT]).abs().max() < 1e-6
    assert (ours[:, :, TEXT:] - theirs[:, :, TEXT:]).abs().max() > 1e-3


def test_half_precision_stays_close_to_the_mask():
    q, k, v, biases, marks, mask = inputs(2, torch.bfloat16)
    made = with_biases(q, k, v, biases, marks, slice(TEXT, TOTAL))
    ours = made.output(scaled_dot_product_attention(made.q, made.k, made.v)).float()
    theirs = scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    plain = scaled_dot_product_attention(q, k, v).float() - scaled_dot_product_attention(
        q.float(), k.float(), v.float()
    )
    assert (ours - theirs).abs().max() < 3 * plain.abs().max()


def test_shares_hold_the_bias_and_a_mask():
    q, k, v, biases, marks, mask = inputs(2)
    hidden = torch.zeros(1, 1, 1, TEXT)
    hidden[..., 4] = -torch.inf
    made = with_biases(q, k, v, biases, marks, slice(TEXT, TOTAL))
    columns = torch.tensor([[[0, 3], [1, -1], [4, -1]]]).expand(ROWS, -1, -1)
    ours = shares_among(made.q[:, :, TEXT:], made.k[:, :, :TEXT], columns, mask=hidden)
    scores = (q @ k.transpose(-1, -2) * WIDTH**-0.5 + mask)[:, :, TEXT:, :TEXT] + hidden
    theirs = scores.softmax(-1).mean(1)  # (R, N, L)
    expected = torch.stack((theirs[..., 0] + theirs[..., 3], theirs[..., 1], theirs[..., 4]), -1)
    assert (ours - expected).abs().max() < 1e-6
