"""Painted backgrounds behind the creatures: a few variants per place and light, each painted once and cached."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .species import LIGHTS, PLACES

VARIANTS = 10
"""Backgrounds per place and light; a drawing uses a random window of one of them."""
WIDTH, HEIGHT = 200, 152
"""Size of a background in pixels; a window of 128 px is cut out."""

Color = tuple[int, int, int]

LIGHT_TINTS: dict[str, tuple[float, float, float]] = {
    "day": (1.0, 1.0, 1.0),
    "dusk": (0.98, 0.74, 0.66),
    "night": (0.60, 0.64, 0.86),
}
"""Factors on R, G, B of creature and ground, by light."""

_SKIES: dict[str, tuple[Color, Color]] = {
    "day": ((120, 186, 240), (206, 232, 248)),
    "dusk": ((120, 84, 150), (250, 170, 110)),
    "night": ((14, 18, 52), (44, 54, 104)),
}
_GROUNDS: dict[str, tuple[Color, Color]] = {
    "meadow": ((142, 200, 92), (98, 162, 66)),
    "forest": ((96, 134, 74), (66, 98, 54)),
    "desert": ((234, 204, 142), (212, 170, 104)),
    "beach": ((240, 224, 178), (222, 196, 142)),
    "snow": ((236, 242, 250), (204, 216, 234)),
    "mountains": ((164, 160, 150), (122, 122, 118)),
    "garden": ((126, 190, 110), (90, 152, 84)),
    "swamp": ((112, 130, 86), (76, 98, 72)),
}


def _tinted(color: Color, light: str) -> Color:
    return tuple(int(min(255, c * t)) for c, t in zip(color, LIGHT_TINTS[light], strict=True))  # type: ignore[return-value]


class _Painter:
    """A canvas of twice the size, with the brush strokes shared by all places."""

    def __init__(self, rng: np.random.Generator, light: str) -> None:
        """An empty picture (2 * HEIGHT, 2 * WIDTH, 3) with a random horizon; `light` tints all that is painted."""
        self.rng, self.light = rng, light
        self.width, self.height = 2 * WIDTH, 2 * HEIGHT
        self.horizon = int(self.height * rng.uniform(0.46, 0.66))
        self.image = Image.new("RGB", (self.width, self.height))
        self.draw = ImageDraw.Draw(self.image)

    def shade(self, color: Color) -> Color:
        """Colour under this light, with a slight random variation of brightness."""
        factor = self.rng.uniform(0.92, 1.06)
        return _tinted(tuple(int(c * factor) for c in color), self.light)  # type: ignore[arg-type]

    def gradient(self, top: int, bottom: int, colors: tuple[Color, Color]) -> None:
        """Vertical blend from the first to the second colour between two rows."""
        # one column of colours, resized to the full width: cheaper than a full array
        blend = np.linspace(0, 1, max(bottom - top, 1))[:, None]
        rows = (np.array(colors[0]) * (1 - blend) + np.array(colors[1]) * blend).astype(np.uint8)  # (rows, 3)
        self.image.paste(Image.fromarray(rows[:, None]).resize((self.width, len(rows))), (0, top))

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color) -> None:
        """Filled ellipse around (x, y)."""
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=color)

    def spread(self, low: int, high: int) -> list[float]:
        """Between `low` and `high` x positions along the width, jittered on an even grid."""
        count = int(self.rng.integers(low, high + 1))
        return [(i + self.rng.uniform(0.2, 0.8)) * self.width / count for i in range(count)]

    def hills(self, base: Color, height: float) -> None:
        """One row of round hills on the horizon."""
        color = self.shade(base)
        for x in self.spread(3, 5):
            rise = height * self.rng.uniform(0.6, 1.2)
            self.ellipse(x, self.horizon + 6, self.rng.uniform(60, 110), rise, color)

    def clouds(self) -> None:
        """Groups of three round puffs in the sky."""
        color = _tinted((250, 250, 252), "day" if self.light == "day" else self.light)
        for x in self.spread(1, 3):
            y = self.rng.uniform(16, self.horizon * 0.55)
            for dx, r in ((-18, 10), (0, 15), (18, 11)):
                self.ellipse(x + dx, y, r * 1.4, r, color)

    def sky(self) -> None:
        """Sky with sun or moon, clouds or stars."""
        self.gradient(0, self.horizon, _SKIES[self.light])
        x, y = self.rng.uniform(0, self.width), self.rng.uniform(20, self.horizon * 0.5)
        disc = {"day": (255, 240, 150), "dusk": (255, 214, 130), "night": (238, 238, 214)}[self.light]
        self.ellipse(x, y, 15, 15, disc)
        if self.light == "night":
            for _ in range(16):
                self.ellipse(
                    self.rng.uniform(0, self.width), self.rng.uniform(0, self.horizon), 2.5, 2.5, (210, 216, 240)
                )
        else:
            self.clouds()

    def trunk_tree(self, x: float, y: float, size: float, crown: Color) -> None:
        """A round tree standing at (x, y)."""
        self.draw.rectangle((x - size * 0.13, y - size, x + size * 0.13, y), fill=self.shade((112, 78, 50)))
        for dx, dy, r in ((-0.32, 0.9, 0.4), (0.32, 0.95, 0.4), (0, 1.3, 0.46)):
            self.ellipse(x + dx * size, y - dy * size, r * size, r * size, self.shade(crown))

    def fir(self, x: float, y: float, size: float, color: Color) -> None:
        """A fir of three triangles standing at (x, y)."""
        for level in range(3):
            half, top = size * (0.46 - 0.1 * level), y - size * (0.8 + 0.35 * level)
            self.draw.polygon(
                [(x - half, top + size * 0.6), (x + half, top + size * 0.6), (x, top)], fill=self.shade(color)
            )

    def blobs(self, color: Color, low: int, high: int, rx: float, ry: float) -> None:
        """Flat ellipses strewn over the ground."""
        for x in self.spread(low, high):
            y = self.rng.uniform(self.horizon + 14, self.height - 6)
            grow = 0.6 + (y - self.horizon) / self.height
            self.ellipse(x, y, rx * grow, ry * grow, self.shade(color))


def _paint_meadow(p: _Painter) -> None:
    p.hills((120, 178, 96), 46)
    p.gradient(p.horizon, p.height, _ground(p, "meadow"))
    p.blobs((116, 182, 74), 6, 9, 24, 7)


def _paint_forest(p: _Painter) -> None:
    for x in p.spread(6, 9):
        p.fir(x, p.horizon + 8, p.rng.uniform(60, 100), (54, 106, 70))
    p.gradient(p.horizon, p.height, _ground(p, "forest"))
    for x in p.spread(2, 4):
        p.trunk_tree(x, p.horizon + p.rng.uniform(10, 40), p.rng.uniform(60, 95), (70, 132, 62))


def _paint_desert(p: _Painter) -> None:
    p.hills((226, 186, 118), 34)
    p.gradient(p.horizon, p.height, _ground(p, "desert"))
    for x in p.spread(2, 4):
        y, size, color = p.horizon + p.rng.uniform(8, 40), p.rng.uniform(36, 58), p.shade((84, 142, 84))
        p.draw.rounded_rectangle((x - 7, y - size, x + 7, y), 7, fill=color)
        p.draw.rounded_rectangle((x - 22, y - size * 0.75, x - 12, y - size * 0.3), 5, fill=color)
        p.draw.rectangle((x - 18, y - size * 0.42, x, y - size * 0.25), fill=color)


def _paint_beach(p: _Painter) -> None:
    p.draw.rectangle((0, p.horizon, p.width, p.height), fill=p.shade((60, 146, 200)))
    for x in p.spread(4, 7):
        y = p.horizon + p.rng.uniform(6, 30)
        p.ellipse(x, y, 26, 3, p.shade((190, 226, 240)))
    shore = p.horizon + int(p.rng.uniform(34, 54))
    p.gradient(shore, p.height, _ground(p, "beach"))
    p.draw.rectangle((0, shore - 5, p.width, shore), fill=p.shade((236, 246, 250)))
    p.blobs((214, 188, 136), 4, 7, 16, 5)


def _paint_snow(p: _Painter) -> None:
    p.hills((220, 230, 244), 52)
    for x in p.spread(3, 6):
        p.fir(x, p.horizon + 10, p.rng.uniform(44, 70), (88, 128, 118))
    p.gradient(p.horizon, p.height, _ground(p, "snow"))
    p.blobs((216, 226, 242), 5, 8, 30, 8)


def _paint_mountains(p: _Painter) -> None:
    for x in p.spread(3, 5):
        half, rise = p.rng.uniform(60, 100), p.rng.uniform(70, 120)
        top = p.horizon - rise
        p.draw.polygon([(x - half, p.horizon), (x + half, p.horizon), (x, top)], fill=p.shade((128, 128, 146)))
        cap = 0.32
        p.draw.polygon(
            [(x - half * cap, top + rise * cap), (x + half * cap, top + rise * cap), (x, top)],
            fill=p.shade((240, 244, 250)),
        )
    p.gradient(p.horizon, p.height, _ground(p, "mountains"))
    p.blobs((140, 138, 132), 5, 8, 16, 10)


def _paint_garden(p: _Painter) -> None:
    for x in p.spread(7, 10):
        p.ellipse(x, p.horizon, 34, p.rng.uniform(22, 38), p.shade((74, 142, 76)))
    p.gradient(p.horizon, p.height, _ground(p, "garden"))
    for x in p.spread(7, 10):
        y = p.rng.uniform(p.horizon + 12, p.height - 8)
        petal = [(246, 130, 160), (250, 220, 90), (240, 240, 250), (190, 130, 230)][p.rng.integers(4)]
        p.ellipse(x, y, 9, 8, p.shade(petal))
        p.ellipse(x, y, 3.5, 3.5, p.shade((250, 200, 60)))


def _paint_swamp(p: _Painter) -> None:
    for x in p.spread(3, 6):
        p.trunk_tree(x, p.horizon + 6, p.rng.uniform(46, 80), (86, 112, 72))
    p.gradient(p.horizon, p.height, _ground(p, "swamp"))
    p.blobs((82, 120, 122), 3, 5, 46, 10)
    for x in p.spread(6, 10):
        y = p.rng.uniform(p.horizon + 16, p.height)
        p.draw.line((x, y, x + p.rng.uniform(-4, 4), y - 30), fill=p.shade((120, 140, 70)), width=5)


def _ground(p: _Painter, place: str) -> tuple[Color, Color]:
    near, far = _GROUNDS[place]
    return p.shade(near), p.shade(far)


_PAINTERS = {
    "meadow": _paint_meadow,
    "forest": _paint_forest,
    "desert": _paint_desert,
    "beach": _paint_beach,
    "snow": _paint_snow,
    "mountains": _paint_mountains,
    "garden": _paint_garden,
    "swamp": _paint_swamp,
}


@cache
def background(place: str, light: str, variant: int) -> np.ndarray:
    """Background number `variant` of a place and light -> (152, 200, 3) uint8, the same in every run."""
    # a separate seed per background, so that the result does not depend on the painting order
    rng = np.random.default_rng((PLACES.index(place), LIGHTS.index(light), variant))
    painter = _Painter(rng, light)
    painter.sky()
    _PAINTERS[place](painter)
    picture = np.asarray(painter.image.reduce(2))  # (152, 200, 3)
    picture.setflags(write=False)
    return picture


def cut_window(place: str, light: str, rng: np.random.Generator) -> np.ndarray:
    """A random 128 px window of a random background -> (128, 128, 3) float32, 0..255."""
    picture = background(place, light, int(rng.integers(VARIANTS)))
    # augmentation by mirroring, cropping and brightness: a few backgrounds look like many
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    top, left = rng.integers(HEIGHT - 128 + 1), rng.integers(WIDTH - 128 + 1)
    window = picture[top : top + 128, left : left + 128].astype(np.float32)  # (128, 128, 3)
    return window * np.float32(rng.uniform(0.92, 1.05))
