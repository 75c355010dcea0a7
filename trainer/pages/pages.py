"""Self-contained HTML pages: pictures are embedded, all text is escaped, no external resources are loaded."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from ...concepts.files.atomic_file import write_text
from .page_style import STYLE


def data_uri(image: Image.Image, quality: int | None = 88) -> str:
    """A picture as a data URI: WebP of this quality (1 to 100), or lossless WebP if quality is None."""
    buffer = io.BytesIO()
    options = {"lossless": True} if quality is None else {"quality": quality}
    image.convert("RGB").save(buffer, "WEBP", **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def escaped(text: object) -> str:
    """A value as HTML-escaped text, safe inside an element or an attribute."""
    return html.escape(str(text), quote=True)


def image(uri: str, description: str = "") -> str:
    """One picture without a frame."""
    return f'<img src="{escaped(uri)}" alt="{escaped(description)}" loading="lazy">'


def figure(uri: str, caption: str = "", title: str = "") -> str:
    """A framed picture with a caption below it; the title, in bold, comes before the caption."""
    lines = [f"<b>{escaped(title)}</b>" if title else "", escaped(caption)]
    text = "<br>".join(line for line in lines if line)
    legend = f"<figcaption>{text}</figcaption>" if text else ""
    return f"<figure>{image(uri, title or caption)}{legend}</figure>"


def gallery(figures: Iterable[str], tile: int = 160) -> str:
    """Figures in as many columns as fit, each at least `tile` pixels wide."""
    return f'<div class="gallery" style="--tile: {tile}px">{"".join(figures)}</div>'


def strip(figures: Sequence[str], columns: int | None = None) -> str:
    """Figures in rows of `columns`; None puts all into one row."""
    return f'<div class="strip" style="--columns: {columns or len(figures)}">{"".join(figures)}</div>'


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table; floats are shown with three decimals, None as a dash."""
    head = "".join(f"<th>{escaped(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escaped(_shown(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def tiles(figures: Iterable[tuple[object, str]]) -> str:
    """Key figures as (value, label), large and side by side."""
    cells = (
        f'<div class="tile"><strong>{escaped(_shown(value))}</strong><span>{escaped(label)}</span></div>'
        for value, label in figures
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def section(heading: str, *content: str) -> str:
    """A heading followed by HTML content."""
    return f"<h2>{escaped(heading)}</h2>{''.join(content)}"


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of plain text; style is a class of the style sheet (`lead`, `note`) or empty."""
    return f'<p class="{escaped(style)}">{escaped(text)}</p>' if style else f"<p>{escaped(text)}</p>"


def code(text: str) -> str:
    """Text in a monospaced font."""
    return f"<code>{escaped(text)}</code>"


def details(summary: str, content: str) -> str:
    """HTML content in a collapsed element with a summary line."""
    return f"<details><summary>{escaped(summary)}</summary>{content}</details>"


def color_key(entries: Iterable[tuple[str, tuple[int, int, int]]]) -> str:
    """A legend line of (name, RGB 0..255)."""
    marks = (
        f'<span class="key" style="background: rgb({red}, {green}, {blue})"></span>{escaped(name)}'
        for name, (red, green, blue) in entries
    )
    return f"<p>{''.join(marks)}</p>"


def write_page(path: Path, title: str, body: str) -> Path:
    """Write a page with its title as heading and return its path; an existing page is replaced atomically.

    Raises:
        BestiaryError: the folder cannot be written to.
    """
    path = Path(path)
    # a single file, so that the page can be sent or archived
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escaped(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )
    write_text(path, page)
    return path


def _shown(cell: object) -> object:
    if cell is None:
        return "–"
    return f"{cell:.3f}" if isinstance(cell, float) else cell
