"""A real PostgreSQL enforces the length of every column, which SQLite does not."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core.errors import SettingsError
from dreambooth_core.registry import aliases, runs, versions
from dreambooth_core.registry.aliases import PARITY, PARITY_PASSED, Decision
from dreambooth_core.registry.tracking import Tracking, resolve_tracking
from dreambooth_core.workspace import Workspace
from tests.postgres import postgres
from tests.unit.registry import examples
from tests.unit.registry.examples import MODEL

pytestmark = [
    pytest.mark.service,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("initdb") is None, reason="PostgreSQL is not installed"),
    pytest.mark.skipif(
        importlib.util.find_spec("psycopg2") is None, reason="needs the extra `postgres`"
    ),
]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres() as address:
        yield address


@pytest.fixture
def store(database: str, tmp_path: Path) -> Tracking:
    return resolve_tracking(Workspace(tmp_path), uri=database)


def test_long_texts_and_many_promotions_fit_their_columns(store, tiny_sd, tmp_path) -> None:
    run = runs.find_or_create_run(store, experiment=MODEL, fingerprint="a" * 64, name="x")
    runs.log_params(store, run, {"long": "p" * 9000})
    runs.log_tags(store, run, {"long": "t" * 9000})
    for number in (1, 2, 3):
        candidate = examples.candidate(tiny_sd, fingerprint=str(number) * 64)
        long = dataclasses.replace(candidate, card="c" * 9000)
        versions.register_version(store, run, long, scratch=tmp_path / "scratch")
        passed = {PARITY: PARITY_PASSED}
        aliases.set_tags(store, name=MODEL, version=number, tags=passed)
    why = Decision(who="ada", when="2026-11-23", why="DINO " * 2000)
    for number in range(30):
        now = versions.aliases_of(store, name=MODEL).get("champion")
        version = 1 + number % 3
        aliases.promote(store, name=MODEL, version=version, decision=why, expected=now)
    assert aliases.rollback(store, name=MODEL, decision=why, expected=3).version.version == 2


def test_a_path_too_long_for_the_columns_is_refused(database, tmp_path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    store = resolve_tracking(Workspace(deep), uri=database)
    with pytest.raises(SettingsError, match="too long for a store in a database"):
        runs.find_or_create_run(store, experiment="deep", fingerprint="b" * 64, name="x")
