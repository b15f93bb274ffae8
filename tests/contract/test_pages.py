"""Every path, function and link that a page names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.paths import ROOT

_PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
_FILE = re.compile(
    r"(?:dreambooth_core|cli|flows|tasks|tests|tools|benchmarks|infra|presets)/"
    r"[\w/.-]+\.(?:py|yaml|json|txt)\b"
)
_FUNCTION = re.compile(r"`([\w/.-]+\.py):(\w+)`")
_FOLDER = re.compile(r"`((?:dreambooth_core|cli|flows|tasks|tests|tools|benchmarks)/[\w/]*)`")
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)")

each_page = pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_every_source_file_named_by_a_page_exists(page: Path) -> None:
    text = page.read_text()
    named = {*_FILE.findall(text), *_FOLDER.findall(text)}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@each_page
def test_every_function_named_by_a_page_exists(page: Path) -> None:
    named = sorted(set(_FUNCTION.findall(page.read_text())))
    assert [f"{file}:{name}" for file, name in named if not _defines(ROOT / file, name)] == []


@each_page
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    links = sorted(set(_LINK.findall(page.read_text())))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_no_list_of_links_names_a_page_twice() -> None:
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.count(" · ") > 1:
            links = re.findall(r"\]\(([^)]+)\)", line)
            assert sorted(links) == sorted(set(links))


def _defines(file: Path, name: str) -> bool:
    return bool(re.search(rf"^\s*(?:def|class) {name}\b", file.read_text(), re.MULTILINE))
