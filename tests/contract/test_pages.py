"""What the pages point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.paths import ROOT

_PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FILE = re.compile(
    r"(?:dreambooth_core|flows|tasks|tests|benchmarks|infra)/[\w/.-]+\.(?:py|yaml)\b"
)


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_source_file_that_a_page_names_exists(page: Path) -> None:
    named = set(_FILE.findall(page.read_text()))
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_no_list_of_links_names_a_page_twice() -> None:
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.count(" · ") > 1:
            links = re.findall(r"\]\(([^)]+)\)", line)
            assert sorted(links) == sorted(set(links))
