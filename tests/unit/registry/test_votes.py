"""Votes are tags of the challenger: none is lost, and both directions of a pair count."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core.errors import SettingsError, UnknownModelError
from dreambooth_core.evaluation.preference import Preference
from dreambooth_core.pipeline import voting
from dreambooth_core.registry import versions, votes
from dreambooth_core.registry.tracking import Tracking
from dreambooth_core.registry.votes import Vote, Winner
from tests.paths import ROOT
from tests.unit.registry import examples
from tests.unit.registry.examples import MODEL

PROMPT = "a photo of sks mug <b>on the beach</b>, 茶碗"


@pytest.fixture
def two(tracking: Tracking, run, tiny_sd: Path, tmp_path: Path) -> Tracking:
    for number in (1, 2):
        candidate = examples.candidate(tiny_sd, fingerprint=str(number) * 64)
        versions.register_version(tracking, run, candidate, scratch=tmp_path / "scratch")
    return tracking


def _vote(winner: Winner, *, challenger: int = 2, champion: int = 1, prompt: str = PROMPT) -> Vote:
    return Vote(
        challenger=challenger, champion=champion, prompt=prompt, seed=7, winner=winner, who="ada",
        when="2026-11-29T10:00:00+00:00",
    )  # fmt: skip


def _count(tracking: Tracking, challenger: int = 2, champion: int = 1) -> Preference:
    infos = versions.list_versions(tracking, name=MODEL)
    return voting.preference_among(infos, voting.Pair(challenger, champion))


def test_vote_is_read_back_as_it_was_cast(two: Tracking) -> None:
    votes.cast(two, name=MODEL, vote=_vote("tie"))
    info = versions.get_version(two, name=MODEL, version=2)
    assert votes.votes_of(info) == [_vote("tie")]
    assert not [key for key in votes.without_votes(info.tags) if key.startswith("vote")]


def test_votes_in_exchanged_roles_count_for_the_same_version(two: Tracking) -> None:
    for winner in ("challenger", "challenger", "champion", "tie"):
        votes.cast(two, name=MODEL, vote=_vote(winner))
    votes.cast(two, name=MODEL, vote=_vote("champion", challenger=1, champion=2))
    assert _count(two) == Preference(wins=3, losses=1, ties=1)
    assert _count(two, challenger=1, champion=2) == Preference(wins=1, losses=3, ties=1)
    infos = versions.list_versions(two, name=MODEL)
    assert [votes.opponents_of(info, infos) for info in infos] == [[2], [1]]


def test_wrong_votes_are_refused_and_leave_no_trace(two: Tracking) -> None:
    with pytest.raises(SettingsError, match="version 2 against itself"):
        votes.cast(two, name=MODEL, vote=_vote("tie", champion=2))
    with pytest.raises(UnknownModelError, match=r"no version 9.*allowed: 1, 2"):
        votes.cast(two, name=MODEL, vote=_vote("tie", champion=9))
    with pytest.raises(
        SettingsError, match=r"too long for a vote.*found: 6000.*allowed: about 4\d"
    ):
        votes.cast(two, name=MODEL, vote=_vote("tie", prompt="x" * 6000))
    assert _count(two) == Preference()


_MANY = """
import sys
from tests.unit.registry.test_votes import _vote, MODEL
from dreambooth_core.registry import votes
from dreambooth_core.registry.tracking import resolve_tracking
from dreambooth_core.workspace import Workspace
from pathlib import Path
for _ in range(10):
    votes.cast(resolve_tracking(Workspace(Path(sys.argv[1]))), name=MODEL, vote=_vote(sys.argv[2]))
"""


@pytest.mark.slow
def test_two_processes_voting_at_once_lose_no_vote(two: Tracking, tmp_path: Path) -> None:
    voters = [
        subprocess.Popen([sys.executable, "-c", _MANY, str(tmp_path), winner], cwd=ROOT)
        for winner in ("challenger", "champion", "tie")
    ]
    assert [voter.wait(timeout=200) for voter in voters] == [0, 0, 0]
    assert _count(two) == Preference(wins=10, losses=10, ties=10)
