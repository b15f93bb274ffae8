"""Starts and stops the services of infra/local/services.yaml for `dreambooth up`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cli.flow_runs import FlowRunLog
from cli.ports import Ports
from cli.server import answers
from cli.stuck_runs import end_stuck_runs, stop_flows
from dreambooth_core import files
from dreambooth_core.config import read_yaml
from dreambooth_core.errors import StageError
from dreambooth_core.registry.store_uri import ARTIFACTS, STORE, sqlite_uri
from dreambooth_core.supervision import stop_group, stop_on_signals, supervised
from dreambooth_core.waiting import wait_until
from dreambooth_core.workspace import Workspace

_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 8.0
_FLOW_TIMEOUT_S = 60.0
_POLL_S = 0.2

Say = Callable[[str], None]


def running_api(workspace: Workspace) -> str | None:
    """The Prefect API of this workspace's `dreambooth up`; None if it is unreachable."""
    try:
        url = json.loads(workspace.services_note.read_text())["prefect_api"]
    except (OSError, ValueError, KeyError):
        return None
    return url if answers(f"{url}/health") else None


class Services:
    """The services of one workspace."""

    def __init__(
        self, workspace: Workspace, env: Mapping[str, str], ports: Ports, *, pool: str
    ) -> None:
        self._workspace, self._ports, self._pool = workspace, ports, pool
        home = workspace.root.absolute()
        self._values = {
            "store": sqlite_uri(home / STORE),
            "artifacts": (home / ARTIFACTS).as_uri(),
            "python": sys.executable,
            "root": str(workspace.root),
            "pool": pool,
            "prefect_port": str(ports.prefect),
            "mlflow_port": str(ports.mlflow),
        }
        self._spec = read_yaml(workspace.root / "infra" / "local" / "services.yaml")
        self._env = {**env, **self._fill_all(self._spec["env"])}
        self._api = self._env["PREFECT_API_URL"]
        self._stop = threading.Event()

    def serve(self, say: Say) -> list[str]:
        """Run all services until Ctrl-C or SIGTERM; return their names.

        Raises StageError if a service does not start, or ends by itself.
        """
        self._ports.require_free()
        self._stop = stop_on_signals()
        running: dict[str, subprocess.Popen[bytes]] = {}
        with contextlib.ExitStack() as started:
            for service in self._spec["services"]:
                name = service["name"]
                if service.get("runs_flows"):
                    self._end_stuck_runs(say)
                process = started.enter_context(self._started(service))
                self._wait_until_ready(service, process)
                if self._stop.is_set():
                    break
                if service.get("runs_flows"):
                    started.callback(self._stop_flows, say)
                if service.get("run") != "once":
                    running[name] = process
                say(f"{name}: {self._fill(service['shown'])}")
            started.callback(self._workspace.services_note.unlink, missing_ok=True)
            if not self._stop.is_set():
                files.write_json(self._workspace.services_note, self._fill_all(self._spec["note"]))
                for line in self._spec["next"]:
                    say(self._fill(line))
                started.enter_context(FlowRunLog(self._api, self._pool, say))
            self._watch(running)
        return list(running)

    def _fill(self, text: str) -> str:
        return text.format(**self._values)

    def _fill_all(self, texts: Mapping[str, str]) -> dict[str, str]:
        return {key: self._fill(text) for key, text in texts.items()}

    @contextlib.contextmanager
    def _started(self, service: Mapping[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
        log = self._workspace.state / "logs" / f"{service['name']}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [self._fill(word) for word in service["command"]]
        with log.open("ab") as sink:
            process = subprocess.Popen(
                supervised(command),
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
            stop_group(process, grace_s=_STOP_TIMEOUT_S)

    def _wait_until_ready(
        self, service: Mapping[str, Any], process: subprocess.Popen[bytes]
    ) -> None:
        """Wait until the service answers, or until a one-time command is done."""
        is_ready = wait_until(
            lambda: self._stop.is_set() or self._is_ready(service, process),
            timeout_s=_START_TIMEOUT_S,
            every_s=_POLL_S,
        )
        if not is_ready:
            raise StageError(f"{service['name']} does not answer", hint=_log_hint(service["name"]))

    def _is_ready(self, service: Mapping[str, Any], process: subprocess.Popen[bytes]) -> bool:
        runs_once, code = service.get("run") == "once", process.poll()
        if code is not None and not (runs_once and code == 0):
            raise _ended(service["name"], code)
        health = service.get("health")
        return code == 0 if runs_once else not health or answers(self._fill(health))

    def _end_stuck_runs(self, say: Say) -> None:
        """End the runs that killed processes left active: each keeps the slot of its deployment."""
        from prefect.client.orchestration import SyncPrefectClient  # takes two seconds

        with SyncPrefectClient(self._api) as client:
            for name in end_stuck_runs(client, pool=self._pool):
                say(f"{name}: ended, because no process works on it any more")

    def _stop_flows(self, say: Say) -> None:
        """Let the flows report their end while the server runs; the worker would kill them."""
        say("stopping")
        if stop_flows(self._api, grace_s=_FLOW_TIMEOUT_S):
            say("the run in work was stopped; the next run of its deployment continues it")

    def _watch(self, running: Mapping[str, subprocess.Popen[bytes]]) -> None:
        while not self._stop.wait(_POLL_S):
            for name, process in running.items():
                if process.poll() is not None:
                    raise _ended(name, process.returncode)


def _ended(name: str, code: int) -> StageError:
    return StageError(f"{name} ended with code {code}", hint=_log_hint(name))


def _log_hint(name: str) -> str:
    return f"see .state/logs/{name}.log"
