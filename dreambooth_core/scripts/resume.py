"""The checkpoint to resume from, and the run that checkpoints belong to.

Scripts can run in one folder again and again, so a folder can have checkpoints of several runs.
Each record names its run; `latest` and the limit of checkpoints apply to one run.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from dreambooth_core import files
from dreambooth_core.errors import SettingsError
from dreambooth_core.records import RECORD_NAME
from dreambooth_core.scripts import checkpoints
from dreambooth_core.scripts.checkpoints import ResumingRun, ScriptCheckpoint
from dreambooth_core.scripts.settings import ScriptSettings
from dreambooth_core.training import progress, protocols
from dreambooth_core.training.distributed import broadcast_from_main
from dreambooth_core.training.progress import MetricsRow, log_line

LATEST = "latest"
_SCRATCH = "resumed"
"""The folder in `state_dir` of a state that is put together for a resume."""

Found = tuple[Path, ScriptCheckpoint]
"""A verified checkpoint to resume from."""


@dataclass(frozen=True)
class Start:
    """The completed steps of a run, their metrics, and the state to continue from."""

    step: int = 0
    rows: list[MetricsRow] = field(default_factory=list[MetricsRow])
    state: Path | None = None


def checkpoint_of(settings: ScriptSettings) -> Found | None:
    """The checkpoint that --resume_from_checkpoint names. Raises SettingsError."""
    name = settings.flags.resume_from_checkpoint
    if name is None:
        return None
    found = find_checkpoint(settings.output_dir, name)
    if found is None:
        log_line(f"no whole checkpoint in {settings.output_dir}: a new run begins")
    else:
        log_line(f"resuming from {found[0].name}")
    return found


def seed_of(settings: ScriptSettings, found: Found | None) -> int:
    """The seed of the flags, else of the checkpoint, else the script's default or a random one."""
    flags = settings.flags
    if found is not None and "seed" not in flags.model_fields_set:
        return int(found[1].settings["seed"])
    if flags.seed is not None:
        return flags.seed
    seed = secrets.randbelow(2**31)
    log_line(f"seed {seed} (a random one; give it as --seed to have the same run again)")
    return seed


def start_of(
    settings: ScriptSettings,
    found: Found | None,
    *,
    recorded: dict[str, Any],
    shapes: Mapping[str, Sequence[int]],
    accelerator: Accelerator,
) -> Start:
    """The start of a run that trains weights of `shapes`.

    Logs settings that differ from the checkpoint's. Raises SettingsError if it has other weights.
    """
    if found is None:
        return Start()
    path, record = found
    if accelerator.is_main_process:
        for change in checkpoints.changes(record, recorded):
            log_line(f"note: another setting than the checkpoint's: {change}")
    checkpoints.check_fits(path, shapes)
    launcher = settings.launcher
    kind = protocols.launch_state_kind(launcher.strategy, num_processes=launcher.num_processes)
    run, scratch = ResumingRun(recorded, kind, shapes), settings.state_dir / _SCRATCH
    state = broadcast_from_main(
        accelerator, lambda: checkpoints.state_to_resume(path, record, run, scratch=scratch)
    )
    rows = progress.from_csv(checkpoints.read_metrics(path), last_step=record.step)
    return Start(record.step, rows, state)


def begin(settings: ScriptSettings, start: Start, *, last: int) -> None:
    """Remove the scratch state, which is loaded, and log where the training starts."""
    shutil.rmtree(settings.state_dir / _SCRATCH, ignore_errors=True)
    if start.step < last:
        log_line(f"training starts after step {start.step} of {last}")
    else:
        log_line(
            f"note: nothing is left to train, as --max_train_steps is {last}: the weights of "
            f"checkpoint-{start.step} are the result"
        )


def run_of(
    settings: ScriptSettings,
    found: Found | None,
    *,
    recorded: dict[str, Any],
    images: tuple[str, ...],
) -> str:
    """The run that new checkpoints belong to; logs checkpoints of other runs."""
    folder = settings.output_dir
    if found and found[1].images not in ((), images):
        log_line("note: other photos or class images than the checkpoint's")
    run = name_run(folder, found, settings=recorded, images=images)
    if others := foreign_checkpoints(folder, run):
        log_line(
            f"note: {', '.join(others)} in {folder} are of another run: they stay, until a "
            "checkpoint of the same step takes their place; `latest` is of this run as soon as "
            "it has saved one"
        )
    return run


def name_run(
    folder: Path, found: Found | None, *, settings: dict[str, Any], images: Sequence[str]
) -> str:
    """The name of a new run, or of the run that continues from `found`.

    Equal settings and images give equal names, because they give equal bytes. A resume from an
    earlier step with other settings is a new run.
    """
    if found is None:
        return files.digest_of([checkpoints.effective(settings), list(images)])
    record = found[1]
    is_last = record.step == max(
        other.step for _, other in checkpoints.records(folder, run=record.run)
    )
    if is_last or not checkpoints.changes(record, settings):
        return record.run
    return files.digest_of([record.run, record.step, checkpoints.effective(settings)])


def foreign_checkpoints(folder: Path, run: str) -> list[str]:
    """Names of the folder's checkpoints from other runs or other programs."""
    own = {path for path, _ in checkpoints.records(folder, run=run)}
    return [path.name for path in checkpoints.folders(folder) if path not in own]


def find_checkpoint(folder: Path, name: str) -> Found | None:
    """The checkpoint called `name`, or for "latest" the newest whole one; None if there is none.

    Raises SettingsError for a name that is not there, not whole, or not of this project.
    """
    if name == LATEST:
        return _latest(folder)
    path = folder / Path(name).name
    record = checkpoints.read_whole(path)
    if record is None:
        whole = [p.name for p in checkpoints.folders(folder) if checkpoints.read_whole(p)]
        raise SettingsError(
            f"--resume_from_checkpoint: {path.name} {_why_not(path)}",
            got=str(path),
            allowed=", ".join([*whole, LATEST]) if whole else "no checkpoint of this project's yet",
        )
    return path, record


def _why_not(path: Path) -> str:
    if not path.is_dir():
        return "does not exist"
    if _is_foreign(path):
        return "was not made by this project's scripts, and its state cannot be read"
    return "is not whole"


def _is_foreign(path: Path) -> bool:
    """Our checkpoints are renamed into place with their record, so one without is foreign."""
    return not (path / RECORD_NAME).exists()


def _latest(folder: Path) -> Found | None:
    """The highest complete step of the run that wrote last. Raises SettingsError."""
    there = checkpoints.folders(folder)
    if there and all(map(_is_foreign, there)):
        raise SettingsError(
            "--resume_from_checkpoint: latest finds only checkpoints of other scripts",
            got=", ".join(path.name for path in there),
            hint="their state cannot be read; leave the flag out to begin a new run",
        )
    for path in there:
        if checkpoints.ScriptCheckpoint.read_if_there(path) is None:
            log_line(f"warning: {path.name} {_why_not(path)}: passed by")
    last = written_last(folder)
    for path, record in reversed(checkpoints.records(folder, run=last[1].run)) if last else ():
        if checkpoints.read_whole(path):
            return path, record
        log_line(f"warning: {path.name} is not whole: passed by")
    return None


def written_last(folder: Path) -> Found | None:
    """The checkpoint that was saved last, at any step; its files are not verified."""
    found = checkpoints.records(folder)
    return max(found, key=lambda one: (one[0] / RECORD_NAME).stat().st_mtime_ns, default=None)
