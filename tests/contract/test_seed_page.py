"""docs/seed.md: every flag of every door and every block, with tests that exist."""

import fnmatch
import re
from itertools import chain

import pytest

from dreambooth_core.doors.flags import (
    DREAMBOOTH,
    DREAMBOOTH_FLAX,
    DREAMBOOTH_LORA,
    DREAMBOOTH_LORA_SDXL,
)
from tests.contract.seed_blocks import BLOCKS
from tests.paths import ROOT

DOORS = (DREAMBOOTH, DREAMBOOTH_LORA, DREAMBOOTH_LORA_SDXL, DREAMBOOTH_FLAX)
PAGE = (ROOT / "docs/seed.md").read_text()
TESTS = sorted(
    chain.from_iterable(
        re.findall(r"def (test_\w+)", path.read_text())
        for path in (ROOT / "tests").rglob("test_*.py")
    )
)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its two first lines."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("heading", ["Blocks", "Flags"])
def test_every_row_names_tests_and_all_of_them_exist(heading):
    assert rows(heading)
    for first, *_, proofs in rows(heading):
        names = [name for name in quoted(proofs) if name.startswith("test_")]
        assert names, first
        for name in names:
            assert fnmatch.filter(TESTS, name.replace("...", "*")), name


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.script)
def test_every_flag_of_every_door_has_a_row(door):
    patterns = list(chain.from_iterable(quoted(row[0]) for row in rows("Flags")))
    missing = [
        name
        for name in door.flags.model_fields
        if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    ]
    assert missing == []


def test_every_block_of_the_seed_document_has_a_row():
    commands = re.findall(r"## ([^\n]+)\n\n```bash\n[^`]*train_dreambooth", BLOCKS)
    assert len(commands) == 9
    assert len(rows("Blocks")) == 9
