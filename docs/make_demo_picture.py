"""README's picture from a finished `bestiary demo`: drawings, their found parts, and mixes of four species.

python docs/make_demo_picture.py DEMO
"""

import argparse
from pathlib import Path

from bestiary.concepts.part_map.part_areas import part_areas
from bestiary.concepts.pictures.part_overlay import draw_parts
from bestiary.trainer.learning.discovery.discovery_folder import Discovery
from PIL import Image

COLUMNS, TILE, GAP = 8, 128, 4


def main() -> None:
    """Write docs/demo.webp."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="folder that `bestiary demo` wrote")
    demo = parser.parse_args().demo
    discovery = Discovery.load(demo / "discovery")
    step = max(len(discovery.image_paths) // COLUMNS - 1, 1)  # the species take turns: not always the same one
    rows = range(0, step * COLUMNS, step)
    drawings = [Image.open(discovery.images_folder / discovery.image_paths[row]).convert("RGB") for row in rows]
    background = discovery.codebook.background
    areas = [
        part_areas(
            discovery.maps.labels[row].long(),
            discovery.codebook.num_parts,
            background,
            picture.size[::-1],
            (0, 0, *picture.size),
        )  # fmt: skip
        for row, picture in zip(rows, drawings, strict=True)
    ]
    found = [draw_parts(picture, area, background) for picture, area in zip(drawings, areas, strict=True)]
    mixes = sorted(path for path in (demo / "composed").glob("mix-*.png") if "attention" not in path.name)[::3]
    composed = [Image.open(path).convert("RGB") for path in mixes[:COLUMNS]]
    edge = TILE + GAP
    sheet = Image.new("RGB", (COLUMNS * edge - GAP, 3 * edge - GAP), "white")
    for line, pictures in enumerate((drawings, found, composed)):
        for place, picture in enumerate(pictures):
            sheet.paste(picture.resize((TILE, TILE), Image.Resampling.LANCZOS), (place * edge, line * edge))
    sheet.save(Path(__file__).parent / "demo.webp", quality=82, method=6)


if __name__ == "__main__":
    main()
