"""The study: the order of its trials, kills, pruning, several workers. Nothing is trained."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState

from dreambooth_core.errors import SettingsError, StageError, Stopped
from dreambooth_core.registry.store_uri import sqlite_uri
from dreambooth_core.search import study as studies
from dreambooth_core.search.space import Choices, Range
from dreambooth_core.search.study import Attempt, Study
from dreambooth_core.waiting import wait_until
from tests.paths import ROOT
from tests.postgres import postgres

RATE, ENCODER = "train.learning_rate", "train.train_text_encoder"
SPACE = {RATE: Range(1e-5, 1e-3), ENCODER: Choices((False, True))}

KILLED = """
import os, signal, sys
from pathlib import Path
from optuna.trial import TrialState
from tests.unit.search.test_study import open_study
study = open_study(sys.argv[1], Path(sys.argv[2]))._study
trial = study.ask()
if sys.argv[3] == "before it was repeated":
    study.tell(trial, state=TrialState.FAIL)
os.kill(os.getpid(), signal.SIGKILL)
"""

WORKER = """
import sys, time
from pathlib import Path
from dreambooth_core.search import study as studies
from tests.unit.search.test_study import open_study
studies.HEARTBEAT_S, studies.GRACE_S = 1, 3
found = open_study(sys.argv[1], Path(sys.argv[2]))
def work(attempt):
    attempt.note(changes=dict(attempt.changes))
    time.sleep(float(sys.argv[4]))
    return 0.5
while found.has_next(int(sys.argv[3])):
    print(found.run_next(work, seed=1).number, flush=True)
