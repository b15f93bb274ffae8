"""Adds and removes subjects: photos, params.yaml, dvc.yaml and DVC, all or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cli import intake
from dreambooth_core import config, files, locks
from dreambooth_core.errors import DataError, Problem, SettingsError, StageError
from dreambooth_core.pipeline import input_checks
from dreambooth_core.workspace import Workspace
from tasks.dvc import Dvc
from tasks.photos import pointer_of

_LOCK_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class NewSubject:
    """The name and words that a user chooses for a new subject."""

    name: str
    class_noun: str
    identifier: str


@dataclass(frozen=True)
class _Made:
    """What an addition makes outside params.yaml, noted in the store in case it is killed."""

    photos: bool
    pointer: bool


def add(workspace: Workspace, new: NewSubject, images: Path, dvc: Dvc) -> dict[str, Any]:
    """Copy the usable photos, track them with DVC, write the entry; return the gate's report.

    Raises SettingsError for a wrong or taken name or word, DataError without any usable photo, and
    StageError if the files cannot be written. After an error the workspace is as it was.
    """
    entry = _entry(workspace, new, images)
    _check_workspace(workspace)
    settings = config.load_settings(workspace.params)
    _refuse_taken(workspace, settings, new.name, images)
    checked = config.check_settings(
        config.parse_yaml(_params_with(workspace, new.name, entry)), file=workspace.params.name
    )
    view = config.for_subject(checked, new.name)
    found = intake.inspect(workspace, view, images)
    with locks.hold(workspace.workspace_lock, timeout_s=_LOCK_TIMEOUT_S):
        _undo_killed(workspace)
        # Another process may have added a subject while the gate was at work.
        _refuse_taken(workspace, config.load_settings(workspace.params), new.name, images)
        with _undone_on_error(workspace, new.name, images):
            copied = _write(workspace, new.name, entry, found, dvc)
    return {
        "name": new.name,
        "instance_dir": view.subject.instance_dir,
        "copied": copied,
        "gate": found.report.to_json(),
        "warnings": input_checks.warnings(workspace.root, view),
    }


def remove(workspace: Workspace, name: str, *, photos: bool) -> dict[str, Any]:
    """Take a subject out of params.yaml and dvc.yaml; with `photos`, delete its photos as well.

    Raises SettingsError for an unknown name, and StageError during a run of the subject.
    """
    subject = config.for_subject(config.load_settings(workspace.params), name).subject
    with (
        not_running(workspace, name, then=f"subject remove {name}"),
        locks.hold(workspace.workspace_lock, timeout_s=_LOCK_TIMEOUT_S),
    ):
        settings = config.load_settings(workspace.params)
        config.for_subject(settings, name)
        # The entry last: until then, the same command can be repeated.
        _edit(workspace.root / "dvc.yaml", lambda text: _without_plot(text, name))
        _edit(workspace.params, lambda text: config.remove_entry(text, "subjects", name))
        others = [each.instance_dir for key, each in settings.subjects.items() if key != name]
        deleted = photos and _delete_photos(workspace, subject.instance_dir, others)
    kept = [] if deleted else [subject.instance_dir]
    if workspace.places(name).outputs.is_dir():
        kept.append(f"work/{name}")
    return {"name": name, "photos_deleted": deleted, "kept": kept, "subjects_left": len(others)}


def is_running(workspace: Workspace, name: str) -> bool:
    """Whether a run of the subject's stages is in progress."""
    if not workspace.subject_lock(name).is_file():
        return False
    try:
        with locks.hold(workspace.subject_lock(name), timeout_s=0):
            return False
    except StageError:
        return True


@contextmanager
def not_running(workspace: Workspace, name: str, *, then: str) -> Iterator[None]:
    """Keep runs of a subject from starting. Raises StageError if one is in progress."""
    try:
        with locks.hold(workspace.subject_lock(name), timeout_s=0):
            yield
    except StageError as error:
        if not is_running(workspace, name):
            raise
        raise StageError(
            f"a run of {name} is in progress",
            got=str(error.what),
            hint=f"stop it or wait for its end, then `dreambooth {then}`",
        ) from None


# ---- checks -----------------------------------------------------------------------------------


def _entry(workspace: Workspace, new: NewSubject, images: Path) -> dict[str, Any]:
    """The entry for params.yaml. Raises SettingsError with the option of every mistake."""
    raw, problems = entry_of(workspace, new)
    try:
        intake.check_folder(images)
    except DataError as error:
        if not problems:
            raise
        problems.append(Problem(str(error)))
    if problems:
        raise SettingsError.of(problems)
    return raw


def entry_of(workspace: Workspace, new: NewSubject) -> tuple[dict[str, Any], list[Problem]]:
    """The entry for params.yaml, and its mistakes: one without an option is about the name."""
    raw: dict[str, Any] = {
        "instance_dir": workspace.instance_dir(new.name),
        "identifier": new.identifier,
        "class_noun": new.class_noun,
        "prompts": None,
        "overrides": {},
        "choice": None,
    }
    problems: list[Problem] = []
    try:
        config.check_name(new.name)
    except ValueError as error:
        problems.append(Problem(f"{error}; found: {new.name!r}"))
        raw["instance_dir"] = workspace.instance_dir("any")
    try:
        config.SubjectSettings.model_validate(raw)
    except ValidationError as error:
        problems += config.problems_of(
            error, config.SubjectSettings, lambda at: f"--{at[0]}".replace("_", "-")
        )
    return raw, problems


