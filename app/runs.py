"""Starts and stops runs. A run belongs to no browser and not to the app: it outlives both.

Where `dreambooth up` runs, a run is one of its deployment; otherwise it is `dreambooth run` in a
new session, after the runs of other subjects that are at work or wait already. The subject's lock
shows whether one is at work, whoever started it.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from app.commands import command
from app.site import Site
from dreambooth_core import files, locks
from dreambooth_core.errors import StageError
from tasks import run_progress

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

Phase = Literal["idle", "queued", "starting", "running", "stopping"]

_DEPLOYMENT = "train-subject/local"
_TIMEOUT_S = 20.0
_HOLDER = re.compile(r"process (\d+)")
_QUEUED = ["SCHEDULED", "PENDING"]


@dataclass(frozen=True)
class Note:
    """The last run that the app started for a subject."""

    pid: int | None = None
    created: float = 0.0
    flow_run: str | None = None
    api: str | None = None
    waited: bool = False
    """Whether others were ahead when the process was started."""
    stopping: tuple[int, ...] = ()
    """The processes that were asked to stop."""


@dataclass(frozen=True)
class Status:
    """Whether a subject's run is at work, and who works."""

    phase: Phase
    holder: str | None
    ahead: str | None = None
    """The subject whose run a queued one waits for."""


def log_of(site: Site, subject: str) -> Path:
    """The output of the runs that the app started in processes."""
    return site.files / "runs" / f"{subject}.log"


def status(site: Site, subject: str) -> Status:
    """The present state, from the lock and the process or flow run that the app started."""
    holder, note = locks.holder_of(site.workspace.subject_lock(subject)), _read(site, subject)
    at_work = _is_alive(note)
    worker = _pid_of(holder)
    if (worker in note.stopping) or (at_work and note.pid in note.stopping):
        return Status("stopping", holder)
    if holder is not None:
        return Status("running", holder)
    if at_work:
        ahead = ahead_of(site, subject) if note.waited else None
        return Status("queued" if ahead else "starting", None, ahead)
    if note.flow_run is not None and _state_of(note) in _QUEUED:
        return Status("queued", None, ahead_of(site, subject))
    return Status("idle", None)


def ahead_of(site: Site, subject: str) -> str | None:
    """Another subject whose run is at work, or was started before this one's and waits."""
    for name, path in site.workspace.subject_locks().items():
        if name != subject and locks.holder_of(path) is not None:
            return name
    own = _read(site, subject)
    before = own.created if _is_alive(own) else float("inf")
    for path in sorted((site.files / "runs").glob("*.json")):
        note = _read(site, path.stem)
        if path.stem != subject and note.created < before and _is_alive(note):
            return path.stem
    return None


def start(site: Site, subject: str) -> str:
    """Start a run unless one is at work; return what happened, as a sentence."""
    from cli import services

    with locks.hold(site.files / "runs" / "start.lock", timeout_s=_TIMEOUT_S):
        present = status(site, subject)
        if present.phase != "idle":
            does = "waits already" if present.phase == "queued" else "is already at work"
            return f"A run of {subject} {does}: nothing was started."
        api = services.running_api(site.workspace)
        note = _deploy(api, subject) if api else None
        if note is None:
            note = _launch(site, subject)
        files.write_json(_file(site, subject), asdict(note))
    if note.waited:
        return f"The run of {subject} waits in the queue."
    where = "The worker of `dreambooth up` takes it on." if note.flow_run else ""
    return f"The run of {subject} is started. {where}".rstrip()


def stop(site: Site, subject: str) -> str:
    """Stop the run as Ctrl-C does: it saves first, and the next run continues it."""
    note, found = _read(site, subject), status(site, subject)
    import psutil

    if found.phase == "queued":
        if note.flow_run is not None:
            _cancel(str(note.api), note.flow_run)
        elif note.pid is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(note.pid).terminate()
        return "The run is taken from the queue."

    worker = _pid_of(found.holder)
    pids = {worker} if worker else set[int]()
    pids |= {note.pid} if note.pid and _is_alive(note) else set[int]()
    if not pids:
        return f"No run of {subject} is at work."
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).terminate()
    files.write_json(_file(site, subject), {**asdict(note), "stopping": sorted(pids)})
    return "Stopping. The run saves its work first; the next run continues it."


def memory_of(site: Site, subject: str) -> int:
    """Bytes of memory that the processes of a run hold."""
    worker = _pid_of(locks.holder_of(site.workspace.subject_lock(subject)))
    return 0 if worker is None else run_progress.memory_of(worker)


def _pid_of(holder: str | None) -> int | None:
    found = _HOLDER.search(holder or "")
    return int(found[1]) if found else None


def _launch(site: Site, subject: str) -> Note:
    """Run in a new session, so that neither Ctrl-C nor the end of the app reaches it."""
    import psutil

    log, waits = log_of(site, subject), ahead_of(site, subject) is not None
    waiting = [sys.executable, "-m", "app.turn", str(site.workspace.root), subject]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            waiting if waits else command("run", subject),
            cwd=site.workspace.root,
            env=dict(site.env),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # leaves no zombie
    created = psutil.Process(process.pid).create_time()
    return Note(pid=process.pid, created=created, waited=waits)


def _deploy(api: str, subject: str) -> Note | None:
    """Create a run of the deployment; None if it is not deployed. Raises StageError."""
    from prefect.exceptions import ObjectNotFound

    with _prefect(api) as client:
        try:
            found = client.read_deployment_by_name(_DEPLOYMENT)
        except ObjectNotFound:
            return None
        made = client.create_flow_run_from_deployment(found.id, parameters={"subject": subject})
    return Note(flow_run=str(made.id), api=api)


def _cancel(api: str, flow_run: str) -> None:
    from prefect.states import Cancelled

    with _prefect(api) as client:
        client.set_flow_run_state(UUID(flow_run), Cancelled())


def _state_of(note: Note) -> str | None:
    from prefect.exceptions import ObjectNotFound

    if note.api is None or note.flow_run is None:
        return None
    with contextlib.suppress(StageError, ObjectNotFound), _prefect(note.api) as client:
        state = client.read_flow_run(UUID(note.flow_run)).state
        return state.type.value if state else None
    return None


@contextlib.contextmanager
def _prefect(api: str) -> Iterator[SyncPrefectClient]:
    """Prefect's client, which knows its server's protection against forged requests.

    Raises StageError if the server refuses a request or does not answer.
    """
    from httpx import HTTPError
    from prefect.client.orchestration import SyncPrefectClient  # takes two seconds
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

    try:
        with SyncPrefectClient(api) as client:
            yield client
    except ObjectNotFound:
        raise
    except PrefectHTTPStatusError as error:
        found = f"status {error.response.status_code}"
        raise StageError("Prefect refused the request", got=found) from None
    except HTTPError as error:
        raise StageError("Prefect does not answer", got=str(error)) from None


def _is_alive(note: Note) -> bool:
    if note.pid is None:
        return False
    import psutil

    try:
        process = psutil.Process(note.pid)
        same = abs(process.create_time() - note.created) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _file(site: Site, subject: str) -> Path:
    return site.files / "runs" / f"{subject}.json"


def _read(site: Site, subject: str) -> Note:
    try:
        return Note(**json.loads(_file(site, subject).read_bytes()))
    except (OSError, ValueError, TypeError):
        return Note()
