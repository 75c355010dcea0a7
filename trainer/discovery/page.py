"""HTML page of a discovery: part maps over pictures, the kinds of every part with thumbnails, sizes, skipped files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ...concepts.features.patch_features import SourceSpec
from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.pictures.part_overlay import part_color as part_color
from ..learning.discovery.discovery_doubts import confidence_word, doubt_text
from ..learning.discovery.discovery_folder import IMAGES, read_lines_at, read_skipped
from ..learning.discovery.discovery_report import DiscoveryReport
from ..learning.pictures.image_files import UnreadableImage, fit_square, read_image
from ..pages.pages import (
    code,
    color_key,
    data_uri,
    details,
    escaped,
    figure,
    gallery,
    image,
    paragraph,
    section,
    table,
    tiles,
    write_page,
)
from .counts import PER_KIND, largest_kinds

EXAMPLES = 24
"""Pictures shown with their part maps."""
KINDS_SHOWN = 24
"""Kinds of a part shown with thumbnails, largest first."""
_PICTURE, _THUMBNAIL = 224, 88
_SKIPPED_SHOWN = 200
_STYLE = """<style>
.strip { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1px; background: var(--line); }
.strip img { display: block; width: 100%; height: auto; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .45em; }
figure.kind figcaption { display: flex; justify-content: space-between; gap: .6em; }
h3 small { font: 400 .85rem system-ui, sans-serif; color: var(--soft); margin-left: .6em; }
.warning { border-left: 4px solid #c77700; padding: .4em .8em; background: rgb(199 119 0 / 10%); }
.bar { height: 3px; background: var(--accent); opacity: .75; }
</style>"""


@dataclass(frozen=True)
class PageContent:
    """Content of a discovery page."""

    images_folder: Path
    codebook: PartCodebook
    report: DiscoveryReport
    labels: Tensor
    """`(N, h, w)` uint8, may be memory-mapped: only the displayed rows are read."""
    names: Mapping[int, str]
    """Row -> picture file relative to its folder, for the displayed rows."""
    skipped: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class _Pictures:
    """Images of the page, made from the picture files, each of which is opened once."""

    overlays: dict[int, str]
    thumbnails: dict[tuple[int, int, int], str]  # (part, kind, row)


def color_parts(picture: Image.Image, labels: Tensor, background: int) -> Image.Image:
    """A square picture with part labels `(h, w)` laid over it in colour; the background is faded to grey."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)  # (S, S, 3)
    parts = sorted(int(part) for part in labels.unique())
    # upsample each part as a smooth field; every pixel goes to the part with the largest value
    nearness = np.stack([_smooth_mask(labels == part, picture.size) for part in parts])  # (parts, S, S)
    owner = np.array(parts)[nearness.argmax(0)]  # (S, S)
    # (S, S, 3) in grey: the picture's colours would mix with those of the parts
    light = pixels.mean(2, keepdims=True).repeat(3, axis=2)
    shown = 0.4 * light + 0.6 * 235
    for part in parts:
        if part != background:
            inside = (owner == part)[..., None]  # (S, S, 1)
            shown = np.where(inside, 0.45 * light + 0.55 * np.array(part_color(part), np.float32), shown)
    return Image.fromarray(shown.clip(0, 255).astype(np.uint8))


def crop_part(picture: Image.Image, labels: Tensor, part: int, size: int) -> Image.Image:
    """The square around a part's patches `(h, w)` in a square picture, resized to `size` pixels."""
    rows, columns = (labels == part).nonzero(as_tuple=True)
    # from patches to pixels
    step = picture.width / labels.shape[1]
    left, right = float(columns.min()) * step, float(columns.max() + 1) * step
    top, bottom = float(rows.min()) * step, float(rows.max() + 1) * step
    # margin of one patch in total; the square is shifted to stay inside the picture
    edge = min(max(right - left, bottom - top) + step, picture.width)
    x = min(max((left + right - edge) / 2, 0), picture.width - edge)
    y = min(max((top + bottom - edge) / 2, 0), picture.height - edge)
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + edge, y + edge))


def page_content(
    folder: Path, images_folder: Path, codebook: PartCodebook, report: DiscoveryReport, labels: Tensor
) -> PageContent:
    """Collect the content of the page of the discovery in `folder`; labels are `(N, h, w)`."""
    # one pass over the list of names, which may have millions of lines
    shown = {row for _, _, _, rows in _shown_kinds(report) for row in rows} | set(_shown_whole(report))
    return PageContent(
        images_folder, codebook, report, labels, read_lines_at(folder / IMAGES, shown), read_skipped(folder)
    )


def write_discovery_page(path: Path, content: PageContent) -> Path:
    """Write the page of a discovery; pictures that can no longer be read are omitted.

    Raises:
        BestiaryError: the folder cannot be written to.
    """
    pictures = _read_pictures(content)
    body = [
        _STYLE,
        _summary(content),
        _warnings(content.report),
        _doubtful(content, pictures),
        _examples(content, pictures),
        *(_part_section(content, part, pictures) for part in _foreground_first(content.codebook)),
        section("Sizes", _size_table(content)),
        _skipped_section(content),
        f"<footer>{escaped(_provenance(content.report))}</footer>",
    ]
    return write_page(path, f"Parts of {content.images_folder.resolve().name}", "\n".join(body))


