"""Help pages in other languages say what the English ones say: the same sections, tables, code and pictures."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))
LANGUAGES = sorted(folder.name for folder in (ROOT / "locales").iterdir() if folder.name != "en")


def skeleton(text):
    """What a translation keeps: levels of headings, rows of tables, list entries, code and pictures."""
    lines = text.splitlines()
    return {
        "headings": [len(line) - len(line.lstrip("#")) for line in lines if line.startswith("#")],
        "rows": sum(line.startswith("|") for line in lines),
        "entries": sum(line.startswith("- ") for line in lines),
        "code": sorted(re.findall(r"`[^`]+`", text)),
        "pictures": re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text),
    }


def test_there_are_pages_and_languages():
    assert len(PAGES) >= 34
    assert "de" in LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_is_translated_whole(page, language):
    translated = page.with_suffix("") / f"{language}.md"
    assert translated.exists(), f"no {translated.relative_to(ROOT)}"
    assert skeleton(translated.read_text(encoding="utf-8")) == skeleton(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_page_is_left_of_a_node_that_is_gone(language):
    translated = {path.parent.name for path in (ROOT / "web" / "docs").glob(f"*/{language}.md")}
    assert translated - {page.stem for page in PAGES} == set()
