"""PartMaps: the part of every patch and the kind of every part, for a set of images."""

from dataclasses import dataclass

from torch import Tensor

ABSENT = -1
"""Code of a part that an image does not show."""


@dataclass(frozen=True)
class PartMaps:
    """Part labels and kind codes of N images on an (h, w) patch grid; M parts, including the background."""

    labels: Tensor
    """`(N, h, w)` uint8: part index of every patch."""
    codes: Tensor
    """`(N, M)` int64: kind id of every part, `ABSENT` if the image has no patch of it."""

    def masks(self, num_parts: int) -> Tensor:
        """One-hot masks `(N, M, h, w)` bool."""
        return (self.labels.long().unsqueeze(1) == _arange_like(self.labels, num_parts)).bool()  # (N, M, h, w)


def _arange_like(labels: Tensor, num_parts: int) -> Tensor:
    """Part numbers `(1, M, 1, 1)` long on the device of `labels`."""
    return labels.new_tensor(range(num_parts)).long().view(1, num_parts, 1, 1)
