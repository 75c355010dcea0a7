"""What a browser needs of a part dictionary: names, numbers and thumbnails; never its vectors.

Only the tables of a file are read, each of a bounded size, so that a long list of dictionaries with large adapters costs
little, and a hostile file costs nothing. All text stays text: whoever shows it must not take it for markup.
"""

from __future__ import annotations

import io
import math
import re
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.files.concept_file import DICTIONARY_KIND, LARGEST_HEADER, Header, from_text_tensor, read_header
from ...concepts.files.file_schema import checked_table
from ...concepts.files.thumbnail_atlas import ThumbnailAtlas
from ...concepts.name_search import typed_number
from ...concepts.part_dictionary.part_dictionary import THUMBNAIL_PREFIX

LARGEST_TENSORS = {"names": 8 << 20, "rows": 4 << 20, "picture": 24 << 20, "index": 4 << 20, "shape": 64}
"""Bytes of each table that is read."""
LONGEST_NAME = 120
"""Characters of a name; longer ones are cut and written by number."""
TILES_A_PAGE = 100
"""Thumbnails in one picture that a browser loads; a page of 96-pixel tiles has 960 x 960 pixels."""
PAGE_COLUMNS = 10
KEPT_PAGES = 4
"""Dictionaries whose cut pages stay in memory, about 3 MB for 5,000 kinds."""
_SPECIAL_IN_PART, _SPECIAL_IN_KIND = re.compile(r"[\\.:<>]"), re.compile(r"[\\:*+@<>]")
"""What a mention reads as its own unless a backslash stands before it (concepts/part_prompt/mention_writing.py)."""


@dataclass(frozen=True)
class ListedTables:
    """The tables of a dictionary file without its vectors."""

    header: Header
    tensors: dict[str, Tensor]
    """`rows` (R, 2), `names` (bytes,), and those of the atlas under their own names."""

    @property
    def atlas(self) -> ThumbnailAtlas | None:
        """The thumbnails, None if there are none.

        Raises:
            BestiaryError: they are broken.
        """
        pictures = {name: self.tensors[name] for name in ("picture", "index", "shape") if name in self.tensors}
        if "index" in pictures and (pictures["index"].ndim != 2 or pictures["index"].shape[1] != 2):
            raise BestiaryError(f"the thumbnails are broken: their index has shape {tuple(pictures['index'].shape)}")
        return ThumbnailAtlas.from_tensors(pictures) if pictures else None


def read_tables(path: Path) -> ListedTables:
    """Read names, rows and thumbnails.

    Raises:
        BestiaryError: no dictionary, broken, or with tables beyond `LARGEST_TENSORS`.
    """
    header = read_header(path, LARGEST_HEADER)
    if header.kind != DICTIONARY_KIND:
        raise BestiaryError(f"{path.name} is {header.kind or 'of another program'}, not a part dictionary")
    places = {name.removeprefix(THUMBNAIL_PREFIX): name for name in header.entries if not name.startswith("lora.")}
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name, largest in LARGEST_TENSORS.items():
                if name not in places:
                    continue
                # elements are counted first: nothing is read of a table that is too large
                count = math.prod(header.entries[places[name]].shape)
                if count > largest:
                    raise BestiaryError(f"{path.name}: its {name} are {count:,} values, at most {largest:,} are shown")
                tensors[name] = file.get_tensor(places[name])
    except (SafetensorError, OSError, ValueError) as fault:
        raise BestiaryError(f"{path.name} is broken: {fault}") from fault
    if not {"names", "rows"} <= tensors.keys() or tensors["rows"].ndim != 2 or tensors["rows"].shape[1] != 2:
        raise BestiaryError(f"{path.name} is broken: it lacks its names or its rows")
    return ListedTables(header, tensors)


def list_dictionary(path: Path) -> dict[str, object]:
    """Parts, kinds and the place of every thumbnail, as JSON can say it; all `part_names`, those of parts without kinds too.

    Per part: `number`, `name`, `written` (as a mention names it), `background`, and columns over its kinds: `numbers` as people
    type them, `names` (null without), `written` and `tiles` (-1 without). A broken atlas is told in `atlas_fault`.

    Raises:
        BestiaryError: see `read_tables`, or its names contradict its rows.
    """
    tables = read_tables(path)
    concept = tables.header.concept
    parts, kinds = _names(tables, path)
    base = 1 if concept.get("id_base") == 1 else 0
    try:
        atlas, fault = tables.atlas, None
    except BestiaryError as broken:
        atlas, fault = None, str(broken)
    tile_of = {pair: tile for tile, pair in enumerate(atlas.index)} if atlas else {}
    known: dict[int, list[int]] = {}
    for part, kind in sorted(set(map(tuple, tables.tensors["rows"].tolist()))):
        known.setdefault(part, []).append(kind)
    if min(known, default=0) < 0 or max(known, default=0) >= len(parts):
        raise BestiaryError(f"{path.name} is broken: its rows refer to a part without a name")
    same_name = Counter(parts[part].strip() for part in known)
    return {
        "backbone": str(concept.get("backbone"))[:LONGEST_NAME],
        "id_base": base,
        "part_names": [_shown(name) for name in parts],
        "background": concept.get("background") if isinstance(concept.get("background"), int) else None,
        "parts": [
            {
                "number": part,
                "name": _shown(parts[part]) or str(part),
                "written": _escaped(parts[part].strip(), _SPECIAL_IN_PART)
                if _unique(parts[part], same_name)
                else str(part),
                "background": part == concept.get("background"),
                "kinds": _columns(part, numbers, kinds[part], base, tile_of),
            }
            for part, numbers in known.items()
        ],
        "atlas": _page_facts(atlas) if atlas else None,
        "atlas_fault": fault,
    }


