"""The champion changes while others decide: promotions at once, and killed ones."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dreambooth_core import locks
from dreambooth_core.registry import aliases, runs, versions
from dreambooth_core.registry.tracking import Tracking, resolve_tracking
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT
from tests.unit.registry import examples
from tests.unit.registry.examples import MODEL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def tracking(tmp_path: Path, tiny_sd: Path) -> Tracking:
    """The store of a project with versions 1 to 3; the first is the champion."""
    workspace = workspaces.shipped(tmp_path / "project")
    found = resolve_tracking(workspace)
    run = runs.find_or_create_run(found, experiment=MODEL, fingerprint="a" * 64, name="run")
    for number in (1, 2, 3):
        candidate = examples.candidate(tiny_sd, fingerprint=str(number) * 64)
        versions.register_version(found, run, candidate, scratch=tmp_path / "scratch")
        passed = {aliases.PARITY: aliases.PARITY_PASSED}
        aliases.set_tags(found, name=MODEL, version=number, tags=passed)
    assert workspaces.call(found.home, "promote", SUBJECT, "1").returncode == 0
    return found


def champion(tracking: Tracking) -> int:
    return versions.aliases_of(tracking, name=MODEL)["champion"]


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli", *arguments],
        cwd=root,
        env=workspaces.environment(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_at_the_lock(process: subprocess.Popen[str], lock: Path) -> None:
    """Wait until a process has decided, and waits to move the alias."""
    while str(lock) not in {each.path for each in psutil.Process(process.pid).open_files()}:
        assert process.poll() is None
        time.sleep(0.01)


def test_one_of_two_promotions_at_once_is_told_of_the_other(tracking: Tracking) -> None:
    with locks.hold(tracking.lock, timeout_s=1):
        both = {number: start(tracking.home, "promote", SUBJECT, str(number)) for number in (2, 3)}
        for process in both.values():
            wait_at_the_lock(process, tracking.lock)
    printed = {number: process.communicate()[0] for number, process in both.items()}
    (won,) = [number for number, process in both.items() if process.returncode == 0]
    (lost,) = set(both) - {won}
    assert champion(tracking) == won
    assert f"champion: version {won}; the decision was made against version 1" in printed[lost]
    assert "Traceback" not in printed[lost]
    assert workspaces.call(tracking.home, "promote", SUBJECT, str(lost)).returncode == 0
    for earlier in (won, 1):
        assert workspaces.call(tracking.home, "rollback", SUBJECT).returncode == 0
        assert champion(tracking) == earlier


def test_promotion_killed_at_random_moments_is_repeated_without_loss(tracking: Tracking) -> None:
    draw = random.Random(0)
    for _ in range(8):
        with locks.hold(tracking.lock, timeout_s=1):
            process = start(tracking.home, "promote", SUBJECT, "2")
            wait_at_the_lock(process, tracking.lock)
        time.sleep(draw.uniform(0.15, 0.6))
        process.kill()
        process.communicate()
        assert champion(tracking) in (1, 2)
    assert workspaces.call(tracking.home, "promote", SUBJECT, "2").returncode == 0
    assert versions.aliases_of(tracking, name=MODEL) == {"champion": 2}
    assert workspaces.call(tracking.home, "rollback", SUBJECT).returncode == 0
    assert champion(tracking) == 1
