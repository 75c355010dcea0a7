"""Pictures to cut-outs with straight alpha, one PNG each, with a page to look at."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import replacing, write_text
from ...scenes.set_files import sha256_of
from ...scenes.subject_sources import subject_names
from ..learning.pictures.companion_files import masks_among
from ..learning.pictures.cutout_files import with_masks
from ..learning.pictures.image_files import UnreadableImage, scan_images
from ..pages.pages import escaped, gallery, image, section, table, tiles, write_page
from .cutout_cache import FOLDER, CutoutCache
from .read_subjects import CutoutRules, SubjectReader
from .scene_settings import SubjectSettings

LIST = "cutouts.json"
"""What a folder of cut-outs was made of."""


@dataclass(frozen=True)
class SegmentedFolder:
    """What became of pictures."""

    written: tuple[str, ...]
    """Files of the cut-outs within their folder."""
    kept: tuple[str, ...]
    """Files that were changed by hand since they were written, and stay."""
    skipped: tuple[tuple[str, str], ...]
    """Picture and reason."""


def segment_pictures(
    source: Path,
    folder: Path,
    rules: CutoutRules,
    masks: Path | None = None,
    *,
    on_picture: Callable[[int, int], None] = lambda done, total: None,
) -> SegmentedFolder:
    """Cut the subject out of every picture.

    Each picture has its own file: `a.png` and `a.jpg` become `a.png` and `a 2.png`. A picture that is unchanged is not cut again.

    Args:
        source: a picture or a folder of pictures.
        folder: of the cut-outs.
        rules: how they are cut out.
        masks: folder of masks; None looks beside the pictures.
        on_picture: called with (done, total).

    Raises:
        BestiaryError: no picture at all or none that can be used; as `SubjectReader.cut`.
    """
    home, names, unreadable = _found(source)
    reader = SubjectReader(rules, CutoutCache(folder / FOLDER))
    before = _listed(folder)
    called = subject_names([name for name, _ in with_masks(names, home, masks)])
    written, kept, skipped, entries, keys = [], [], list(unreadable), [], set()
    for number, (name, mask) in enumerate(with_masks(names, home, masks), start=1):
        path = home / name
        try:
            cut = reader.cut(path, SubjectSettings(name=called[name], folder=home), mask)
        except UnreadableImage as fault:
            skipped.append((str(path), fault.reason))
        else:
            keys.add(cut.record.key)
            if cut.record.faults:
                skipped.append((str(path), "; ".join(cut.record.faults)))
            else:
                file = f"{called[name]}.png"
                is_ours = _place(cut.cache.path(cut.record.key), folder / file, before.get(file))
                (written if is_ours else kept).append(file)
                entries.append(
                    {
                        "file": file,
                        "sha256": cut.record.png if is_ours else before.get(file, ""),
                        "source": path.as_posix(),
                        "source_sha256": cut.source.sha256,
                        "way": cut.record.way,
                    }
                )
        on_picture(number, len(names))
    if not entries:
        raise BestiaryError(
            f"no picture of {source} gave a cut-out: "
            + "; ".join(f"{Path(file).name}: {why}" for file, why in skipped[:3])
        )
    reader.cache.remove_all_but(keys)
    content = {"cutouts": entries, "skipped": [{"file": file, "reason": reason} for file, reason in skipped]}
    write_text(folder / LIST, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    _write_page(folder, entries, skipped)
    return SegmentedFolder(tuple(written), tuple(kept), tuple(skipped))


def _found(source: Path) -> tuple[Path, list[str], list[tuple[str, str]]]:
    """Folder, pictures within it, and files that cannot be read with the reason."""
    if source.is_file():
        return source.parent, [source.name], []
    scan = scan_images(source)
    marked = masks_among(scan.names)
    names = [name for name in scan.names if name not in marked]
    if not names:
        raise BestiaryError(f"{source} holds no picture: give a picture or a folder of pictures")
    return source, names, [(str(source / name), reason) for name, reason in scan.unreadable]


def _listed(folder: Path) -> dict[str, str]:
    """sha256 of the cut-outs that an earlier run wrote, by file."""
    try:
        entries = json.loads((folder / LIST).read_text("utf-8"))["cutouts"]
        return {str(entry["file"]): str(entry["sha256"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _place(cached: Path, target: Path, before: str | None) -> bool:
    """Copy a cut-out to its place; False where a file lies there that somebody made or changed."""
    if target.exists():
        present = sha256_of(target.read_bytes())
        if present == sha256_of(cached.read_bytes()):
            return True
        if present != before:
            return False
    with replacing(target) as temporary:
        shutil.copyfile(cached, temporary)
    return True


def _write_page(folder: Path, entries: list[dict[str, str]], skipped: list[tuple[str, str]]) -> None:
    style = "<style>.cut { background: repeating-conic-gradient(var(--line) 0 25%, var(--card) 0 50%) 0 0 / 20px 20px; }</style>"
    figures = [
        f'<figure><div class="cut">{image(entry["file"], entry["file"])}</div>'
        f"<figcaption><b>{escaped(entry['file'])}</b><br>{escaped(entry['way'])}, {escaped(Path(entry['source']).name)}"
        "</figcaption></figure>"
        for entry in entries
    ]
    body = style + tiles([(len(entries), "cut-outs"), (len(skipped), "skipped")]) + gallery(figures, tile=240)
    if skipped:
        body += section("Skipped pictures", table(["file", "reason"], skipped))
    write_page(folder / "index.html", folder.resolve().name, body)
