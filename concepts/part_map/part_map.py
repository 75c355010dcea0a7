"""PartMaps: for every image, which patch belongs to which part, and which kind each part is."""

from dataclasses import dataclass

from torch import Tensor

ABSENT = -1
"""Code of a part that an image does not show."""


@dataclass(frozen=True)
class PartMaps:
    """Part labels and kind codes of N images on an (h, w) patch grid; M parts, the background among them."""

    labels: Tensor
    """`(N, h, w)` uint8: part index of every patch."""
    codes: Tensor
    """`(N, M)` int64: kind id of every part, `ABSENT` where the image has no patch of it."""

    def masks(self, num_parts: int) -> Tensor:
        """One-hot masks `(N, M, h, w)` bool."""
        return (self.labels.long().unsqueeze(1) == _arange_like(self.labels, num_parts)).bool()  # (N, M, h, w)


def _arange_like(labels: Tensor, num_parts: int) -> Tensor:
    """Part numbers `(1, M, 1, 1)` long on the device of `labels`."""
    return labels.new_tensor(range(num_parts)).long().view(1, num_parts, 1, 1)
