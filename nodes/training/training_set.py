"""What a training in the graph learns from: pictures of the graph, encoded once, with their parts and kinds.

Letters: N pictures, V views (as is, mirrored), C latent channels, S edge of the training square, (h, w) patch grid, M parts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...concepts.denoiser.denoiser import Denoiser
from ...concepts.errors import BestiaryError
from ...concepts.part_map.part_areas import patch_shares
from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_map.part_map import ABSENT, PartMaps
from ...concepts.part_prompt.caption_file import format_captions
from ...concepts.pictures.square_fit import seen_box
from ...trainer.learning.parts.training_kinds import TrainingKinds, class_kinds, discovered_kinds
from ..denoiser.comfy_autoencoder import ComfyAutoencoder
from ..host.comfy_objects import Vae
from ..host.graph_progress import GraphProgress
from ..host.socket_types import NamedCodebook
from ..part_map.feature_choice import open_source
from ..part_map.picture_encoding import AREA, check_square, checked_entries, checked_masks, cut_squares, encode_squares
from ..part_map.seen_parts import SeenParts, describe_images

NATIVE_SIZES = {8: 128, 4: 512, 16: 1024}
"""Latent channels -> training square where none is asked for: the demo models, Stable Diffusion up to XL, and SD3 and Flux."""


@dataclass(frozen=True)
class TrainingSet:
    """N pictures ready for training: what a BESTIARY_TRAINING_SET socket carries."""

    names: tuple[str, ...]
    """What messages call the pictures."""
    kinds: TrainingKinds = field(repr=False)
    moments: np.ndarray = field(repr=False)
    """(N, V, 2, C, S / 8, S / 8) float16: mean and log-variance of the autoencoder's posterior."""
    squares: np.ndarray = field(repr=False)
    """(N, S, S, 3) uint8."""
    codebook: PartCodebook = field(repr=False)
    maps: PartMaps = field(repr=False)
    """Labels `(N, h, w)` and codes `(N, M)` before classes replaced kinds."""
    classes: tuple[str, ...] | None
    autoencoder: str
    """Fingerprint of the VAE."""
    images: tuple[Tensor, ...] | None = field(default=None, repr=False)
    """Where no size was asked for: the pictures `(H, W, 3)` in 0..1, to be cut again at the size of the model that learns."""

    @property
    def image_size(self) -> int:
        """Edge S of the training square in pixels."""
        return self.squares.shape[1]

    @property
    def flip(self) -> bool:
        """Whether mirrored pictures are learned from too."""
        return self.moments.shape[1] == 2

    def picture(self, row: int) -> Image.Image:
        """The square of one picture."""
        return Image.fromarray(self.squares[row])

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with pictures, parts or kinds, and with what these are called."""
        kinds = [sorted(names.items()) for names in self.kinds.kind_names]
        named = [self.kinds.part_names, kinds, self.kinds.background, self.classes, self.image_size]
        return self._digest(json.dumps(named).encode())

    def earlier_fingerprint(self) -> str:
        """What `fingerprint` was before names counted; such a run can be continued."""
        return self._digest(b"")

    def _digest(self, start: bytes) -> str:
        digest = hashlib.sha256(start)
        for array in (self.moments, self.kinds.labels, self.kinds.codes):
            digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class TrainingSetChoice:
    """What a user chose."""

    image_size: int = 0
    """Edge of the training square in pixels; 0 takes the model's own."""
    mirror: bool = False


def build_training_set(
    images: Sequence[Tensor],
    codebook: NamedCodebook,
    vae: Vae,
    choice: TrainingSetChoice,
    progress: GraphProgress,
    *,
    part_maps: Sequence[SeenParts] | None = None,
    masks: Sequence[Tensor] | None = None,
    classes: Sequence[str] | None = None,
    features: Denoiser | None = None,
) -> TrainingSet:
    """Pictures of a list of images `(B, H, W, 3)` with their parts.

    Args:
        part_maps: of these pictures, in their order; None looks for the codebook's parts.
        masks: the thing in each picture `(B, H, W)`; what lies outside becomes background.
        classes: one name per picture: kinds are then classes, not what the codebook found.

    Raises:
        BestiaryError: inputs that do not fit together, or no picture that shows a part.
    """
    checked = checked_entries(images)
    total = sum(map(len, checked))
    progress.begin(2 * total)
    # later the set is trained on, which the executor's inference mode would forbid
    with torch.inference_mode(False), torch.no_grad():
        maps = _given_maps(part_maps, codebook, total, progress) if part_maps else None
        maps = maps or _look(checked, codebook, features, progress)
        maps = maps if masks is None else _inside(maps, masks, checked, codebook.codebook.background)
        kinds = _kinds(codebook.codebook, maps, classes)
        rows = np.flatnonzero((kinds.codes >= 0).any(1))
        if not len(rows):
            raise BestiaryError(f"none of the {total} pictures shows a part: look at the overlays of Segment Parts")
        size = choice.image_size or NATIVE_SIZES.get(vae.latent_channels, NATIVE_SIZES[4])
        check_square(size)
        squares = cut_squares(checked, size)
        moments = encode_squares(squares, vae, choice.mirror, progress)
    names = tuple(f"picture {row + 1}" for row in rows)
    kept = torch.from_numpy(rows)
    return TrainingSet(
        names,
        kinds.subset(rows),
        moments[rows],
        squares[rows],
        codebook.codebook,
        PartMaps(maps.labels[kept], maps.codes[kept]),
        None if classes is None else tuple(classes[int(row)].strip() for row in rows),
        ComfyAutoencoder(vae).fingerprint(),
        None if choice.image_size else _shown(checked, rows),
    )


