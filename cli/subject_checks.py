"""What `dreambooth doctor` looks at for each subject: photos, outputs, and runs in progress."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil

from cli.finding import Check, check
from dreambooth_core import config, locks
from dreambooth_core.config import SubjectView
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.records import TrainingRun
from dreambooth_core.workspace import Workspace
from tasks import photos, run_progress, this_run

_STALLED_S = 1800.0


def examine(workspace: Workspace) -> Iterator[Check]:
    """Check every subject of the settings; one line if nothing is wrong with any of them."""
    try:
        views = config.load_views(workspace)
    except DreamBoothError:  # another check reports it
        return
    found = [finding for view in views for finding in _subject(workspace, view)]
    yield from found
    if not found:
        yield check("subjects", f"{len(views)}, with their photos and outputs")


def _subject(workspace: Workspace, view: SubjectView) -> Iterator[Check]:
    yield from _photos(workspace, view)
    yield from _outputs(workspace, view.name)
    yield from _run(workspace, view.name)


def _photos(workspace: Workspace, view: SubjectView) -> Iterator[Check]:
    folder = workspace.resolve(view.subject.instance_dir)
    if folder.is_dir():
        return
    pointer = photos.tracked_pointer(workspace, view)
    if pointer is None:
        hint = f"put 3 to 6 photos into {folder}, then `dvc add {view.subject.instance_dir}`"
        yield check(f"photos of {view.name}", f"no folder {folder}", state="wrong", hint=hint)
    else:
        yield check(
            f"photos of {view.name}",
            f"no folder {folder}, but {pointer} knows them",
            state="warning",
            hint=f"the next run restores them from DVC; to do it now: dvc pull {pointer}",
        )


def _outputs(workspace: Workspace, name: str) -> Iterator[Check]:
    """Find published files that are missing or empty; reading all bytes would take minutes."""
    folder = workspace.stage_dir(name, "train")
    run = TrainingRun.read_if_there(folder)
    if run is None:
        return
    paths = [folder / each.name / file for each in run.checkpoints for file in each.files]
    lost = [path for path in paths if not path.is_file() or path.stat().st_size == 0]
    if lost:
        found = f"{len(lost)} files are missing or empty, such as {lost[0]}"
        hint = f"dvc checkout --force train@{name}; if DVC's cache lacks it: dreambooth run {name}"
        yield check(f"checkpoints of {name}", found, state="wrong", hint=hint)


def _run(workspace: Workspace, name: str) -> Iterator[Check]:
    holder = locks.holder_of(workspace.subject_lock(name))
    if holder is None:
        if this_run.left_over(workspace, name):
            yield check(
                f"settings of {name}",
                "params.yaml still holds those of a run with --set that was killed",
                state="warning",
                hint=f"dreambooth run {name} takes them back",
            )
        return
    stopped = _stopped(holder)
    progress = run_progress.read(workspace, name)
    idle_s = time.time() - progress.updated if progress else 0.0
    if stopped is not None:
        hint = f"kill -CONT {stopped} lets it continue; kill -9 {stopped} ends it"
        found = f"{holder} has it and is suspended"
        yield check(f"run of {name}", found, state="wrong", hint=hint)
    elif progress is not None and idle_s > _STALLED_S:
        found = f"{holder} has not advanced in {progress.stage} for {idle_s / 60:.0f} min"
        hint = f"see .state/logs/{name}/; to end it: kill {progress.process}, then run it again"
        yield check(f"run of {name}", found, state="warning", hint=hint)


def _stopped(holder: str) -> int | None:
    """The process of a holder, as the lock file describes it, if it is suspended (Ctrl-Z)."""
    number = next((word for word in holder.split() if word.isdecimal()), None)
    if number is None:
        return None
    try:
        process = psutil.Process(int(number))
        return process.pid if process.status() == psutil.STATUS_STOPPED else None
    except psutil.Error:
        return None