"""


def open_study(uri: str, folder: Path, unchanged: float = 1e-4, **more) -> Study:
    return Study.open(
        uri,
        "s",
        space=SPACE,
        unchanged={RATE: unchanged, ENCODER: False},
        pruner=more.get("pruner", "median"),
        lock=folder / "lock",
    )


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return sqlite_uri(tmp_path / "study.db")


def killed(uri: str, folder: Path, moment: str) -> None:
    command = [sys.executable, "-c", KILLED, uri, str(folder), moment]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL


def worker(uri: str, folder: Path, *, total: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, uri, str(folder), str(total), str(seconds)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT)


def peak(attempt: Attempt) -> float:
    """An objective with its maximum at a learning rate of 1e-4."""
    attempt.note(changes=dict(attempt.changes))
    return -abs(attempt.changes.get(RATE, 1e-4) - 1e-4)


def test_first_trial_has_the_unchanged_settings(uri: str, tmp_path: Path) -> None:
    study = open_study(uri, tmp_path)
    first = study.run_next(peak, seed=1)
    assert (first.is_unchanged, first.notes["changes"]) == (True, {})
    second = study.run_next(peak, seed=1)
    assert not second.is_unchanged
    assert set(second.notes["changes"]) == set(SPACE)


def test_unchanged_settings_outside_the_space_are_the_first_trial_too(uri, tmp_path) -> None:
    study = open_study(uri, tmp_path, unchanged=0.5)
    notes = [study.run_next(peak, seed=1).notes["changes"] for _ in range(8)]
    assert notes[0] == {}
    assert all(1e-5 <= found[RATE] <= 1e-3 for found in notes[1:])


def test_resumed_study_proposes_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    def proposals(name: str, *, interrupt: bool) -> list[object]:
        uri = sqlite_uri(tmp_path / name)
        study = open_study(uri, tmp_path)
        for number in range(8):
            if interrupt and number == 3:
                with pytest.raises(Stopped):
                    study.run_next(stopped, seed=1)
            if interrupt and number == 4:  # lost before it had settings
                with studies._without_warnings():
                    study._study.tell(lost := study._study.ask(), state=TrialState.FAIL)
                    study._repeat(lost.number)
            if interrupt:
                study = open_study(uri, tmp_path)
            study.run_next(peak, seed=1)
        return [trial.notes["changes"] for trial in study.trials()]

    def stopped(_attempt: Attempt) -> float:
        raise Stopped("by the test")

    plain = proposals("plain.db", interrupt=False)
    assert len({json.dumps(changes) for changes in plain}) == 8
    assert proposals("interrupted.db", interrupt=True) == plain


def test_failed_trial_counts_and_keeps_its_error(uri: str, tmp_path: Path) -> None:
    def diverge(attempt: Attempt) -> float:
        if attempt.is_unchanged:
            return 0.5
        raise StageError("the loss is not finite")

    study = open_study(uri, tmp_path)
    states = []
    while study.has_next(3):
        states.append(study.run_next(diverge, seed=1).state)
    assert states == ["complete", "failed", "failed"]
    assert study.trials()[2].notes["error"] == "the loss is not finite"


def test_failing_unchanged_settings_end_the_search(uri: str, tmp_path: Path) -> None:
    def fail(_attempt: Attempt) -> float:
        raise StageError("no room")

    study = open_study(uri, tmp_path)
    with pytest.raises(StageError, match="no room"):
        study.run_next(fail, seed=1)
    assert study.run_next(peak, seed=1).is_unchanged


def test_trial_below_the_median_is_pruned_at_its_checkpoint(uri: str, tmp_path: Path) -> None:
    study = open_study(uri, tmp_path)
    for _ in range(5):
        study.run_next(lambda attempt: attempt.report(0.8, step=60) or 0.8, seed=1)
    seen: list[int] = []

    def lag(attempt: Attempt) -> float:
        for step in (60, 120):
            seen.append(step)
            attempt.report(0.3, step=step)
        return 0.3

    assert study.run_next(lag, seed=1).state == "pruned"
    assert seen == [60]
    without = open_study(uri, tmp_path, pruner="none")
    assert without.run_next(lag, seed=1).state == "complete"


@pytest.mark.timeout(240)
def test_killed_trial_is_repeated_and_finished_ones_are_not(uri: str, tmp_path: Path) -> None:
    first = worker(uri, tmp_path, total=3, seconds=0.0)
    assert first.communicate(timeout=200)[0].split() == ["0", "1", "2"]
    killed = worker(uri, tmp_path, total=4, seconds=100)
    study = open_study(uri, tmp_path)
    assert wait_until(
        lambda: any("changes" in t.notes for t in study.trials() if t.state == "running"),
        timeout_s=120,
        every_s=0.2,
    )
    interrupted = next(t for t in study.trials() if t.state == "running")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    again = worker(uri, tmp_path, total=4, seconds=0.0)
    assert again.communicate(timeout=200)[0].split() == ["4"]
    trials = study.trials()
    assert [trial.number for trial in trials] == [0, 1, 2, 4]
    assert trials[-1].notes["changes"] == interrupted.notes["changes"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("moment", ["before its first heartbeat", "before it was repeated"])
def test_worker_killed_between_two_writes_loses_no_trial(uri, tmp_path, moment: str) -> None:
    killed(uri, tmp_path, moment)
    assert open_study(uri, tmp_path).trials()[0].state == "running"
    again = worker(uri, tmp_path, total=3, seconds=0.0)
    assert len(again.communicate(timeout=200)[0].split()) == 3
    trials = open_study(uri, tmp_path).trials()
    assert [trial.state for trial in trials] == ["complete"] * 3
    assert 0 not in [trial.number for trial in trials]
    assert sum(trial.is_unchanged for trial in trials) == 1


def test_trial_that_ends_on_the_machine_is_repeated(uri: str, tmp_path: Path) -> None:
    def full_disk(_attempt: Attempt) -> float:
        raise OSError("no space left")

    study = open_study(uri, tmp_path)
    with pytest.raises(OSError, match="no space"):
        study.run_next(full_disk, seed=1)
    assert study.run_next(peak, seed=1).is_unchanged
    assert [trial.number for trial in study.trials()] == [1]


@pytest.mark.timeout(300)
def test_two_processes_share_one_study(uri: str, tmp_path: Path) -> None:
    _share(uri, tmp_path)


def _share(uri: str, folder: Path) -> None:
    both = [worker(uri, folder, total=8, seconds=1.0) for _ in range(2)]
    numbers = [sorted(map(int, one.communicate(timeout=250)[0].split())) for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert not set(numbers[0]) & set(numbers[1])
    trials = open_study(uri, folder).trials()
    assert sorted([*numbers[0], *numbers[1]]) == [trial.number for trial in trials]
    assert 8 <= len(trials) <= 9  # both may ask for the last one
    assert sum(trial.is_unchanged for trial in trials) == 1
    assert len({json.dumps(trial.notes["changes"]) for trial in trials}) == len(trials)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres() as address:
        yield address


@pytest.mark.service
@pytest.mark.timeout(400)
@pytest.mark.skipif(shutil.which("initdb") is None, reason="PostgreSQL is not installed")
def test_two_processes_share_one_study_in_postgresql(database: str, tmp_path: Path) -> None:
    pytest.importorskip("psycopg2")
    _share(database, tmp_path)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("a database", "not the address of a database"),
        ("sqlite:////nowhere/at/all/study.db", "cannot be opened"),
        ("oracle://host/name", "needs a driver that is not installed"),
        ("postgresql://ada:pl4nted@127.0.0.1:1/x", r"ada:\*\*\*@.*(cannot be opened|needs a)"),
    ],
)
def test_unusable_storage_is_a_sentence(address: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=text) as caught:
        open_study(address, tmp_path)
    assert "pl4nted" not in str(caught.value)


def test_study_module_has_the_grace_that_the_documentation_names() -> None:
    page = (ROOT / "docs" / "how-to-sweep.md").read_text()
    assert f"silent for {studies.GRACE_S} seconds" in page
