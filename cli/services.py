"""Starts and stops the services of infra/local/services.yaml for `dreambooth up`."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.flow_runs import FlowRunLog
from cli.ports import Ports
from cli.server import answers
from cli.stuck_runs import end_stuck_runs, stop_flows
from dreambooth_core import files
from dreambooth_core.config import read_yaml
from dreambooth_core.errors import StageError
from dreambooth_core.registry.store_uri import ARTIFACTS, STORE, sqlite_uri
from dreambooth_core.supervision import start_logged, stop_group, stop_on_signals
from dreambooth_core.waiting import wait_until
from dreambooth_core.workspace import Workspace
from tasks.device_slot import create_limit

_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 8.0
_FLOW_TIMEOUT_S = 60.0
_STEADY_S = 60.0
_POLL_S = 0.2

Say = Callable[[str], None]


def running_api(workspace: Workspace) -> str | None:
    """The Prefect API of this workspace's `dreambooth up`; None if it is unreachable."""
    url = workspace.service("prefect_api")
    return url if url and answers(f"{url}/health") else None


def api_in_use(workspace: Workspace, env: Mapping[str, str]) -> str | None:
    """The Prefect API of PREFECT_API_URL, else that of `dreambooth up`, else None."""
    return env.get("PREFECT_API_URL") or running_api(workspace)


class Service:
    """A service of the spec and its process, which `start` replaces."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        command: list[str],
        log: Path,
        *,
        folder: Path,
        env: Mapping[str, str],
    ) -> None:
        self.spec, self.name = spec, str(spec["name"])
        self._command, self._log, self._folder, self._env = command, log, folder, env
        self.start()

    def start(self) -> None:
        """Start the process in a session of its own; it dies with this one."""
        self.process = start_logged(self._command, self._log, env=self._env, folder=self._folder)
        self._began = time.monotonic()

    def stop(self) -> None:
        """Stop the process and those that it started."""
        stop_group(self.process, grace_s=_STOP_TIMEOUT_S)

    @property
    def may_restart(self) -> bool:
        """Whether it has run for a while, and its end costs no work: clients wait for a server."""
        is_replaceable = "health" in self.spec or "restart" in self.spec
        return is_replaceable and time.monotonic() - self._began > _STEADY_S


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
            "metrics_port": str(ports.metrics),
        }
        self._spec = read_yaml(workspace.root / "infra" / "local" / "services.yaml")
        self._env = {**env, **self._fill_all(self._spec["env"])}
        self._api = self._env["PREFECT_API_URL"]
        self._stop = threading.Event()

    def serve(self, say: Say) -> list[str]:
        """Run all services until Ctrl-C or SIGTERM; return their names.

        Raises StageError if a service does not start, or if one ends that cannot be restarted.
        """
        self._ports.require_free()
        self._stop = stop_on_signals()
        running: list[Service] = []
        with contextlib.ExitStack() as started:
            for spec in self._spec["services"]:
                if spec.get("runs_flows"):
                    self._end_stuck_runs(say)
                    create_limit(self._api)
                service = self._started(spec)
                started.callback(service.stop)
                self._wait_until_ready(service)
                if self._stop.is_set():
                    break
                if spec.get("runs_flows"):
                    started.callback(self._stop_flows, say)
                if spec.get("run") != "once":
                    running.append(service)
                say(f"{service.name}: {self._fill(spec['shown'])}")
            started.callback(self._workspace.services_note.unlink, missing_ok=True)
            if not self._stop.is_set():
                files.write_json(self._workspace.services_note, self._fill_all(self._spec["note"]))
                for line in self._spec["next"]:
                    say(self._fill(line))
                started.enter_context(FlowRunLog(self._api, self._pool, say))
                started.enter_context(self._metrics())
            self._watch(running, say)
        return [service.name for service in running]

    def _metrics(self) -> contextlib.AbstractContextManager[str]:
        from cli import metrics  # imports what nothing else in this process needs

        return metrics.served(self._workspace, self._env, port=self._ports.metrics)

    def _fill(self, text: str) -> str:
        return text.format(**self._values)

    def _fill_all(self, texts: Mapping[str, str]) -> dict[str, str]:
        return {key: self._fill(text) for key, text in texts.items()}

    def _started(self, spec: Mapping[str, Any]) -> Service:
        return Service(
            spec,
            [self._fill(word) for word in spec["command"]],
            self._workspace.state / "logs" / f"{spec['name']}.log",
            folder=self._workspace.root,
            env={**self._env, **self._fill_all(spec.get("env", {}))},
        )

    def _wait_until_ready(self, service: Service) -> None:
        """Wait until the service answers, or until a one-time command is done."""
        is_ready = wait_until(
            lambda: self._stop.is_set() or self._is_ready(service),
            timeout_s=_START_TIMEOUT_S,
            every_s=_POLL_S,
        )
        if not is_ready:
            raise StageError(f"{service.name} does not answer", hint=_log_hint(service.name))

    def _is_ready(self, service: Service) -> bool:
        runs_once, code = service.spec.get("run") == "once", service.process.poll()
        if code is not None and not (runs_once and code == 0):
            raise _ended(service.name, code)
        health = service.spec.get("health")
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

    def _watch(self, running: Sequence[Service], say: Say) -> None:
        while not self._stop.wait(_POLL_S):
            for service in running:
                code = service.process.poll()
                if code is None:
                    continue
                if not service.may_restart:
                    raise _ended(service.name, code)
                service.start()
                say(f"{service.name} ended with code {code} and was started again")


def _ended(name: str, code: int) -> StageError:
    return StageError(f"{name} ended with code {code}", hint=_log_hint(name))


def _log_hint(name: str) -> str:
    return f"see .state/logs/{name}.log"