def _read_pictures(content: PageContent) -> _Pictures:
    """Read every picture of the page once."""
    found = _Pictures({}, {})
    wanted: dict[int, list[tuple[int, int]]] = {}
    for part, kind, _, rows in _shown_kinds(content.report):
        for row in rows:
            wanted.setdefault(row, []).append((part, kind))
    examples = set(_shown_whole(content.report))
    # a picture may be both an example and a source of thumbnails: decode it once
    for row in sorted(examples | set(wanted)):
        try:
            picture = fit_square(read_image(content.images_folder / content.names[row], at_least=_PICTURE), _PICTURE)
        # pictures may have been deleted since the discovery
        except UnreadableImage:
            continue
        labels = content.labels[row]  # (h, w)
        if row in examples:
            found.overlays[row] = _picture_pair(picture, labels, content.codebook.background)
        for part, kind in wanted.get(row, []):
            if bool((labels == part).any()):
                found.thumbnails[part, kind, row] = data_uri(crop_part(picture, labels, part, _THUMBNAIL), 80)
    return found


def _shown_whole(report: DiscoveryReport) -> list[int]:
    """Rows of the pictures that are shown in full: the doubtful ones first."""
    doubtful = [doubt["row"] for doubt in report.get("doubts", [])]
    return [*doubtful, *(row for row in report["examples"] if row not in doubtful)]


def _shown_kinds(report: DiscoveryReport) -> Iterator[tuple[int, int, int, list[int]]]:
    """(part, kind, number of pictures, typical pictures) of the largest kinds of every part."""
    for part in report["parts"]:
        for kind, size in largest_kinds(part, KINDS_SHOWN):
            yield part["index"], kind, size, report["typical"].get(f"{part['index']}:{kind}", [])[:PER_KIND]


def _picture_pair(picture: Image.Image, labels: Tensor, background: int) -> str:
    """The picture and, to its right, the same with its parts `(h, w)` in colour."""
    pair = Image.new("RGB", (2 * picture.width, picture.height))
    pair.paste(picture, (0, 0))
    pair.paste(color_parts(picture, labels, background), (picture.width, 0))
    return data_uri(pair, 82)


def _smooth_mask(mask: Tensor, size: tuple[int, int]) -> np.ndarray:
    """A patch mask `(h, w)` as nearness 0..255 `(S, S)` without staircase edges."""
    patches = Image.fromarray(mask.numpy().astype(np.uint8) * 255)
    return np.asarray(patches.resize(size, Image.Resampling.BICUBIC))


def _foreground_first(codebook: PartCodebook) -> list[int]:
    others = [part for part in range(codebook.num_parts) if part != codebook.background]
    return [*others, codebook.background]


def _summary(content: PageContent) -> str:
    report = content.report
    foreground = [part for part in report["parts"] if part["index"] != content.codebook.background]
    lead = (
        f"{report['images']} pictures segmented without labels: {len(foreground)} parts of the objects they show, "
        f"and the kinds of each part. Features: {source_words(report['source'])}."
    )
    figures = [
        (report["images"], "pictures"),
        (len(foreground), "parts"),
        (sum(len(part["kinds"]) for part in foreground), "kinds in all"),
        (report["skipped"], "files skipped"),
    ]
    return paragraph(lead, "lead") + tiles(figures) + _times(report)


def source_words(spec: SourceSpec) -> str:
    """A feature source in plain words."""
    model = spec.get("model") or spec.get("backbone")
    return {
        "imagenet": "a network trained on ImageNet (EfficientNet-Lite0)",
        "dinov2": f"a vision transformer ({model or 'DINOv2'})",
        "diffusion": f"activations of the base model ({model or 'of the base model'})",
        "descriptor": "colour and texture only",
    }.get(str(spec.get("name")), str(spec.get("name")))


def _times(report: DiscoveryReport) -> str:
    times = report.get("seconds_of")
    if times is None:
        return ""
    text = (
        f"{report.get('seconds')} s: {times['features']} s for reading pictures and computing features, {times['clustering']} s "
        "for clustering parts and kinds."
    )
    return f'<p class="note times">{escaped(text)}</p>'


def _warnings(report: DiscoveryReport) -> str:
    return "".join(paragraph(text, "warning") for text in report.get("warnings", []))


def _doubtful(content: PageContent, pictures: _Pictures) -> str:
    """The pictures with the least certain parts, with the reason."""
    names = content.codebook.part_names
    figures = [
        figure(
            pictures.overlays[doubt["row"]],
            doubt_text(doubt["part"], doubt["what"], names),
            content.names[doubt["row"]],
        )
        for doubt in content.report.get("doubts", [])
        if doubt["row"] in pictures.overlays
    ]
    if not figures:
        return ""
    hint = "The pictures whose parts differ most from those of the others: check these first."
    return section("Where discovery is least sure", paragraph(hint, "note"), _color_key(content), gallery(figures, 300))


