"""Calls the command line of DVC, one call at a time.

Every call takes the workspace lock, so that no stage replaces a folder while DVC reads it. DVC's
own locks make a call fail while a `dvc repro` runs a stage; this raises Busy then.

No call has `--quiet`, which would also hide why DVC failed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreambooth_core import locks
from dreambooth_core.errors import DataError, StageError
from dreambooth_core.workspace import Workspace

_STATUS = "tasks.dvc_status"
_CODE = Path(__file__).parents[1]
_LOCK_TIMEOUT_S = 300.0
_SETTLE_S = 5.0
_BUSY = ("is busy, it is being blocked by", "Unable to acquire lock")
_CORRUPT_RWLOCK = "Unable to read RWLock-file"
_BROKEN_ENTRY = ("No such file or directory", "Too many levels of symbolic links")
_UNREADABLE = "Permission denied"
_ADVERTISEMENT = "Having any troubles?"
_LEVEL = re.compile("^(ERROR|WARNING): ")

Status = dict[str, list[Any]]
"""The output of `dvc status --json`: changes by stage or .dvc file, without unchanged ones."""


class Busy(StageError):
    """Another DVC process is working on the same files; try again later."""


class Dvc:
    """DVC in one workspace."""

    def __init__(self, workspace: Workspace, *, env: Mapping[str, str]) -> None:
        self._workspace = workspace
        own = str(Path(sys.executable).parent)
        # DVC runs stages as `python ...`, which must be this interpreter.
        self._env = {
            **env,
            "PATH": f"{own}:{env.get('PATH', '')}",
            "PYTHONPATH": f"{_CODE}:{env['PYTHONPATH']}" if env.get("PYTHONPATH") else str(_CODE),
        }

    def status(self, targets: Sequence[str] = ()) -> Status:
        """The changes of `targets`, by default of everything. Raises Busy and StageError."""
        with self._locked():
            text = self._call("status", "--json", *targets, module=_STATUS)
        return json.loads(text or "{}")

    def commit(self, *targets: str) -> None:
        """Record the present outputs of stages, or the present files of a .dvc file."""
        with self._locked():
            self.commit_unlocked(*targets)

    def commit_unlocked(self, *targets: str) -> None:
        """Like `commit`, for a caller that already holds the workspace lock."""
        self._call("commit", "--force", *targets)

    def add_unlocked(self, path: str) -> None:
        """Track a file or folder in place; the caller holds the workspace lock."""
        self._call("add", path)

    def push(self, *targets: str) -> None:
        """Upload the files of stages, or of a .dvc file, to the remote. Raises Busy, StageError."""
        with self._locked():
            self._call("push", *targets)

    def fetch(self, target: str) -> None:
        """Restore the files of a .dvc file from the cache or remote. Raises Busy, StageError."""
        with self._locked():
            try:
                self._call("checkout", target)
            except StageError:
                self._call("pull", target)

    def _locked(self) -> Any:
        return locks.hold(self._workspace.workspace_lock, timeout_s=_LOCK_TIMEOUT_S)

    def _call(self, *arguments: str, module: str = "dvc") -> str:
        code, out, err = self._run(arguments, module)
        if code != 0 and _CORRUPT_RWLOCK in err:
            # A kill left DVC's own lock file half-written; live processes write it again.
            (self._workspace.root / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)
            code, out, err = self._run(arguments, module)
        if code == 0:
            return out.strip()
        raise _as_error(arguments, _reason(err) or _reason(out))

    def _run(self, arguments: Sequence[str], module: str) -> tuple[int, str, str]:
        process = subprocess.Popen(
            # Without the present folder, which may have a `tasks` of its own.
            [sys.executable, "-P", "-m", module, *arguments],
            cwd=self._workspace.root,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C must not hit DVC while it writes dvc.lock
        )
        try:
            out, err = process.communicate()
        except BaseException:
            _settle(process)
            raise
        return process.returncode, out, err


def _settle(process: subprocess.Popen[str]) -> None:
    """Let a short DVC call finish, so that it is not killed while it writes."""
    try:
        process.communicate(timeout=_SETTLE_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()


def _reason(text: str) -> str:
    """The messages in the output of a failed call."""
    lines = (_LEVEL.sub("", line.strip()) for line in text.splitlines())
    return "\n".join(line for line in lines if line and _ADVERTISEMENT not in line)


def _as_error(arguments: Sequence[str], text: str) -> StageError | DataError:
    command = f"dvc {' '.join(arguments)}"
    if any(sign in text for sign in _BUSY):
        return Busy(f"`{command}` failed: another DVC process is at work", got=text)
    if any(sign in text for sign in _BROKEN_ENTRY):
        return DataError(
            "DVC cannot read an entry of a tracked folder",
            got=text.splitlines()[0],
            hint="remove the broken link, or the link that leads to itself",
        )
    if _UNREADABLE in text:
        return DataError(
            "DVC has no permission to read a tracked file",
            got=text.splitlines()[0],
            hint="grant read permission, or remove the file",
        )
    return StageError(f"`{command}` failed", got=" ".join(text.split()))
