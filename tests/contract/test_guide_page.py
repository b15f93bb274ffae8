"""docs/guide.md: every flag of every script and every block, with tests that exist."""

import fnmatch
import re
from itertools import chain

import pytest

from dreambooth_core.scripts.flags import (
    DREAMBOOTH,
    DREAMBOOTH_FLAX,
    DREAMBOOTH_LORA,
    DREAMBOOTH_LORA_SDXL,
)
from tests.contract.guide_blocks import BLOCKS
from tests.paths import ROOT

SCRIPTS = (DREAMBOOTH, DREAMBOOTH_LORA, DREAMBOOTH_LORA_SDXL, DREAMBOOTH_FLAX)
PAGE = (ROOT / "docs/guide.md").read_text()
TESTS = sorted(
    chain.from_iterable(
        re.findall(r"def (test_\w+)", path.read_text())
        for path in (ROOT / "tests").rglob("test_*.py")
    )
)


def rows(heading: str, below: str | None = None) -> list[list[str]]:
    """The cells of the table under a heading, or one below it, without its two first lines."""
    section, *parts = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0].split("\n### ")
    if below is not None:
        (section,) = (part for part in parts if part.startswith(f"{below}\n"))
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_test_named_on_the_page_exists():
    named = [name for name in quoted(PAGE) if re.fullmatch(r"test_\w+(\.\.\.)?", name)]
    assert [name for name in named if not fnmatch.filter(TESTS, name.replace("...", "*"))] == []


def test_page_lists_exactly_the_refused_flags():
    refused = {name for script in SCRIPTS for name in script.refused}
    told = [name for row in rows("Flags", "Refused with the reason") for name in quoted(row[0])]
    assert sorted(told) == sorted(refused)


@pytest.mark.parametrize("heading", ["Blocks", "Flags"])
def test_every_row_names_existing_tests(heading):
    assert rows(heading)
    for first, *_, proofs in rows(heading):
        names = [name for name in quoted(proofs) if name.startswith("test_")]
        assert names, first
        for name in names:
            assert fnmatch.filter(TESTS, name.replace("...", "*")), name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_flag_of_every_script_has_a_row(script):
    patterns = list(chain.from_iterable(quoted(row[0]) for row in rows("Flags")))
    missing = [
        name
        for name in script.flags.model_fields
        if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    ]
    assert missing == []


def test_every_block_of_the_guide_has_a_row():
    commands = re.findall(r"## ([^\n]+)\n\n```bash\n[^`]*train_dreambooth", BLOCKS)
    assert len(commands) == 9
    assert len(rows("Blocks")) == 9
