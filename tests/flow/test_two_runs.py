"""Two runs of one subject: the second waits, says for whom, and outlives a killed owner."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(600)]

_HOLD = (
    "import sys, time; from pathlib import Path; from dreambooth_core import locks\n"
    "with locks.hold(Path(sys.argv[1]), timeout_s=1): print('held', flush=True); time.sleep(600)\n"
)


def test_second_run_names_the_first_and_starts_once_that_is_killed(tmp_path: Path) -> None:
    workspace = workspaces.build(tmp_path / "checkout")
    root, log = workspace.root, tmp_path / "log"
    env = workspaces.environment(root)
    first = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(workspace.subject_lock(SUBJECT))],
        cwd=root,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    with log.open("wb") as sink:
        second = subprocess.Popen(
            [sys.executable, "-m", "cli", "run", SUBJECT, "--stage", "validate"],
            cwd=root,
            env=env,
            stdout=sink,
            stderr=sink,
        )
    waits = f"waiting for process {first.pid}, which works on {SUBJECT}"
    while waits not in log.read_text():
        assert second.poll() is None, log.read_text()
        time.sleep(0.1)
    time.sleep(1)
    assert second.poll() is None
    first.kill()
    first.wait()
    first.stdout.close()
    assert second.wait(120) == 0, log.read_text()
    assert workspace.stage_dir(SUBJECT, "validate").is_dir()
