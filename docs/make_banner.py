"""Draws the pictures by which ComfyUI's registry shows the pack: a square icon and a banner of 21:9.

    python docs/make_banner.py

Writes docs/icon.png (400 x 400) and docs/banner.png (1260 x 540). The creatures are drawn by demo/creatures.py; those in
the middle wear parts of their neighbours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bestiary.concepts.files.atomic_file import replacing
from bestiary.demo.creatures import HELD_OUT_SPECIES, PARTS, Drawing, Scene, Species, draw_creature
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HERE = Path(__file__).parent
ICON_SIDE, BANNER_SIZE = 400, (1680, 720)
PAPER, INK, ACCENT = (248, 243, 230), (42, 40, 54), (196, 84, 52)
ICON_MIX = (5, 0, 8, 13, 7)
"""Species of the head, body, wing, tail and legs of the creature on the icon."""
PARENTS = (0, 3, 5, 10)
"""Species of the four small creatures on the banner; the large one has the head of the first, the wing of the second, and on."""
POSE_SEED = 12


def mixed(species: tuple[int, ...]) -> Species:
    """A creature with one part of each, in the order of PARTS."""
    looks = tuple(HELD_OUT_SPECIES[index].look(part) for part, index in zip(PARTS, species, strict=True))
    return Species("mixed", looks)


def cut_out(species: Species, side: int, facing: str, seed: int = POSE_SEED) -> Image.Image:
    """A creature on nothing, enlarged to `side` pixels with a soft edge."""
    drawing: Drawing = draw_creature(species, np.random.default_rng(seed), scene=Scene("meadow", "day", facing))
    inside = Image.fromarray(((drawing.labels > 0) * 255).astype(np.uint8))
    large = Image.fromarray(drawing.image).resize((side, side), Image.Resampling.LANCZOS)
    edge = inside.resize((side, side), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(side / 170))
    # steepened: the blur rounds the steps of the mask, and the edge stays an edge
    large.putalpha(edge.point(lambda value: max(0, min(255, round((value - 118) * 6)))))
    return large


def draw_icon() -> Image.Image:
    """One creature of five species on a disc."""
    sheet = Image.new("RGBA", (4 * ICON_SIDE, 4 * ICON_SIDE), (0, 0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    draw.rounded_rectangle((0, 0, 4 * ICON_SIDE - 1, 4 * ICON_SIDE - 1), 300, PAPER)
    draw.ellipse((150, 190, 1450, 1490), (237, 224, 192))
    sheet = sheet.resize((ICON_SIDE, ICON_SIDE), Image.Resampling.LANCZOS)
    creature = cut_out(mixed(ICON_MIX), 400, "right")
    sheet.alpha_composite(creature, (0, -4))
    return sheet


def draw_banner() -> Image.Image:
    """Four species, and the creature that has a part of each."""
    sheet = Image.new("RGBA", BANNER_SIZE, PAPER)
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(112), ImageFont.load_default(38)
    draw.text((70, 60), "Bestiary", INK, font)
    draw.text((76, 196), "Learn the parts of things from pictures,", INK, small)
    draw.text((76, 244), "and put them together anew.", INK, small)
    side = 250
    for number, index in enumerate(PARENTS):
        left, top = 60 + number * (side + 8), 400
        draw.rounded_rectangle((left, top, left + side - 14, top + side), 28, (237, 224, 192))
        sheet.alpha_composite(cut_out(HELD_OUT_SPECIES[index], side - 24, "right"), (left + 4, top + 12))
    draw.rounded_rectangle((1130, 60, 1620, 650), 40, (237, 224, 192), ACCENT, 5)
    head, wing, body, tail = PARENTS
    sheet.alpha_composite(cut_out(mixed((head, body, wing, tail, tail)), 500, "right"), (1125, 110))
    return sheet


def main() -> None:
    """Writes both pictures."""
    banner = draw_banner().convert("RGB").resize((1260, 540), Image.Resampling.LANCZOS)
    for name, picture in (("icon", draw_icon()), ("banner", banner)):
        with replacing(HERE / f"{name}.png") as temporary:
            picture.quantize(256, method=Image.Quantize.FASTOCTREE).save(temporary, "PNG", optimize=True)


if __name__ == "__main__":
    main()
