"""What `dreambooth up` starts, as infra/local/services.yaml says, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.server import answers, dying_with_parent
from dreambooth_core import files
from dreambooth_core.config import read_yaml
from dreambooth_core.errors import StageError
from dreambooth_core.workspace import Workspace

_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 8.0
_POLL_S = 0.2

Say = Callable[[str], None]


@dataclass(frozen=True)
class Ports:
    """Ports on the loopback interface."""

    prefect: int
    mlflow: int


def _note(workspace: Workspace) -> Path:
    """Where the services that run leave their addresses."""
    return workspace.state / "up.json"


def running_api(workspace: Workspace) -> str | None:
    """The Prefect API of this workspace's `dreambooth up`, if it answers."""
    try:
        url = json.loads(_note(workspace).read_text())["prefect_api"]
    except (OSError, ValueError, KeyError):
        return None
    return url if answers(f"{url}/health") else None


class Starter:
    """Starts the services of one workspace, waits, and stops them."""

    def __init__(
        self, workspace: Workspace, env: Mapping[str, str], ports: Ports, *, pool: str
    ) -> None:
        self._workspace = workspace
        self._values = {
            "python": sys.executable,
            "root": str(workspace.root),
            "pool": pool,
            "prefect_port": str(ports.prefect),
            "mlflow_port": str(ports.mlflow),
        }
        self._spec = read_yaml(workspace.root / "infra" / "local" / "services.yaml")
        self._env = {**env, **self._fill_all(self._spec["env"])}
        self._stop = threading.Event()

    def serve(self, say: Say) -> list[str]:
        """Run until Ctrl-C, SIGTERM or the end of a service; returns their names.

        Raises StageError when one does not start, or ends by itself.
        """
        self._refuse_taken()
        running: dict[str, subprocess.Popen[bytes]] = {}
        with _stopping_on_signals(self._stop), contextlib.ExitStack() as started:
            for service in self._spec["services"]:
                name = service["name"]
                process = started.enter_context(self._started(service))
                self._await_ready(service, process)
                if self._stop.is_set():
                    break
                if service.get("run") != "once":
                    running[name] = process
                say(f"{name}: {self._fill(service['shown'])}")
            started.callback(_note(self._workspace).unlink, missing_ok=True)
            if not self._stop.is_set():
                files.write_json(_note(self._workspace), self._fill_all(self._spec["note"]))
                say("stop with Ctrl-C")
            self._watch(running)
        return list(running)

    def _fill(self, text: str) -> str:
        return text.format(**self._values)

    def _fill_all(self, texts: Mapping[str, str]) -> dict[str, str]:
        return {key: self._fill(text) for key, text in texts.items()}

    def _refuse_taken(self) -> None:
        for service in self._spec["services"]:
            health = service.get("health")
            if health and answers(self._fill(health)):
                raise StageError(
                    f"{service['name']}: something answers already at {self._fill(health)}",
                    hint="stop it, or choose other ports (`dreambooth up --help`)",
                )

    @contextlib.contextmanager
    def _started(self, service: Mapping[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
        log = self._workspace.state / "logs" / f"{service['name']}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [self._fill(word) for word in service["command"]]
        with log.open("ab") as sink:
            process = subprocess.Popen(
                dying_with_parent(command),
                cwd=self._workspace.root,
                env={**self._env, **self._fill_all(service.get("env", {}))},
                stdout=sink,
                stderr=sink,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            _stop_group(process)

    def _await_ready(self, service: Mapping[str, Any], process: subprocess.Popen[bytes]) -> None:
        """Wait until the service answers, or, where it runs once, until it is done."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._stop.is_set():
            code = process.poll()
            if service.get("run") == "once" and code == 0:
                return
            if code is not None:
                raise _ended(service["name"], code)
            health = service.get("health")
            if service.get("run") != "once" and (not health or answers(self._fill(health))):
                return
            if time.monotonic() > deadline:
                raise StageError(
                    f"{service['name']} does not answer", hint=_log_hint(service["name"])
                )
            time.sleep(_POLL_S)

    def _watch(self, running: Mapping[str, subprocess.Popen[bytes]]) -> None:
        while not self._stop.wait(_POLL_S):
            for name, process in running.items():
                if process.poll() is not None:
                    raise _ended(name, process.returncode)


def _ended(name: str, code: int) -> StageError:
    return StageError(f"{name} ended with code {code}", hint=_log_hint(name))


def _log_hint(name: str) -> str:
    return f"see .state/logs/{name}.log"


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the service and its children, then SIGKILL to what is left of them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def _stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    former = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for number in former:
        signal.signal(number, lambda *_: stop.set())
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
