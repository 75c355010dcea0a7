"""Models that assign patches to parts: by appearance (`looks_parts`), by positions relative to the object, or by nearest
centroid as in PartCraft's files.

Letters: B pictures, (h, w) patch grid, D channels, C components (a part is one or several of them), e place bins an edge.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .foreground import neighbour_affinity
from .kmeans import assign, fit_kmeans
from .looks_parts import LooksParts, PartSettings
from .object_frame import asymmetry, facing_of, fit_facing, places_in_frame
from .picture_mixture import explain_pictures

_PLACE_BINS = 11
_PLACE_REACH = 2.8  # in units of the size of the object
_LABEL_ROUNDS = 3
_FIT_ROUNDS = 5
_VIEWING_DISTANCE = 3.0
_CHUNK_PICTURES = 64


@dataclass(frozen=True)
class LearnedParts:
    """Positions of parts in the common frame of all objects; the appearance is fitted within every picture."""

    place_share: Tensor
    """`(C + 1, e, e)`: frequency of each component, the background last, at a position; sums to 1 over the first axis."""
    facing: Tensor
    """`(F,)` template for the direction in which an object faces."""
    owner: Tensor
    """`(C,)` long: the part of each component."""

    def labels(self, features: Tensor, foreground: Tensor, background: int) -> Tensor:
        """Part `(B, h, w)` long of every patch of features `(B, h, w, D)`, given foreground probabilities `(B, h, w)`."""
        # the last component is the background, whose part number can be any
        owner = torch.cat([self.owner, self.owner.new_tensor([background])])
        pieces = []
        for start in range(0, len(features), _CHUNK_PICTURES):
            rows = slice(start, start + _CHUNK_PICTURES)
            pieces.append(owner[self._components(features[rows], foreground[rows])])
        return torch.cat(pieces)

    def _components(self, features: Tensor, foreground: Tensor) -> Tensor:
        affinity = neighbour_affinity(features)
        # mask and positions depend on each other: the mask defines the frame, positions in the frame change the mask
        components = torch.where(foreground > 0.5, 0, len(self.owner))  # (B, h, w)
        for _ in range(_LABEL_ROUNDS):
            mask = components < len(self.owner)
            places = places_in_frame(mask, facing_of(features, mask, self.facing))
            components = explain_pictures(features, foreground, self.share_at(places), affinity).argmax(dim=-1)
        return components

    def share_at(self, places: Tensor) -> Tensor:
        """`place_share` at places `(B, h, w, 2)`: `(B, h, w, C + 1)`."""
        grid = (places / _PLACE_REACH).flip(-1)  # grid_sample wants x before y
        shares = self.place_share.unsqueeze(0).expand(len(places), -1, -1, -1)
        return F.grid_sample(shares, grid, align_corners=False, padding_mode="border").permute(0, 2, 3, 1)

    def tensors(self) -> dict[str, Tensor]:
        """What a file must hold: places `(C+1, e, e)` and the facing template `(F,)`."""
        return {"place_share": self.place_share, "facing": self.facing}

    def settings(self) -> PartSettings:
        """What a file's header must hold."""
        return {"form": "learned", "owner": self.owner.tolist()}


@dataclass(frozen=True)
class CentroidParts:
    """Nearest of C centroids by cosine."""

    centroids: Tensor
    """`(C, D)`."""
    owner: Tensor
    """`(C,)` long: the part each centroid stands for."""
    filled: bool = True
    """As in PartCraft's files (kamwoh/partcraft @ dfe64e1, kmeans_segmentation.py): patches outside the foreground count
    as the vector (-1, ..., -1), and all parts compete for them. Else they are background at once."""

    def labels(self, features: Tensor, foreground: Tensor, background: int) -> Tensor:
        """Part `(B, h, w)` long of every patch of features `(B, h, w, D)`, given foreground `(B, h, w)`."""
        inside = foreground > 0.5
        if self.filled:
            features = torch.where(inside.unsqueeze(-1), features, -torch.ones_like(features))
        nearest, _ = assign(features.flatten(0, 2), self.centroids)  # (B * h * w,)
        parts = self.owner[nearest].unflatten(0, foreground.shape)
        return parts if self.filled else torch.where(inside, parts, background)

    def tensors(self) -> dict[str, Tensor]:
        """What a file must hold: the centroids `(C, D)`."""
        return {"centroids": self.centroids}

    def settings(self) -> PartSettings:
        """What a file's header must hold."""
        return {"form": "centroids", "owner": self.owner.tolist(), "filled": self.filled}


