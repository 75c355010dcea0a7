"""Draws creatures part by part, with exact part masks and captions: seeded, 128 px, anti-aliased, over 100 a second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..concepts.errors import BestiaryError
from .captions import caption_of
from .creature_shapes import BODY_PLANS, DIP_STARTS, EYE, PATTERN_AXES, part_outlines
from .scenery import LIGHT_TINTS, cut_window
from .species import (
    COLORS,
    HELD_OUT_SPECIES,
    LIGHTS,
    PARTS,
    PATTERN_COLORS,
    PATTERNS,
    PLACES,
    SHAPES,
    PartLook,
    Scene,
    Species,
    is_held_out,
    random_scene,
    random_species,
)

__all__ = [
    "COLORS", "HELD_OUT_SPECIES", "IMAGE_SIZE", "LIGHTS", "PARTS", "PATTERNS", "PLACES", "SCENES", "SHAPES", "Drawing",
    "PartLook", "Scene", "Species", "caption_of", "draw_creature", "held_out_set", "is_held_out", "random_scene",
    "random_species",
]  # fmt: skip

IMAGE_SIZE = 128
SCENES = PLACES
_CANVAS = 2 * IMAGE_SIZE
_OUTLINE = 4  # width of an outline on the doubled canvas
_SOFTNESS = 0.6  # radius in pixels of the lens blur of a finished picture
_EYE_WHITE, _EYE_DARK = 31, 32

_XS, _YS = np.meshgrid(np.arange(_CANVAS, dtype=np.float32), np.arange(_CANVAS, dtype=np.float32))
_ROWS = np.arange(IMAGE_SIZE, dtype=np.float32)[:, None]


@dataclass(frozen=True)
class Drawing:
    """One picture with its ground truth.

    image (128, 128, 3) uint8; labels (128, 128) uint8, 0 background, i + 1 for PARTS[i]; the species, scene and caption.
    """

    image: np.ndarray
    labels: np.ndarray
    species: Species
    scene: Scene
    caption: str


@dataclass(frozen=True)
class _Placement:
    """Affine map of one part: canvas = linear @ local + offset, on the doubled canvas."""

    linear: np.ndarray  # (2, 2)
    offset: np.ndarray  # (2,)

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Points (M, 2) of the part on the canvas, (M, 2) too."""
        return points @ self.linear.T + self.offset  # (M, 2)

    def joined(self, joint: tuple[float, float], degrees: float, stretch: tuple[float, float] = (1, 1)) -> _Placement:
        """Placement of a part attached at `joint` of this one, rotated by `degrees` and stretched along x and y."""
        # order matters: the attached part is stretched in its own frame first, then rotated
        offset = self.linear @ np.asarray(joint, dtype=np.float32) + self.offset
        return _Placement(self.linear @ _rotation(degrees) @ np.diag(np.asarray(stretch, dtype=np.float32)), offset)


def _rotation(degrees: float) -> np.ndarray:
    """Rotation matrix, clockwise on the canvas since y points down -> (2, 2)."""
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=np.float32)


def _place_parts(body_shape: str, facing: str, rng: np.random.Generator) -> list[tuple[str, _Placement]]:
    """Random pose: parts with their placements, from back to front (legs occur once per leg)."""
    # the whole creature: size, facing, place and a slight lean
    plan = BODY_PLANS[body_shape]
    scale = 2 * rng.uniform(0.84, 1.02)
    flip = np.diag(np.array([1 if facing == "right" else -1, 1], dtype=np.float32))
    shift = rng.uniform(-18, 18, 2) if rng.random() < 0.15 else rng.uniform(-6, 6, 2)
    forward = 10 if facing == "right" else -10  # tails reach further than heads
    center = (np.array([_CANVAS / 2 + forward, _CANVAS * 0.54]) + 2 * shift).astype(np.float32)
    whole = _Placement(flip @ _rotation(rng.uniform(-8, 8)) * np.float32(scale), center)
    # the body may tilt further; attached parts follow its joints but not its tilt
    upright = rng.uniform(-22, 4)
    body = whole.joined((0, 0), upright, (rng.uniform(0.94, 1.06), rng.uniform(0.94, 1.06)))

    def level(joint: tuple[float, float], degrees: float, stretch: tuple[float, float] = (1, 1)) -> _Placement:
        """A part attached to a joint of the tilted body that keeps the upright direction of the whole creature."""
        turned = _rotation(upright) @ np.asarray(joint, dtype=np.float32)
        return whole.joined((float(turned[0]), float(turned[1])), degrees, stretch)

    # both legs share one length, so that the creature stands on level ground
    length = (1.0, rng.uniform(0.9, 1.08))
    legs = [("legs", level(hip, rng.uniform(-13, 13), length)) for hip in (plan.back_hip, plan.front_hip)]
    # painting order: tail and legs behind the body, head and wing in front of it
    return [
        ("tail", level(plan.rump, rng.uniform(-24, 16))),
        *legs,
        ("body", body),
        ("head", level(plan.neck, rng.uniform(-14, 16))),
        ("wing", level(plan.shoulder, rng.uniform(-28, 14))),
    ]


