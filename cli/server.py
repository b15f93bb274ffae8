"""Provides a Prefect API for a run: a running server, or a temporary one.

Prefect's own ephemeral server shares the terminal's process group, so Ctrl-C ends it before the
flow can report that it was stopped. It also survives a kill of its parent.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

from dreambooth_core import files, locks
from dreambooth_core.errors import StageError
from dreambooth_core.masking import (
    scrubbed,
    userinfo_of,
    without_secrets,
    without_userinfo,
)
from dreambooth_core.supervision import free_port, start_logged, stop_group
from dreambooth_core.waiting import wait_until
from dreambooth_core.workspace import Workspace

_API_TIMEOUT_S = 5.0
_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 2.0
_POLL_S = 0.1
_KEEP_S = 1.0


def answers(url: str, *, timeout_s: float = 5.0) -> bool:
    """Whether a GET request to `url`, without its user and password, returns status 200."""
    try:
        with urllib.request.urlopen(without_userinfo(url), timeout=timeout_s) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError, ValueError):
        return False


@contextlib.contextmanager
def prefect_api(
    workspace: Workspace, env: Mapping[str, str], given: str | None
) -> Iterator[Callable[[], str]]:
    """Yield a function that waits for a Prefect API and returns its URL.

    It is the `given` one, or that of a server for this run alone. Call the function late: the
    server starts while the caller imports its libraries.
    """
    if given:
        _require_api(given, env)
        yield lambda: given
        return
    server = _TemporaryServer(env, workspace.state / "logs" / "prefect-of-run.log")
    try:
        yield server.url
    finally:
        server.stop()


def lasting_api(env: Mapping[str, str], given: str | None) -> str:
    """The `given` URL of a Prefect API that stays. Raises StageError if there is none."""
    if not given:
        raise StageError(
            "no Prefect server runs", hint="start `dreambooth up`, or set PREFECT_API_URL"
        )
    _require_api(given, env)
    return given


class _TemporaryServer:
    """A Prefect server for one run, started again if it ends: the client waits for that."""

    def __init__(self, env: Mapping[str, str], log: Path) -> None:
        self._env, self._log, self._port = env, log, free_port()
        self._database = _Database(env)
        self._process = self._start()
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="prefect-server", daemon=True)

    def url(self) -> str:
        """Wait until the server answers, and return the URL of its API. Raises StageError."""
        url = f"http://127.0.0.1:{self._port}/api"
        is_kept = self._keeper.is_alive()
        wait_until(
            lambda: answers(f"{url}/health") or not (is_kept or self._process.poll() is None),
            timeout_s=_START_TIMEOUT_S,
            every_s=_POLL_S,
        )
        if not answers(f"{url}/health"):
            raise StageError(
                "the Prefect server did not start",
                got=self._log.read_text(errors="replace")[-800:],
                hint="`dreambooth doctor` checks the installed versions",
            )
        self._database.is_ready()
        if not is_kept:
            self._keeper.start()
        return url

    def stop(self) -> None:
        """Stop the server."""
        self._stop.set()
        self._database.close()
        if self._keeper.is_alive():
            self._keeper.join()
        stop_group(self._process, grace_s=_STOP_TIMEOUT_S)

    def _keep(self) -> None:
        while not self._stop.wait(_KEEP_S):
            if self._process.poll() is not None:
                self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        env = {**self._env, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
        return start_logged(_command(self._port), self._log, env=env)


class _Database:
    """Keeps servers apart while one of them creates or migrates the database in PREFECT_HOME.

    Two at once would leave tables of which some columns are missing.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        home = Path(env.get("PREFECT_HOME") or "~/.prefect").expanduser()
        self._note, self._version = home / "migrated", importlib.metadata.version("prefect")
        self._lock = contextlib.ExitStack()
        if not self._is_migrated():
            lock = locks.hold(home / "migrate.lock", timeout_s=_START_TIMEOUT_S)
            self._lock.enter_context(lock)
            if self._is_migrated():
                self.close()

    def is_ready(self) -> None:
        """Let other servers start: this one answers."""
        if not self._is_migrated():
            files.write_text(self._note, self._version)
        self.close()

    def close(self) -> None:
        """Let other servers start."""
        self._lock.close()

    def _is_migrated(self) -> bool:
        return self._note.is_file() and self._note.read_text() == self._version


def _require_api(url: str, env: Mapping[str, str]) -> None:
    """Raise StageError if no Prefect server answers at `url`, or if it refuses this user.

    Prefect itself waits for minutes. The path is one that asks for a password or key, if any does.
    """
    request = urllib.request.Request(f"{without_userinfo(url)}/admin/version")
    if (credentials := _credentials(url, env)) is not None:
        request.add_header("Authorization", credentials)
    try:
        with urllib.request.urlopen(request, timeout=_API_TIMEOUT_S):
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise StageError(
                f"Prefect at {without_secrets(url)} refuses the user and password, or the lack "
                "of one",
                got=f"status {error.code}",
                hint="export PREFECT_API_AUTH_STRING=USER:PASSWORD, or PREFECT_API_KEY for "
                "Prefect Cloud",
            ) from None
        if error.code < 500:
            return
        reason: object = f"status {error.code}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
    raise StageError(
        f"Prefect at {without_secrets(url)} is unreachable",
        got=scrubbed(str(reason), url),
        hint="start it (`dreambooth up`), or unset PREFECT_API_URL",
    )


def _credentials(url: str, env: Mapping[str, str]) -> str | None:
    """The header with which Prefect's client logs in: a key, or user and password."""
    if key := env.get("PREFECT_API_KEY"):
        return f"Bearer {key}"
    user = env.get("PREFECT_API_AUTH_STRING") or unquote(userinfo_of(url))
    return f"Basic {base64.b64encode(user.encode()).decode()}" if user else None


def _command(port: int) -> list[str]:
    options = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    app = "prefect.server.api.server:create_app"
    return [sys.executable, "-m", "uvicorn", "--factory", app, *options, "--lifespan", "on"]