def _columns(
    part: int, stored: list[int], names: dict[int, str], base: int, tile_of: dict[tuple[int, int], int]
) -> dict[str, list]:
    """The kinds of a part, column by column."""
    same_name = Counter(names[kind].strip() for kind in stored if kind in names)
    by_name = [kind in names and _unique(names[kind], same_name) for kind in stored]
    return {
        "numbers": [kind + base for kind in stored],
        "names": [_shown(names[kind]) if kind in names else None for kind in stored],
        "written": [
            _escaped(names[kind], _SPECIAL_IN_KIND) if named else str(kind + base)
            for kind, named in zip(stored, by_name, strict=True)
        ],
        "tiles": [tile_of.get((part, kind), -1) for kind in stored],
    }


def _escaped(name: str, special: re.Pattern[str]) -> str:
    return special.sub(r"\\\g<0>", name)


def _unique(name: str, same_name: Counter[str]) -> bool:
    """Whether a mention can use this name: nothing else is spelt the same, and it is not a number."""
    spelt = name.strip()
    return len(spelt) > 0 and len(name) <= LONGEST_NAME and same_name[spelt] == 1 and typed_number(spelt) is None


def _shown(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _names(tables: ListedTables, path: Path) -> tuple[list[str], list[dict[int, str]]]:
    """Names of the parts, and per part those of its kinds by stored id."""
    try:
        table = checked_table(from_text_tensor(tables.tensors["names"]), "the table of names", ("parts", "kinds"))
        kinds = [{int(kind): str(name) for kind, name in named.items()} for named in table["kinds"]]
        parts = [str(name) for name in table["parts"]]
    except (BestiaryError, KeyError, TypeError, ValueError, AttributeError) as fault:
        raise BestiaryError(f"{path.name} is broken: its table of names cannot be read ({fault})") from fault
    if len(parts) != len(kinds):
        raise BestiaryError(f"{path.name} is broken: {len(parts)} parts, but {len(kinds)} lists of kinds")
    return parts, kinds


def _page_facts(atlas: ThumbnailAtlas) -> dict[str, int]:
    pages = math.ceil(len(atlas.index) / TILES_A_PAGE)
    columns = atlas.columns if pages == 1 else PAGE_COLUMNS
    return {"tile": atlas.tile_size, "columns": columns, "per_page": TILES_A_PAGE, "pages": pages}


class ThumbnailPages:
    """Atlases cut into pages that a browser can hold; the last few dictionaries stay ready."""

    def __init__(self) -> None:
        """Empty."""
        self._pages: OrderedDict[tuple[Path, str], list[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def page(self, path: Path, stamp: str, number: int) -> bytes:
        """WebP bytes of one page, counted from 0; `stamp` changes with the file.

        Raises:
            BestiaryError: no thumbnails, broken ones, or no such page.
        """
        # one at a time: twenty requests for a new atlas must not unpack it twenty times
        with self._lock:
            pages = self._pages.pop((path, stamp), None)
            if pages is None:
                atlas = read_tables(path).atlas
                pages = cut_pages(atlas) if atlas else []
            self._pages[path, stamp] = pages
            while len(self._pages) > KEPT_PAGES:
                self._pages.popitem(last=False)
        if not 0 <= number < len(pages):
            raise BestiaryError(f"{path.name} has no page {number} of thumbnails, it has {len(pages)}")
        return pages[number]


def cut_pages(atlas: ThumbnailAtlas) -> list[bytes]:
    """The atlas as pages of `TILES_A_PAGE` tiles, `PAGE_COLUMNS` in a row; pictures of ours, whatever the file held.

    Raises:
        BestiaryError: the picture cannot be unpacked.
    """
    if len(atlas.index) <= TILES_A_PAGE:
        # unpacked once, so that a broken picture is told here and not by an empty square
        atlas.tile(*atlas.index[0])
        return [atlas.webp]
    edge, pages = atlas.tile_size, []
    for first in range(0, len(atlas.index), TILES_A_PAGE):
        pairs = atlas.index[first : first + TILES_A_PAGE]
        sheet = Image.new("RGB", (PAGE_COLUMNS * edge, math.ceil(len(pairs) / PAGE_COLUMNS) * edge))
        tiles = ((place, atlas.tile(*pair)) for place, pair in enumerate(pairs))
        for place, tile in ((place, tile) for place, tile in tiles if tile is not None):
            sheet.paste(tile, (place % PAGE_COLUMNS * edge, place // PAGE_COLUMNS * edge))
        stream = io.BytesIO()
        sheet.save(stream, "WEBP", quality=82, method=2)
        pages.append(stream.getvalue())
    return pages