def _shown(images: Sequence[Tensor], rows: np.ndarray) -> tuple[Tensor, ...]:
    """Pictures `(H, W, 3)` of some rows of a list of images `(B, H, W, 3)`."""
    single = [image for entry in images for image in entry]
    return tuple(single[row] for row in rows)


def at_size(training_set: TrainingSet, size: int, vae: Vae | None, progress: GraphProgress) -> TrainingSet:
    """The set at the training square of a model, edge `size`, unless a user asked for another.

    Args:
        vae: encodes the squares; None leaves that to a training that encodes them itself.

    Raises:
        InterruptProcessingException: the user cancelled.
    """
    if training_set.images is None or training_set.image_size == size:
        return training_set
    with torch.inference_mode(False), torch.no_grad():
        squares = cut_squares([image.unsqueeze(0) for image in training_set.images], size)
        progress.begin(len(squares))
        moments = training_set.moments if vae is None else encode_squares(squares, vae, training_set.flip, progress)
    return replace(training_set, squares=squares, moments=moments)


def split_classes(classes: Sequence[str] | None) -> list[str] | None:
    """Names of a list of texts; a single text holds one name per line."""
    if not classes:
        return None
    return [line for line in classes[0].split("\n") if line.strip()] if len(classes) == 1 else list(classes)


def captions_of(training_set: TrainingSet) -> str:
    """One line `part:kind part:kind` per picture."""
    return format_captions(torch.from_numpy(training_set.kinds.codes))


def _look(
    images: Sequence[Tensor], codebook: NamedCodebook, features: Denoiser | None, progress: GraphProgress
) -> PartMaps:
    source = open_source(codebook.codebook.feature_spec, features)
    pieces = [codebook.codebook.segment(describe_images(entry, source, AREA, progress.add)) for entry in images]
    return PartMaps(torch.cat([piece.labels for piece in pieces]), torch.cat([piece.codes for piece in pieces]))


def _given_maps(
    part_maps: Sequence[SeenParts], codebook: NamedCodebook, total: int, progress: GraphProgress
) -> PartMaps:
    names = codebook.codebook.part_names
    for seen in part_maps:
        if seen.fit != AREA:
            raise BestiaryError(f"the part maps cover the {seen.fit}: make them with fit {AREA!r}, which training cuts")
        if seen.part_names != names:
            raise BestiaryError(
                f"the part maps have the parts {', '.join(seen.part_names)}, the codebook {', '.join(names)}: connect "
                "maps that this codebook made"
            )
    count = sum(len(seen.maps.labels) for seen in part_maps)
    if count != total:
        raise BestiaryError(
            f"{count} part maps for {total} pictures: connect the maps of these pictures, in their order"
        )
    progress.add(total)
    labels, codes = ([getattr(seen.maps, name) for seen in part_maps] for name in ("labels", "codes"))
    return PartMaps(torch.cat(labels), torch.cat(codes))  # (N, h, w), (N, M)


def _inside(maps: PartMaps, masks: Sequence[Tensor], images: Sequence[Tensor], background: int) -> PartMaps:
    """Parts inside the masks only; a part that loses all its patches is absent."""
    grid = (maps.labels.shape[1], maps.labels.shape[2])
    shares = []
    for mask in checked_masks(masks, images):
        height, width = mask.shape
        shares.append(patch_shares(mask, grid, seen_box(width, height, AREA)))
    labels = torch.where(torch.stack(shares) > 0.5, maps.labels.long(), background)  # (N, h, w)
    parts = torch.arange(maps.codes.shape[1]).view(1, -1, 1, 1)
    shown = (labels.unsqueeze(1) == parts).flatten(2).any(-1)  # (N, M)
    codes = torch.where(shown, maps.codes, ABSENT)
    # a picture that had no background before has one now, of the first kind
    codes[:, background] = torch.where(shown[:, background], codes[:, background].clamp_min(0), ABSENT)
    return PartMaps(labels.to(torch.uint8), codes)


def _kinds(codebook: PartCodebook, maps: PartMaps, classes: Sequence[str] | None) -> TrainingKinds:
    kinds = discovered_kinds(codebook, maps)
    if classes is None:
        return kinds
    if len(classes) != len(maps.labels) or not all(name.strip() for name in classes):
        raise BestiaryError(
            f"{len(classes)} classes for {len(maps.labels)} pictures: give one name per picture, none of them empty"
        )
    return class_kinds(kinds, {"class": [name.strip() for name in classes]})