def _pattern_mask(pattern: str, part: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Mask of a part's second colour; u, v (h, w) are pixels along and across the part's axis -> (h, w) bool."""
    # periods are in pixels at scale 1: 11 for stripes and spots, 12.4 for checks
    if pattern == "striped":
        return (u / 11) % 1 < 0.44
    if pattern == "spotted":
        row = np.floor(u / 11)
        du, dv = u - 11 * row - 5.5, (v + 6 * (row % 2)) % 12 - 6
        return du * du + dv * dv < 14.5
    if pattern == "checked":
        return (np.floor(u / 6.2) + np.floor(v / 6.2)) % 2 == 0
    if part == "body":
        return v > DIP_STARTS[part]
    return u > DIP_STARTS[part]


def _draw_part(codes: Image.Image, part: str, look: PartLook, placement: _Placement) -> None:
    """Paints a part into the code image `(H, W)`: 4 * label for the main colour, + 1 for the second, + 2 for the outline."""
    draw = ImageDraw.Draw(codes)
    code = 4 * (PARTS.index(part) + 1)
    # all outlines before all fills, so that the union of the polygons gets a single contour
    outlines = [placement.apply(points) for points in part_outlines()[part][look.shape]]
    flat = [points.ravel().tolist() for points in outlines]
    for xy in flat:
        draw.line(xy + xy[:4], fill=code + 2, width=_OUTLINE + 2)
    for xy in flat:
        draw.polygon(xy, fill=code)
    if look.pattern != "plain":
        _paint_pattern(codes, code, part, look.pattern, placement, np.concatenate(outlines))
    if part == "head":
        _draw_eye(draw, placement)


def _paint_pattern(
    codes: Image.Image, code: int, part: str, pattern: str, placement: _Placement, points: np.ndarray
) -> None:
    """Adds 1 to the main-colour codes of a part wherever its pattern is on."""
    # work on the part's bounding window (h, w) only; it is empty if the part is off the canvas
    left, top = np.clip(np.floor(points.min(axis=0)).astype(int), 0, _CANVAS)
    right, bottom = np.clip(np.ceil(points.max(axis=0)).astype(int) + 1, 0, _CANVAS)
    if right <= left or bottom <= top:
        return
    # map canvas pixels to the part's own frame, so that patterns rotate and stretch with the part
    axis = np.asarray(PATTERN_AXES[part], dtype=np.float32)
    frame = np.stack([axis, np.array([-axis[1], axis[0]], dtype=np.float32)]) @ np.linalg.inv(placement.linear)
    xs = _XS[top:bottom, left:right] - placement.offset[0]
    ys = _YS[top:bottom, left:right] - placement.offset[1]
    u, v = frame[0, 0] * xs + frame[0, 1] * ys, frame[1, 0] * xs + frame[1, 1] * ys  # (h, w)
    window = np.asarray(codes.crop((left, top, right, bottom)))  # (h, w)
    # only pixels of the main colour get the pattern: outlines and earlier parts keep their code
    painted = window + ((window == code) & _pattern_mask(pattern, part, u, v))
    codes.paste(Image.fromarray(painted.astype(np.uint8)), (int(left), int(top)))


def _draw_eye(draw: ImageDraw.ImageDraw, placement: _Placement) -> None:
    """An eye with a pupil that looks ahead; its size follows the scale of the placement's matrix (2, 2)."""
    x, y = placement.apply(np.asarray([EYE], dtype=np.float32))[0]
    radius = 4.6 * float(np.sqrt(abs(np.linalg.det(placement.linear))))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_EYE_WHITE)
    ahead = 0.25 * radius * np.sign(placement.linear[0, 0])
    radius *= 0.62
    draw.ellipse((x + ahead - radius, y - radius, x + ahead + radius, y + radius), fill=_EYE_DARK)


def _palette(species: Species, light: str) -> np.ndarray:
    """RGBA colour of every code under a light -> (256, 4) uint8; code 0 is transparent."""
    palette = np.zeros((256, 4), dtype=np.float32)
    # 4 codes per part: main colour, second colour, outline, and one unused
    for number, look in enumerate(species.looks):
        main, second = np.array(COLORS[look.color]), np.array(PATTERN_COLORS[look.color])
        code = 4 * (number + 1)
        palette[code, :3], palette[code + 1, :3], palette[code + 2, :3] = main, second, main * 0.5
    palette[_EYE_WHITE, :3], palette[_EYE_DARK, :3] = 252, (24, 20, 26)
    # light tints everything that is drawn, eyes too; codes 4 to 32 are opaque
    palette[:, :3] *= LIGHT_TINTS[light]
    palette[4:33, 3] = 255
    return palette.clip(0, 255).astype(np.uint8)


