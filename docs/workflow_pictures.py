"""Runs a graph on a ComfyUI server, and makes its preview of the pictures that come back or of its layout."""

from __future__ import annotations

import io
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

LARGEST_PREVIEW = 60_000
"""Bytes of a preview."""
PREVIEW_SIZE = (640, 480)
"""Width and height in pixels of every preview."""
_WIDTH, _TALLEST, _GAP, _PAPER, _MOST_PICTURES = 640, 640, 6, (24, 24, 28), 12
_INK, _FRAME, _BLOCK, _LINK = (225, 225, 230), (90, 90, 100), (53, 53, 58), (150, 150, 160)


class Server:
    """A ComfyUI that answers at an address such as http://127.0.0.1:8188."""

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")

    def object_info(self) -> dict[str, dict]:
        """Every node it knows."""
        return json.loads(self._get("/object_info"))

    def run(self, prompt: dict[str, dict], seconds: float = 1800) -> dict[str, dict]:
        """Outputs by block of a graph in API form.

        Raises:
            RuntimeError: the graph is refused, fails, or takes longer than `seconds`.
        """
        body = json.dumps({"prompt": prompt, "client_id": "make_workflows"}).encode()
        request = urllib.request.Request(f"{self._address}/prompt", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                number = json.load(answer)["prompt_id"]
        except urllib.error.HTTPError as fault:
            raise RuntimeError(f"the server refuses the graph: {fault.read().decode()}") from fault
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            entry = json.loads(self._get(f"/history/{number}")).get(number)
            if entry and entry["status"]["completed"]:
                return entry["outputs"]
            if entry and entry["status"]["status_str"] == "error":
                raise RuntimeError(f"the graph failed: {entry['status']['messages'][-1]}")
            time.sleep(0.3)
        raise RuntimeError(f"the graph did not end within {seconds:g} s")

    def picture(self, place: dict[str, str]) -> Image.Image:
        """A picture that a graph gave, by its entry in the outputs."""
        return Image.open(io.BytesIO(self._get(f"/view?{urllib.parse.urlencode(place)}"))).convert("RGB")

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self._address + path, timeout=60) as answer:
            return answer.read()


def gallery(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures in rows, no more than twelve of them, on a sheet 640 pixels wide and cut off below 640."""
    shown = list(pictures)[:_MOST_PICTURES]
    columns = min(columns, len(shown))
    side = (_WIDTH - _GAP * (columns + 1)) // columns
    fitted = [
        picture.resize((side, side * picture.height // picture.width), Image.Resampling.LANCZOS) for picture in shown
    ]
    rows = [fitted[start : start + columns] for start in range(0, len(fitted), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    sheet = Image.new("RGB", (_WIDTH, sum(heights) + _GAP * (len(rows) + 1)), _PAPER)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for number, picture in enumerate(row):
            sheet.paste(picture, (_GAP + number * (side + _GAP), top))
        top += height + _GAP
    return sheet.crop((0, 0, _WIDTH, min(sheet.height, _TALLEST)))


def two_rows(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """A gallery of `columns`, but a single row of an even number of pictures is broken into two."""
    single = len(pictures) <= columns and len(pictures) % 2 == 0
    return gallery(pictures, len(pictures) // 2 if single else columns)


def preview(picture: Image.Image) -> Image.Image:
    """A picture of any shape as large as it fits into the one shape of all previews, in its middle."""
    fitted = ImageOps.contain(picture, PREVIEW_SIZE, Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", PREVIEW_SIZE, _PAPER)
    sheet.paste(fitted, ((PREVIEW_SIZE[0] - fitted.width) // 2, (PREVIEW_SIZE[1] - fitted.height) // 2))
    return sheet


def drawn_layout(workflow: dict) -> Image.Image:
    """Groups, blocks and links of a workflow in UI form, for one that this machine cannot run."""
    boxes = [group["bounding"] for group in workflow["groups"]]
    right, bottom = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    scale = 2 * _WIDTH / (right + 40)
    sheet = Image.new("RGB", (2 * _WIDTH, round((bottom + 40) * scale)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)

    def at(x: float, y: float) -> tuple[float, float]:
        return (x + 20) * scale, (y + 20) * scale

    for group in workflow["groups"]:
        x, y, width, height = group["bounding"]
        draw.rounded_rectangle((*at(x, y), *at(x + width, y + height)), 10, _PAPER, group["color"], 3)
        draw.text(at(x + 16, y + 10), group["title"], group["color"], font)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for _, source, slot, target, place, _ in workflow["links"]:
        (left, top), (width, _) = nodes[source]["pos"], nodes[source]["size"]
        end = nodes[target]["pos"]
        draw.line((*at(left + width, top + 14 + 20 * slot), *at(end[0], end[1] + 14 + 20 * place)), _LINK, 2)
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        fill = node.get("bgcolor", "#35353a")
        draw.rounded_rectangle((*at(x, y - 30), *at(x + width, y + height)), 8, fill, _FRAME, 2)
        draw.text(at(x + 10, y - 22), node.get("title") or node["type"].removeprefix("Bestiary"), _INK, font)
    return sheet.reduce(2)


def as_jpeg(picture: Image.Image, largest: int = LARGEST_PREVIEW) -> bytes:
    """The picture as JPEG of at most `largest` bytes, as good as that allows."""
    for quality in range(92, 20, -4):
        held = io.BytesIO()
        picture.save(held, "JPEG", quality=quality, optimize=True, progressive=True)
        if held.tell() <= largest:
            return held.getvalue()
    return as_jpeg(picture.reduce(2), largest)
