from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from dreambooth_core.errors import RegistryError
from dreambooth_core.registry import aliases, versions
from dreambooth_core.registry.aliases import PARITY, PARITY_PASSED, Decision
from dreambooth_core.registry.tracking import Tracking
from tests.unit.registry import examples
from tests.unit.registry.examples import MODEL

BECAUSE = Decision(who="ada", when="2026-11-23T05:00:00+00:00", why="DINO 0.61 against 0.52")


@pytest.fixture
def three(tracking: Tracking, run, tiny_sd: Path, tmp_path: Path) -> Tracking:
    """A store with versions 1 to 3, parity passed; 4 has not passed it."""
    for number in range(1, 5):
        candidate = examples.candidate(tiny_sd, fingerprint=str(number) * 64)
        versions.register_version(tracking, run, candidate, scratch=tmp_path / "scratch")
        if number < 4:
            passed = {PARITY: PARITY_PASSED}
            aliases.set_tags(tracking, name=MODEL, version=number, tags=passed)
    return tracking


def promote(tracking: Tracking, version: int) -> int:
    info = aliases.promote(tracking, name=MODEL, version=version, decision=BECAUSE)
    return info.version.version


def rollback(tracking: Tracking) -> int:
    return aliases.rollback(tracking, name=MODEL, decision=BECAUSE).version.version


def champion(tracking: Tracking) -> int | None:
    info = aliases.champion(tracking, name=MODEL)
    return info and info.version.version


def test_a_new_model_has_neither_champion_nor_challenger(three) -> None:
    assert aliases.champion(three, name=MODEL) is None
    assert versions.aliases_of(three, name=MODEL) == {}


def test_version_without_export_parity_gets_no_alias(three) -> None:
    with pytest.raises(RegistryError, match="version 4 of dreambooth-mug has not passed"):
        aliases.set_challenger(three, name=MODEL, version=4)
    with pytest.raises(RegistryError, match="never checked"):
        promote(three, 4)
    assert versions.aliases_of(three, name=MODEL) == {}


def test_promoted_challenger_becomes_champion_and_loses_its_alias(three) -> None:
    aliases.set_challenger(three, name=MODEL, version=2)
    promote(three, 2)
    assert versions.aliases_of(three, name=MODEL) == {"champion": 2}
    tags = versions.get_version(three, name=MODEL, version=2).tags
    assert (tags["promoted.who"], tags["promoted.why"]) == ("ada", "DINO 0.61 against 0.52")
    assert tags["promoted.when"] == "2026-11-23T05:00:00+00:00"


def test_the_champion_is_never_its_own_challenger(three) -> None:
    promote(three, 1)
    aliases.set_challenger(three, name=MODEL, version=1)
    assert versions.aliases_of(three, name=MODEL) == {"champion": 1}


def test_rollback_walks_back_to_the_first_champion(three) -> None:
    for version in (1, 2, 1, 3):
        promote(three, version)
    assert [rollback(three) for _ in range(3)] == [1, 2, 1]
    with pytest.raises(RegistryError, match=r"no earlier champion.*champion: version 1"):
        rollback(three)
    assert champion(three) == 1


def test_rollback_says_on_both_versions_who_did_it_and_why(three) -> None:
    promote(three, 1)
    promote(three, 2)
    rollback(three)
    replaced = versions.get_version(three, name=MODEL, version=2).tags
    restored = versions.get_version(three, name=MODEL, version=1).tags
    assert replaced["rolled_back.who"] == restored["restored.who"] == "ada"


def test_promoting_the_champion_again_adds_nothing_to_roll_back_to(three) -> None:
    promote(three, 1)
    promote(three, 1)
    with pytest.raises(RegistryError, match=r"no earlier champion.*champion: version 1"):
        rollback(three)


@pytest.mark.parametrize("stopped_before", ["_write_history", "_point", "_drop_challenger"])
def test_a_promotion_killed_anywhere_is_completed_by_the_next_one(
    three, monkeypatch, stopped_before: str
) -> None:
    promote(three, 1)
    aliases.set_challenger(three, name=MODEL, version=2)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(aliases, stopped_before, killed)
        with pytest.raises(KeyboardInterrupt):
            promote(three, 2)
    promote(three, 2)
    assert versions.aliases_of(three, name=MODEL) == {"champion": 2}
    assert rollback(three) == 1


@pytest.mark.parametrize("stopped_before", ["_point", "_write_history"])
def test_a_rollback_killed_anywhere_keeps_the_history(
    three, monkeypatch, stopped_before: str
) -> None:
    for version in (1, 2, 3):
        promote(three, version)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(aliases, stopped_before, killed)
        with pytest.raises(KeyboardInterrupt):
            rollback(three)
    if champion(three) == 3:
        rollback(three)
    assert champion(three) == 2
    assert rollback(three) == 1


def test_champion_set_in_the_ui_can_be_rolled_back(three) -> None:
    promote(three, 1)
    MlflowClient(three.uri, three.uri).set_registered_model_alias(MODEL, "champion", "3")
    assert champion(three) == 3
    assert rollback(three) == 1
