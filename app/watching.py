"""Reads the state of a training from the workspace: steps, losses, scored checkpoints, the end."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.runs import log_of
from app.site import Site
from cli import status
from dreambooth_core.pipeline import live_scores
from dreambooth_core.pipeline.live_scores import ScoredRow
from dreambooth_core.records import Selection
from dreambooth_core.training.progress import ProgressLine, numbers_in, read_log
from dreambooth_core.workspace import STAGES
from tasks import run_progress

_TAIL = 200_000
_ERROR = re.compile(r"^error: (.*)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Training:
    """The newest training of a subject."""

    step: int
    total: int
    rate: float | None
    left_s: int | None
    losses: list[tuple[int, float]]
    scored: list[ScoredRow]

    @property
    def key(self) -> tuple[int, int]:
        """Changes when the curve or the checkpoints do."""
        return len(self.losses), len(self.scored)


def training_of(site: Site, subject: str) -> Training | None:
    """The training that was started last, or None."""
    found = _newest_job(site, subject)
    if found is None:
        return None
    folder, job = found
    last = job.get("ends_at") or job["train"]["max_train_steps"]
    lines = read_log(_tail(site.workspace.places(subject).log_file("train")), job["fingerprint"])
    losses = _losses(folder, lines)
    step = losses[-1][0] if losses else 0
    numbers = numbers_in(lines[-1].text) if lines else {}
    rate = numbers.get("steps_per_second")
    left = int(numbers["seconds_left"]) if "seconds_left" in numbers else None
    return Training(step, last, rate, left, losses, live_scores.read(folder))


def stage_now(site: Site, subject: str) -> str | None:
    """The present stage and its progress, such as "class-images 16 of 128"."""
    found = run_progress.read(site.workspace, subject)
    return f"{found.stage} {found.done} of {found.total}" if found else None


def error_of(site: Site, subject: str) -> str | None:
    """Why the last run of the app's failed; None if it did not, or was stopped."""
    log = log_of(site, subject)
    found = _ERROR.search(_tail(log))
    later = max(finished_stages(site, subject).values(), default=0.0)
    if found is None or later > log.stat().st_mtime or found[1].startswith("stopped;"):
        return None
    return found[1].strip()


def finished_stages(site: Site, subject: str) -> dict[str, float]:
    """When each stage last wrote its output, in seconds since the epoch."""
    found = {stage: status.finished_at(site.workspace, subject, stage) for stage in STAGES}
    return {stage: at for stage, at in found.items() if at is not None}


def selected(site: Site, subject: str) -> str | None:
    """The name of the selected checkpoint."""
    found = Selection.read_if_there(site.workspace.stage_dir(subject, "select"))
    return found.best if found else None


def _newest_job(site: Site, subject: str) -> tuple[Path, dict[str, Any]] | None:
    paths = site.workspace.state.glob("train/*/job.json")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        with contextlib.suppress(OSError, ValueError):
            job = json.loads(path.read_bytes())
            if job["subject"] == subject:
                return path.parent, job
    return None


def _losses(folder: Path, lines: Sequence[ProgressLine]) -> list[tuple[int, float]]:
    """Each saved update's loss, then those of the progress lines."""
    tables = [*folder.glob("resume/*/metrics.csv"), *folder.glob("out/metrics.csv")]
    found: dict[int, float] = {}
    for table in sorted(tables, key=lambda path: path.stat().st_size)[-1:]:
        for line in table.read_text().splitlines()[1:]:
            step, loss, *_ = line.split(",")
            found[int(step)] = float(loss)
    for line in lines:
        numbers = numbers_in(line.text)
        if "loss" in numbers:
            found.setdefault(line.done, numbers["loss"])
    return sorted(found.items())


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _TAIL))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
