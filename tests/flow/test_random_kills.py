"""Kills processes of whole runs at 50 random moments, ten in each of five histories.

A moment is a fraction of the time that a stage takes in an undisturbed run on the same machine, or
the end of the stage if that comes earlier. The seed of a history fixes stages, fractions and
victims, and whether the next run starts while processes of the killed one may still end. It cannot
fix the instruction at which a process dies.
A history that fails is in the message; `-k seed-N` repeats it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from dreambooth_core import config, files
from dreambooth_core.workspace import STAGES, Workspace
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(3600)]

SEEDS = range(5)
KILLS = 10
PHASES = ("start", *STAGES, "end")
"""A phase begins when the stage before it is done. The first ends with the first sign of work."""
VICTIMS = ("everything", "run", "server", "child", "children")
_SIGN_OF_WORK = re.compile(r"^(  )?validate ", re.MULTILINE)
_ENDS_S = 60.0


@dataclasses.dataclass(frozen=True)
class Kill:
    """A moment, and which processes are killed then."""

    phase: str
    fraction: float
    victim: str
    which: float
    """Which of several children."""
    waits: bool
    """Whether the next run waits until all processes of this one have ended."""


def kills_of(seed: int) -> list[Kill]:
    draw = random.Random(seed)
    phases = sorted(draw.choices(range(len(PHASES)), k=KILLS))
    return [
        Kill(PHASES[phase], draw.random(), draw.choice(VICTIMS), draw.random(), draw.random() < 0.5)
        for phase in phases
    ]


class Run:
    """A `dreambooth run` in work."""

    def __init__(self, workspace: Workspace, log: Path) -> None:
        self.log, self.began = log, time.monotonic()
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli", "run", SUBJECT],
                cwd=workspace.root,
                env=workspaces.environment(workspace.root),
                stdout=sink,
                stderr=sink,
            )

    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def has_reached(self, phase: str) -> bool:
        if phase == PHASES[0]:
            return True
        if phase == PHASES[1]:
            return _SIGN_OF_WORK.search(self.printed()) is not None
        before = PHASES[PHASES.index(phase) - 1]
        return re.search(rf"^{before} ", self.printed(), re.MULTILINE) is not None

    def reach(self, phase: str) -> bool:
        """Wait for a phase; False if the run ended before."""
        while self.process.poll() is None and not self.has_reached(phase):
            time.sleep(0.01)
        return self.process.poll() is None

    def is_at_work_in(self, phase: str, seconds: float) -> bool:
        """Wait for a moment in a phase that the run has reached; False if the run ended before."""
        deadline = time.monotonic() + seconds
        later = PHASES[PHASES.index(phase) + 1 :][:1]
        while self.process.poll() is None and time.monotonic() < deadline:
            if any(self.has_reached(each) for each in later):
                break
            time.sleep(0.01)
        return self.process.poll() is None

    def family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def end(self) -> int:
        """Wait for the run's own end, which is a sentence even if it failed."""
        code, printed = self.process.wait(900), self.printed()
        assert code in (0, 1), printed
        assert "Traceback" not in printed, printed
        return code


def victims_of(run: Run, kill: Kill) -> list[psutil.Process]:
    family = run.family()
    server = [each for each in family if _is_server(each)]
    children = [each for each in family if each not in server]
    chosen = {
        "everything": [psutil.Process(run.process.pid), *family],
        "run": [],
        "server": server,
        "child": children[int(kill.which * len(children)) :][:1],
        "children": children,
    }
    return chosen[kill.victim] or [psutil.Process(run.process.pid)]