def _code_labels() -> np.ndarray:
    """Lookup table code -> label (256,); eyes belong to the head."""
    labels = np.arange(256, dtype=np.uint8) // 4
    labels[[_EYE_WHITE, _EYE_DARK]] = 1
    return labels


_CODE_LABELS = _code_labels()


def _part_labels(codes: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Codes (256, 256) and opacity (128, 128) 0..255 -> labels (128, 128) uint8; pixels covered less than half are 0."""
    labels = _CODE_LABELS[codes]
    # a picture pixel is 2 x 2 canvas pixels: use the first, or any part among them if the first is empty
    quads = np.maximum(
        np.maximum(labels[::2, ::2], labels[1::2, ::2]), np.maximum(labels[::2, 1::2], labels[1::2, 1::2])
    )
    first = labels[::2, ::2]
    chosen = np.where(first > 0, first, quads)  # (128, 128)
    return np.where(opacity >= 128, chosen, 0).astype(np.uint8)


def _shading(labels: np.ndarray, strength: float) -> np.ndarray:
    """Soft light from above: brightness factor that falls from the top to the bottom of each part -> (128, 128, 1)."""
    # per-part top row and slope, indexed by label for all pixels (128, 128) at once
    tops, slopes = np.zeros(len(PARTS) + 1, np.float32), np.zeros(len(PARTS) + 1, np.float32)
    for label in range(1, len(PARTS) + 1):
        rows = np.flatnonzero((labels == label).any(axis=1))
        if len(rows):
            tops[label], slopes[label] = rows[0], strength / max(rows[-1] - rows[0], 1)
    lift = np.where(labels > 0, 1 + 0.4 * strength, 1).astype(np.float32)
    return (lift - slopes[labels] * (_ROWS - tops[labels]))[..., None]


def _cast_shadow(picture: np.ndarray, labels: np.ndarray) -> None:
    """Darkens a soft ellipse of the ground below the feet, in place; picture (128, 128, 3)."""
    rows, columns = np.nonzero(labels == len(PARTS))
    if len(rows) == 0:
        return
    # an ellipse at the lowest row of the legs, as wide as the stance
    y, x, half = rows.max() - 1, (columns.min() + columns.max()) / 2, (columns.max() - columns.min()) / 2 + 12
    top, bottom = max(int(y - 7), 0), min(int(y + 8), IMAGE_SIZE)
    across = ((np.arange(IMAGE_SIZE) - x) / half) ** 2
    down = ((np.arange(top, bottom) - y) / 7) ** 2
    depth = np.clip(1 - across[None] - down[:, None], 0, 0.5)  # (rows, 128)
    picture[top:bottom] *= 1 - 0.7 * depth[..., None].astype(np.float32)


def draw_creature(
    species: Species, rng: np.random.Generator, *, scene: Scene | None = None, size: int = IMAGE_SIZE
) -> Drawing:
    """Draws `species` in a random pose; place, light and facing are random too unless `scene` is given.

    Accepts any `Species`, including one combined from the looks of several. A `size` other than 128 resizes the finished
    picture. Raises BestiaryError for a size below 16.
    """
    if size < 16:
        raise BestiaryError(f"picture size {size} px is too small to show a creature; choose 16 px or more")
    scene = scene or random_scene(rng)
    # drawn as codes on a canvas of twice the size, then coloured and reduced: this antialiases colour and opacity
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    for part, placement in _place_parts(species.look("body").shape, scene.facing, rng):
        _draw_part(canvas, part, species.look(part), placement)
    codes = np.asarray(canvas)  # (256, 256)
    layer = np.asarray(Image.fromarray(_palette(species, scene.light)[codes]).reduce(2))  # (128, 128, 4)
    labels = _part_labels(codes, layer[..., 3])
    # background, darkened by the creature's shadow
    picture = cut_window(scene.place, scene.light, rng)  # (128, 128, 3)
    _cast_shadow(picture, labels)
    # alpha compositing, then a slight lens blur
    opacity = layer[..., 3:].astype(np.float32) / 255
    front = layer[..., :3] * _shading(labels, rng.uniform(0.15, 0.35))
    sharp = Image.fromarray((front * opacity + picture * (1 - opacity)).clip(0, 255).astype(np.uint8))
    image = np.asarray(sharp.filter(ImageFilter.GaussianBlur(_SOFTNESS)))
    if size != IMAGE_SIZE:
        image = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))
        # nearest neighbour: interpolation would mix label numbers
        labels = np.asarray(Image.fromarray(labels).resize((size, size), Image.Resampling.NEAREST))
    return Drawing(image, labels, species, scene, caption_of(species, scene))


def held_out_set(count: int, seed: int, first: int = 0) -> Iterator[Drawing]:
    """Yields `count` drawings that cycle through the held-out species from number `first` on; pose, light and scene are drawn from `seed`."""
    rng = np.random.default_rng(seed)
    for index in range(first, first + count):
        yield draw_creature(HELD_OUT_SPECIES[index % len(HELD_OUT_SPECIES)], rng)
