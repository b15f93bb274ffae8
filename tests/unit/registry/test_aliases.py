from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dreambooth_core.errors import RegistryError
from dreambooth_core.registry import aliases, versions
from dreambooth_core.registry.aliases import PARITY, PARITY_PASSED, ChampionChanged, Decision
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
    now = versions.aliases_of(tracking, name=MODEL).get("champion")
    info = aliases.promote(tracking, name=MODEL, version=version, decision=BECAUSE, expected=now)
    return info.version.version


def rollback(tracking: Tracking) -> int:
    now = versions.aliases_of(tracking, name=MODEL).get("champion")
    info = aliases.rollback(tracking, name=MODEL, decision=BECAUSE, expected=now)
    return info.version.version


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
    foretold = [(aliases.earlier_champion(three, name=MODEL), rollback(three)) for _ in range(3)]
    assert foretold == [(1, 1), (2, 2), (1, 1)]
    assert aliases.earlier_champion(three, name=MODEL) is None
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


def test_a_decision_against_an_earlier_champion_changes_nothing(three) -> None:
    promote(three, 1)
    promote(three, 2)
    before = history(three)
    with pytest.raises(ChampionChanged, match=r"champion: version 2; .* against version 1"):
        aliases.promote(three, name=MODEL, version=3, decision=BECAUSE, expected=1)
    with pytest.raises(ChampionChanged, match="against none"):
        aliases.rollback(three, name=MODEL, decision=BECAUSE, expected=None)
    assert (champion(three), history(three)) == (2, before)
    tags = versions.get_version(three, name=MODEL, version=3).tags
    assert not any(key.startswith("promoted") for key in tags)


def test_many_promotions_with_long_reasons_fit_every_column(three) -> None:
    long = Decision(who="ada", when="2026-11-23", why="DINO " * 2000)
    for number in range(30):
        now = versions.aliases_of(three, name=MODEL).get("champion")
        version = 1 + number % 3
        aliases.promote(three, name=MODEL, version=version, decision=long, expected=now)
    model = MlflowClient(three.uri, three.uri).get_registered_model(MODEL)
    tags = [*model.tags.values()]
    for info in versions.list_versions(three, name=MODEL):
        tags += info.tags.values()
    assert max(map(len, tags)) <= versions.TAG_LIMIT
    assert rollback(three) == 2


def test_rollback_passes_over_deleted_versions(three) -> None:
    for version in (1, 2, 3):
        promote(three, version)
    MlflowClient(three.uri, three.uri).delete_model_version(MODEL, "2")
    assert rollback(three) == 1


def test_rollback_after_the_champion_was_deleted_restores_the_one_before(three) -> None:
    for version in (1, 2):
        promote(three, version)
    MlflowClient(three.uri, three.uri).delete_model_version(MODEL, "2")
    assert rollback(three) == 1


def test_history_of_an_older_store_is_read(three) -> None:
    promote(three, 2)
    old = [{"version": 1, "who": "ada", "when": "", "why": ""}, {"version": 2, "who": "ada"}]
    client = MlflowClient(three.uri, three.uri)
    client.set_registered_model_tag(MODEL, "dreambooth.champions", json.dumps(old))
    assert rollback(three) == 1


def history(tracking: Tracking) -> str:
    model = MlflowClient(tracking.uri, tracking.uri).get_registered_model(MODEL)
    return model.tags["dreambooth.champions"]
