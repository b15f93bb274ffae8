"""Child processes die with their parent; waiting ends with the condition or the deadline."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from dreambooth_core.supervision import stop_group, supervised
from dreambooth_core.waiting import wait_until

SLEEP = [sys.executable, "-c", "print('ready', flush=True); import time; time.sleep(99)"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
@pytest.mark.parametrize("adopt", [False, True])
def test_supervised_command_dies_with_its_killed_parent(adopt):
    script = (
        "import subprocess; from dreambooth_core.supervision import supervised\n"
        f"subprocess.run(supervised({SLEEP!r}, adopt={adopt}))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    descendants = psutil.Process(parent.pid).children(recursive=True)
    assert len(descendants) == 1 + adopt
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(descendants, timeout=20)[1] == []


def test_supervised_command_sees_variables_and_returns_its_exit_code():
    command = ["sh", "-c", 'exit "$CODE"']
    for adopt in (False, True):
        done = subprocess.run(
            supervised(command, adopt=adopt, variables={"CODE": "7"}), check=False
        )
        assert done.returncode == 7


def test_stopped_group_is_killed_after_its_grace():
    ignores = "import signal; signal.signal(15, signal.SIG_IGN); " + SLEEP[-1]
    process = subprocess.Popen(
        [sys.executable, "-c", ignores], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    stop_group(process, grace_s=0.2)
    assert process.returncode == -9


def test_wait_until_returns_the_last_result():
    results = iter([0, "", "found"])
    assert wait_until(lambda: next(results), timeout_s=60, every_s=0) == "found"
    began = time.monotonic()
    assert wait_until(lambda: None, timeout_s=0.1, every_s=0.01) is None
    assert time.monotonic() - began >= 0.1
