"""Every path, function, setting, command and link that a page names exists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from ruamel.yaml import YAML

from cli.main import app
from dreambooth_core.config import Section, SubjectView
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
_SETTING = re.compile(r"`(\w+(?:\.\w+)+)(?:: [^`]*)?`")
_COMMAND = re.compile(r"(?:^|`|bin/|&& )dreambooth ([a-z]+(?:-[a-z]+)*(?: [a-z]+)?)", re.MULTILINE)
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


@each_page
def test_every_setting_named_by_a_page_exists(page: Path) -> None:
    dotted = [name.split(".") for name in sorted(set(_SETTING.findall(page.read_text())))]
    settings = [keys for keys in dotted if keys[0] in SubjectView.model_fields]
    files = {"py", "json", "yaml", "safetensors"}
    wrong = [keys for keys in settings if keys[-1] not in files and not _is_setting(keys)]
    assert wrong == []


@each_page
def test_every_command_named_by_a_page_exists(page: Path) -> None:
    known = vars(typer.main.get_command(app))["commands"]
    named = sorted(set(_COMMAND.findall(page.read_text())))
    assert [words for words in named if not _is_command(known, words.split())] == []


def test_no_list_of_links_names_a_page_twice() -> None:
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.count(" · ") > 1:
            links = re.findall(r"\]\(([^)]+)\)", line)
            assert sorted(links) == sorted(set(links))


def _defines(file: Path, name: str) -> bool:
    return bool(re.search(rf"^\s*(?:def|class) {name}\b", file.read_text(), re.MULTILINE))


def _is_setting(keys: list[str]) -> bool:
    fields = SubjectView.model_fields
    for key in keys:
        if key not in fields:
            return False
        types = [fields[key].annotation, *get_args(fields[key].annotation)]
        sections = [each for each in types if isinstance(each, type) and issubclass(each, Section)]
        fields = sections[0].model_fields if sections else {}
    return True


def _is_command(commands: Mapping[str, Any], words: list[str]) -> bool:
    """`generate` and `subject add` are commands; the second word of others is an argument."""
    if words[0] not in commands:
        return False
    below = vars(commands[words[0]]).get("commands")
    return below is None or words[-1] in below


def test_every_decision_is_on_the_list_of_decisions() -> None:
    folder = ROOT / "docs" / "adr"
    listed = _LINK.findall((folder / "README.md").read_text())
    assert listed == [path.name for path in sorted(folder.glob("0*.md"))]


def test_site_lists_every_page_once() -> None:
    site = YAML(typ="safe").load(ROOT / "infra" / "site" / "mkdocs.yml")
    pages = [page for entry in site["nav"] for page in _paths_of(entry)]
    written = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "docs/adr/README.md"]
    assert sorted(pages) == sorted(str(path.relative_to(ROOT)) for path in written)


def _paths_of(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    if isinstance(entry, dict):
        entry = list(entry.values())
    return [path for part in entry for path in _paths_of(part)]