PartModel = LooksParts | LearnedParts | CentroidParts


def part_model_from_file(tensors: Mapping[str, Tensor], settings: PartSettings) -> PartModel:
    """Rebuild a part model from what `tensors()`, of any shape, and `settings()` gave."""
    floats = {name: tensor.float() for name, tensor in tensors.items()}
    owner = torch.tensor(settings["owner"], dtype=torch.long)  # (C,)
    if settings.get("form") == "looks":
        return LooksParts(**floats, owner=owner)
    if settings.get("form") == "centroids":
        return CentroidParts(**floats, owner=owner, filled=settings.get("filled", CentroidParts.filled))
    return LearnedParts(**floats, owner=owner)


def background_centroid(centroids: Tensor) -> int:
    """The centroid `(C, D)` nearest to the vector (-1, ..., -1) that stands for background in PartCraft's files."""
    return int(F.normalize(centroids.float(), dim=1).sum(dim=1).argmin())


def fit_learned_parts(features: Tensor, foreground: Tensor, num_parts: int, *, seed: int) -> LearnedParts:
    """Learn where `num_parts` parts lie, from features `(N, h, w, D)` and foreground probabilities `(N, h, w)`.

    Starts from compact areas of the framed things, then lets every picture draw its own edges and averages the result.
    """
    # things of all pictures are brought into one frame and turned the same way
    mask = foreground > 0.5  # (N, h, w)
    template, facing = fit_facing(asymmetry(features, mask))
    places = places_in_frame(mask, facing)  # (N, h, w, 2)
    # first guess: compact areas of the framed things, by place alone
    seen = F.pad(places, (0, 1), value=_VIEWING_DISTANCE)  # places as directions: cosines order them by distance
    centroids = fit_kmeans(seen[mask], num_parts, seed=seed).centroids
    nearest = assign(seen.flatten(0, 2), centroids)[0].unflatten(0, mask.shape)
    share = F.one_hot(torch.where(mask, nearest, num_parts), num_parts + 1).float()  # (N, h, w, M + 1)
    # every picture draws its own edges, and their average is the next guess of places
    model = LearnedParts(_place_share(share, places), template, torch.arange(num_parts))
    for _ in range(_FIT_ROUNDS):
        share = _explain_in_chunks(model, features, foreground, places)
        mask = share.argmax(dim=-1) < num_parts
        template, facing = fit_facing(asymmetry(features, mask))
        places = places_in_frame(mask, facing)
        model = LearnedParts(_place_share(share, places), template, model.owner)
    # rounded as in the file, so that a saved model gives the same labels
    return replace(model, place_share=model.place_share.half().float(), facing=template.half().float())


def _explain_in_chunks(model: LearnedParts, features: Tensor, foreground: Tensor, places: Tensor) -> Tensor:
    """`explain_pictures` for features `(N, h, w, D)` with shares at places `(N, h, w, 2)`, some pictures at a time."""
    pieces = []
    for start in range(0, len(features), _CHUNK_PICTURES):
        rows = slice(start, start + _CHUNK_PICTURES)
        pieces.append(explain_pictures(features[rows], foreground[rows], model.share_at(places[rows])))
    return torch.cat(pieces)


def _place_share(share: Tensor, places: Tensor) -> Tensor:
    """Shares (N, h, w, C + 1) collected by place (N, h, w, 2) into a slightly blurred map (C + 1, e, e)."""
    # places beyond the reach count at the map's edge
    bins = ((places + _PLACE_REACH) / (2 * _PLACE_REACH) * _PLACE_BINS).floor().long().clamp(0, _PLACE_BINS - 1)
    flat = (bins[..., 0] * _PLACE_BINS + bins[..., 1]).flatten()
    channels = share.shape[-1]
    total = torch.zeros(_PLACE_BINS**2, channels, device=share.device).index_add_(
        0, flat, share.flatten(0, 2)
    )  # (e * e, C + 1)
    maps = total.T.reshape(1, channels, _PLACE_BINS, _PLACE_BINS)
    blurred = F.avg_pool2d(F.pad(maps, (1, 1, 1, 1), mode="replicate"), 3, 1)[0] + 0.5  # half a patch everywhere
    return blurred / blurred.sum(dim=0, keepdim=True)  # (C + 1, e, e)