def _check_workspace(workspace: Workspace) -> None:
    """Raise SettingsError unless DVC is set up here."""
    config.read_yaml(workspace.root / "dvc.yaml")
    if not (workspace.root / ".dvc").is_dir():
        raise SettingsError(f"{workspace.root} is not set up for DVC", hint="dvc init")


def _refuse_taken(workspace: Workspace, settings: config.Settings, name: str, images: Path) -> None:
    if name in settings.subjects:
        raise SettingsError(
            f"the subject {name!r} already exists",
            hint=f"choose another name, or first `dreambooth subject remove {name}`",
        )
    relative = workspace.instance_dir(name)
    is_leftover = _marker(workspace, name).is_file()
    target = workspace.resolve(relative)
    if target.exists() and not is_leftover and not intake.is_same(images, target):
        raise DataError(
            f"{relative} already exists",
            hint=f"add the photos in it with `--images {relative}`, or choose another name",
        )


# ---- writing ----------------------------------------------------------------------------------


def _write(
    workspace: Workspace,
    name: str,
    entry: Mapping[str, Any],
    found: intake.Intake,
    dvc: Dvc,
) -> list[str]:
    """Make everything that a subject consists of; params.yaml, which names it, comes last."""
    target = workspace.resolve(entry["instance_dir"])
    copied: list[str] = []
    if not intake.is_same(found.folder, target):
        with files.atomic_dir(target) as aside:
            copied = intake.copy(found, aside)
    dvc.add_unlocked(entry["instance_dir"])
    _edit(workspace.root / "dvc.yaml", lambda text: _with_plot(text, name))
    files.write_bytes(workspace.params, _params_with(workspace, name, entry).encode())
    _marker(workspace, name).unlink()
    return copied


def _params_with(workspace: Workspace, name: str, entry: Mapping[str, Any]) -> str:
    text = config.read_text(workspace.params)
    return config.add_entry(text, "subjects", name, dict(entry))


def _plot(name: str) -> dict[str, Any]:
    return {
        f"work/{name}/train/metrics.csv": {
            "x": "step",
            "y": "loss",
            "title": f"Training loss of {name}",
        }
    }


def _with_plot(text: str, name: str) -> str:
    """The text of dvc.yaml with the plot of a subject's loss: DVC has no loop over plots."""
    plots = config.parse_yaml(text).get("plots")
    if plots is None or _plot(name) in plots:
        return text
    return config.add_item(text, "plots", _plot(name))


def _without_plot(text: str, name: str) -> str:
    return config.remove_item(text, "plots", _plot(name))


def _edit(path: Path, change: Any) -> None:
    """Replace a file's text, unless it stays the same."""
    before = config.read_text(path)
    after = change(before)
    if after != before:
        files.write_bytes(path, after.encode())


# ---- undoing ----------------------------------------------------------------------------------


def _marker(workspace: Workspace, name: str) -> Path:
    return workspace.state / "adding" / f"{name}.json"


@contextmanager
def _undone_on_error(workspace: Workspace, name: str, images: Path) -> Iterator[None]:
    """Note what the block makes, and undo it if the block fails."""
    target = workspace.resolve(workspace.instance_dir(name))
    made = _Made(photos=not intake.is_same(images, target), pointer=not pointer_of(target).exists())
    files.write_json(_marker(workspace, name), asdict(made))
    try:
        yield
    except BaseException as error:
        _undo(workspace, name, made)
        if isinstance(error, OSError):
            raise StageError(
                f"the subject {name!r} could not be added, and nothing has changed",
                got=f"{error.strerror}: {error.filename}",
                hint="make the file or the disk writable, then repeat the command",
            ) from None
        raise


def _undo_killed(workspace: Workspace) -> None:
    """Undo every addition whose process was killed; the caller holds the workspace lock."""
    names = config.load_settings(workspace.params).subjects
    for marker in sorted(workspace.state.glob("adding/*.json")):
        if marker.stem in names:  # killed after the last write
            marker.unlink()
        else:
            _undo(workspace, marker.stem, _Made(**json.loads(marker.read_bytes())))


def _undo(workspace: Workspace, name: str, made: _Made) -> None:
    folder = workspace.resolve(workspace.instance_dir(name))
    if name in config.load_settings(workspace.params).subjects:
        _edit(workspace.params, lambda text: config.remove_entry(text, "subjects", name))
    _edit(workspace.root / "dvc.yaml", lambda text: _without_plot(text, name))
    if made.pointer:
        _untrack(folder)
    if made.photos:
        shutil.rmtree(folder, ignore_errors=True)
    for aside in folder.parent.glob(f".aside-{name}-*"):
        shutil.rmtree(aside, ignore_errors=True)
    _marker(workspace, name).unlink(missing_ok=True)


def _untrack(folder: Path) -> None:
    """Remove the .dvc file of a folder, and the line that DVC writes to .gitignore."""
    pointer_of(folder).unlink(missing_ok=True)
    ignored = folder.parent / ".gitignore"
    if not ignored.is_file():
        return
    lines = ignored.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = "".join(line for line in lines if line.strip() != f"/{folder.name}")
    if kept:
        files.write_text(ignored, kept)
    else:
        ignored.unlink()


def _delete_photos(workspace: Workspace, instance_dir: str, others: list[str]) -> bool:
    """Delete a subject's photos, unless they are the user's own folder or another subject's."""
    folder = workspace.resolve(instance_dir).resolve()
    used = [workspace.resolve(other).resolve() for other in others]
    if not folder.is_relative_to(workspace.root.resolve() / "data") or any(
        other.is_relative_to(folder) or folder.is_relative_to(other) for other in used
    ):
        return False
    _untrack(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return True
