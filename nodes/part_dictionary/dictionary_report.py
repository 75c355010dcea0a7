"""Contents of a part dictionary, as text and as a sheet of thumbnails."""

from __future__ import annotations

import json

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...concepts.denoiser.backbone import get_backbone
from ...concepts.name_search import number_ranges
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ...concepts.pictures.part_overlay import Font

COLUMNS = 8
MOST_TILES = 400
"""Maximum number of thumbnails on one sheet; the text lists every kind."""
MOST_NAMES = 40
"""Maximum number of kinds per part that the text lists by name."""
LABEL_HEIGHT = 16
"""Height in pixels of the text below a tile and above a part."""
LONGEST_FACT = 200
"""Maximum characters of one provenance entry."""
PAPER, INK = (250, 250, 248), (40, 40, 40)


def describe_dictionary(dictionary: PartDictionary, name: str) -> str:
    """Parts, kinds, base model, LoRA and provenance as lines of text."""
    backbone = get_backbone(dictionary.backbone)
    widths = ", ".join(f"{encoder} {tensor.shape[1]} wide" for encoder, tensor in dictionary.embeddings.items())
    modules = sum(key.endswith(".lora_down.weight") for key in dictionary.lora)
    lines = [
        f"dictionary: {name}",
        f"base model: {dictionary.backbone} ({widths}), {backbone.image_size} px",
        f"vectors: {len(dictionary.rows)}",
        f"LoRA: {f'{modules} layers' if modules else 'none'}",
        f"thumbnails: {len(dictionary.thumbnails.index) if dictionary.thumbnails else 'none'}",
        "",
    ]
    # parts without a trained kind cannot be used in prompts
    trained = [part for part in range(len(dictionary.part_names)) if dictionary.kinds_of(part)]
    lines += [_part_line(dictionary, part) for part in trained]
    part = trained[0]
    example = f"{dictionary.part_names[part]}.{dictionary.kind_label(part, dictionary.kinds_of(part)[0])}".replace(
        " ", "_"
    )
    lines += ["", f"in a prompt: (embedding:{name.replace(' ', '_')}/{example}:1.0)", ""]
    lines += [f"{key}: {_short(value)}" for key, value in dictionary.provenance.items()]
    return "\n".join(lines).strip()


def thumbnail_sheet(dictionary: PartDictionary) -> Tensor:
    """All thumbnails, grouped by part and labelled with their kinds: `(1, H, W, 3)` float in 0..1.

    Raises:
        BestiaryError: the picture in the dictionary is damaged.
    """
    # the height depends on how many rows of tiles each part needs
    tile = dictionary.thumbnails.tile_size if dictionary.thumbnails else 64
    cell = tile + LABEL_HEIGHT
    groups = _shown_kinds(dictionary)
    rows = sum(-(-len(kinds) // COLUMNS) for _, kinds in groups)
    sheet = Image.new("RGB", (COLUMNS * (tile + 4) + 4, rows * cell + len(groups) * LABEL_HEIGHT + 4), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    top = 2
    for part, kinds in groups:
        draw.text((4, top), _fitted(draw, font, dictionary.part_names[part], sheet.width - 8), INK, font)
        top += LABEL_HEIGHT
        for number, kind in enumerate(kinds):
            left, upper = 4 + number % COLUMNS * (tile + 4), top + number // COLUMNS * cell
            picture = dictionary.thumbnails.tile(part, kind) if dictionary.thumbnails else None
            if picture is not None:
                sheet.paste(picture, (left, upper))
            else:
                draw.rectangle((left, upper, left + tile - 1, upper + tile - 1), outline=INK)
            # cut names to the tile width, so that they do not overlap
            draw.text((left, upper + tile), _fitted(draw, font, dictionary.kind_label(part, kind), tile), INK, font)
        top += -(-len(kinds) // COLUMNS) * cell
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255)[None]  # (1, H, W, 3)


def _shown_kinds(dictionary: PartDictionary) -> list[tuple[int, tuple[int, ...]]]:
    """Parts with as many of their kinds as fit on a sheet, with an equal limit per part."""
    kinds = {part: dictionary.kinds_of(part) for part in range(len(dictionary.part_names))}
    groups = [(part, known) for part, known in kinds.items() if known][:MOST_TILES]
    share = max(1, MOST_TILES // len(groups))
    return [(part, known[:share]) for part, known in groups]


def _part_line(dictionary: PartDictionary, part: int) -> str:
    kinds = dictionary.kinds_of(part)
    numbers = number_ranges(kind + dictionary.id_base for kind in kinds)
    line = f"{part} {dictionary.part_names[part]}{' (background)' if part == dictionary.background else ''}: "
    line += f"{len(kinds)} {'kind' if len(kinds) == 1 else 'kinds'}, numbers {numbers}"
    named = [
        f"{kind + dictionary.id_base} {dictionary.kind_names[part][kind]}"
        for kind in kinds
        if kind in dictionary.kind_names[part]
    ]
    if named:
        more = f" and {len(named) - MOST_NAMES} more" if len(named) > MOST_NAMES else ""
        line += f": {', '.join(named[:MOST_NAMES])}{more}"
    return line


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_FACT else text[: LONGEST_FACT - 1] + "…"


def _fitted(draw: ImageDraw.ImageDraw, font: Font, text: str, width: int) -> str:
    """The text cut to this width in pixels; characters missing in the font become question marks."""
    plain = text if isinstance(font, ImageFont.FreeTypeFont) else text.encode("latin-1", "replace").decode("latin-1")
    while plain and draw.textlength(plain, font) > width:
        plain = plain[:-1]
    return plain