def _color_key(content: PageContent) -> str:
    names, background = content.codebook.part_names, content.codebook.background
    return color_key([(name, part_color(part)) for part, name in enumerate(names) if part != background])


def _examples(content: PageContent, pictures: _Pictures) -> str:
    doubtful = {doubt["row"] for doubt in content.report.get("doubts", [])}
    shown = [row for row in pictures.overlays if row in content.report["examples"] and row not in doubtful]
    figures = [figure(pictures.overlays[row], content.names[row]) for row in shown]
    hint = (
        "Names are suggestions based on part positions; `bestiary parts rename | merge | drop` edits parts and kinds."
    )
    key = _color_key(content)
    return section("Where the parts are", key, gallery(figures, tile=300), paragraph(hint, "note"))


def _part_section(content: PageContent, part: int, pictures: _Pictures) -> str:
    codebook, entry = content.codebook, content.report["parts"][part]
    name, shown = codebook.part_names[part], [kind for kind in _shown_kinds(content.report) if kind[0] == part]
    largest = max((size for _, _, size, _ in shown), default=1)
    cards = [_kind_card(codebook, kind, largest, pictures) for kind in shown]
    # small kinds are numerous: they are only counted
    rest = len(entry["kinds"]) - len(shown)
    kinds = gallery(cards, tile=240) + (paragraph(f"and {rest} smaller kinds") if rest > 0 else "")
    share = entry["images"] / content.report["images"]
    facts = f"{len(entry['kinds'])} kinds, in {share:.0%} of the pictures, {entry['area']:.0%} of the picture there"
    facts += _confidence(content.report, part)
    if part == codebook.background:
        return f"<h2>{escaped(name)}</h2><p>{facts}</p>" + details("show its kinds", kinds)
    red, green, blue = part_color(part)
    swatch = f'<span class="swatch" style="background: rgb({red}, {green}, {blue})"></span>'
    prompt = f" In prompts: {code(f'<{name}:{shown[0][1]}>')}" if shown else ""
    return f"<h2>{swatch}{escaped(name)}</h2><p>{facts}.{prompt}</p>{kinds}"


def _confidence(report: DiscoveryReport, part: int) -> str:
    known = report.get("confidence") or []
    value = known[part] if part < len(known) else None
    if value is None:
        return ""
    return f"; {confidence_word(value)} ({value:.0%} confidence)"


def _kind_card(
    codebook: PartCodebook, shown: tuple[int, int, int, list[int]], largest: int, pictures: _Pictures
) -> str:
    part, kind, size, rows = shown
    name = codebook.kind_names[part].get(kind, "")
    found = [pictures.thumbnails[part, kind, row] for row in rows if (part, kind, row) in pictures.thumbnails]
    strip = "".join(image(uri, f"{codebook.part_names[part]} {kind}") for uri in found)
    label = f"<b>{kind}{' ' + escaped(name) if name else ''}</b><span>{size} picture{'' if size == 1 else 's'}</span>"
    bar = f'<div class="bar" style="width: {100 * size / largest:.0f}%"></div>'
    return f'<figure class="kind"><div class="strip">{strip}</div>{bar}<figcaption>{label}</figcaption></figure>'


def _size_table(content: PageContent) -> str:
    """Table of frequency, area and kinds of every part."""
    rows = []
    for part in _foreground_first(content.codebook):
        entry = content.report["parts"][part]
        sizes = sorted(entry["kinds"].values())
        presence = f"{entry['images'] / content.report['images']:.1%}"
        # the median, because one huge kind would dominate the mean
        median = sizes[len(sizes) // 2] if sizes else 0
        known = content.report.get("confidence") or []
        sure = f"{known[part]:.0%}" if part < len(known) and known[part] is not None else None
        rows.append((part, entry["name"], presence, f"{entry['area']:.1%}", sure, len(sizes), median))
    header = ("index", "part", "in pictures", "area where present", "confidence")
    return table((*header, "kinds", "pictures per kind, median"), rows)


def _skipped_section(content: PageContent) -> str:
    if not content.skipped:
        return section("Skipped files", paragraph("None: every picture file could be read."), _other_files(content))
    more = len(content.skipped) - _SKIPPED_SHOWN
    note = paragraph(f"and {more} more in skipped.csv") if more > 0 else ""
    return section(
        "Skipped files", table(("file", "reason"), content.skipped[:_SKIPPED_SHOWN]) + note, _other_files(content)
    )


def _other_files(content: PageContent) -> str:
    """Files without a picture suffix, counted by suffix."""
    others = content.report.get("other_files") or {}
    listed = ", ".join(f"{count} x {suffix}" for suffix, count in others.items())
    return paragraph(f"Other files in the folder, which are not pictures: {listed}.") if listed else ""


def _provenance(report: DiscoveryReport) -> str:
    source = ", ".join(f"{name} {value}" for name, value in report["source"].items() if name != "name")
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items())
    return f"Features: {report['source'].get('name')} ({source}). Settings: {settings}."