def _is_server(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "prefect.server" in " ".join(process.cmdline())
    return False


@dataclasses.dataclass
class History:
    """A workspace in which runs are killed and started again."""

    workspace: Workspace
    logs: Path
    times: dict[str, float]
    """The seconds of each phase of an undisturbed run."""
    runs: list[Run] = dataclasses.field(default_factory=list)
    events: list[str] = dataclasses.field(default_factory=list)

    def start(self) -> Run:
        self.runs.append(Run(self.workspace, self.logs / f"run-{len(self.runs)}.log"))
        return self.runs[-1]

    def at_work(self) -> Run:
        """The last run if it is still at work, otherwise a new one."""
        if self.runs and self.runs[-1].process.poll() is None:
            return self.runs[-1]
        return self.start()

    def apply(self, kill: Kill) -> None:
        run = self.at_work()
        if not self._reaches(run, kill):
            self._note_end(run, run.end())
            kill, run = dataclasses.replace(kill, phase=PHASES[0]), self.start()
            assert self._reaches(run, kill), run.printed()
        victims = victims_of(run, kill)
        names = [_short(each) for each in victims]
        for process in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.events.append(f"{kill} in run {len(self.runs) - 1}: {names}")
        if run.process.pid in [each.pid for each in victims]:
            run.process.wait()
            if kill.waits:
                self.wait_for_processes()

    def _reaches(self, run: Run, kill: Kill) -> bool:
        seconds = kill.fraction * self.times[kill.phase]
        return run.reach(kill.phase) and run.is_at_work_in(kill.phase, seconds)

    def _note_end(self, run: Run, code: int) -> None:
        self.events.append(f"run {self.runs.index(run)} ended with {code}")

    def finish(self) -> Run:
        """Let the last run end, then run once more: it completes."""
        if self.runs[-1].process.poll() is None:
            self._note_end(self.runs[-1], self.runs[-1].end())
        run = self.start()
        assert run.end() == 0, run.printed()
        return run

    def wait_for_processes(self) -> None:
        """Wait until no process works in the workspace."""
        deadline = time.monotonic() + _ENDS_S
        while left := workspaces.processes_in(self.workspace.root):
            assert time.monotonic() < deadline, left
            time.sleep(0.2)


def _short(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()[1:])[:120]
    return "ended"


def results_of(workspace: Workspace) -> dict[str, Any]:
    """What a run leaves: files without the pages, which hold dates; the versions; their losses."""
    hashes = files.tree_hashes(workspace.root / "work")
    lock = config.parse_yaml((workspace.root / "dvc.lock").read_text())["stages"]
    client = MlflowClient(workspaces.environment(workspace.root)["MLFLOW_TRACKING_URI"])
    model = client.get_registered_model(f"dreambooth-{SUBJECT}")
    versions = client.search_model_versions(f"name = '{model.name}'")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    loss = [client.get_metric_history(str(each.run_id), "loss") for each in versions]
    return {
        "files": {name: sha for name, sha in hashes.items() if "/report/" not in name},
        "pages": sorted(name for name in hashes if "/report/" in name),
        "dvc.lock": {name: stage for name, stage in lock.items() if "report" not in name},
        "versions": [int(each.version) for each in versions],
        "aliases": {alias: int(version) for alias, version in model.aliases.items()},
        "losses": [[(each.step, each.value) for each in history] for history in loss],
        "running": [each.info.run_id for each in runs if each.info.status == "RUNNING"],
    }


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which nothing has run."""
    workspace = workspaces.build(tmp_path_factory.mktemp("untouched") / "checkout")
    workspaces.change(workspace.root, "train.max_train_steps", 24)
    workspaces.change(workspace.root, "train.checkpointing_steps", 8)
    return workspace


def copy_of(workspace: Workspace, folder: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(workspace.root, folder / "checkout")))


@pytest.fixture(scope="module")
def undisturbed(
    untouched: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, float]]:
    """The results of an undisturbed run, and the seconds of its phases."""
    folder = tmp_path_factory.mktemp("undisturbed")
    workspace = copy_of(untouched, folder)
    run = Run(workspace, folder / "log")
    begins = dict[str, float]()
    for phase in PHASES:
        assert run.reach(phase), run.printed()
        begins[phase] = time.monotonic()
    assert run.end() == 0, run.printed()
    ends = [*list(begins.values())[1:], time.monotonic()]
    times = {phase: end - begin for (phase, begin), end in zip(begins.items(), ends, strict=True)}
    return results_of(workspace), times


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed-{seed}")
def test_run_killed_ten_times_ends_as_an_undisturbed_one(
    untouched: Workspace,
    undisturbed: tuple[dict[str, Any], dict[str, float]],
    tmp_path: Path,
    seed: int,
) -> None:
    results, times = undisturbed
    history = History(copy_of(untouched, tmp_path), tmp_path, times)
    try:
        for kill in kills_of(seed):
            history.apply(kill)
        history.finish()
        again = history.finish()
        history.wait_for_processes()
    except BaseException as error:
        error.add_note("\n".join((f"seed {seed}, phases {times}", *history.events)))
        raise
    assert results_of(history.workspace) == results, history.events
    done = re.findall(r"^(\S+) +done", again.printed(), re.MULTILINE)
    assert done == ["compare"], again.printed()
    assert [str(path) for path in history.workspace.root.rglob(".aside-*")] == []
