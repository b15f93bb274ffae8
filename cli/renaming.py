"""Renames a subject: photos, settings, DVC's files, outputs, store and registry, all or nothing.

Nothing is trained again: dvc.lock and the outputs get the new name, and keep their hashes. The one
output that names the subject's model, the record of its version, is committed to DVC again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli import subjects
from dreambooth_core import config, files, locks
from dreambooth_core.config import Settings
from dreambooth_core.errors import SettingsError, StageError
from dreambooth_core.pipeline import retention
from dreambooth_core.workspace import Workspace
from tasks import this_run
from tasks.dvc import Dvc
from tasks.photos import pointer_of

_LOCK_TIMEOUT_S = 300.0
_OF_THE_STORE = ("logs", "trackers", "sweep")


@dataclass(frozen=True)
class _Names:
    """Both names of a subject, of its folder of photos, and of its model."""

    old: str
    new: str
    photos: tuple[str, str] | None
    """None if the photos stay where they are: in the user's own folder, or shared."""
    model: tuple[str, str]


def rename(
    workspace: Workspace, old: str, new: str, *, dvc: Dvc, env: Mapping[str, str]
) -> dict[str, Any]:
    """Rename a subject and its registered model. After an error, everything is as it was.

    After a kill, the same call finishes the work. Raises SettingsError for an unknown, wrong or
    taken name, StageError during a run of the subject, and RegistryError if MLflow cannot do it.
    """
    note = workspace.renaming(old)
    settings = config.load_settings(workspace.params)
    was_killed = note.is_file() and json.loads(note.read_bytes())["new"] == new
    if not was_killed:
        config.for_subject(settings, old)
    names = _names(workspace, settings, old, new)
    if not was_killed:
        _refuse(workspace, names)
    with (
        subjects.not_running(workspace, old, then=f"subject rename {old} {new}"),
        subjects.not_running(workspace, new, then=f"subject rename {old} {new}"),
    ):
        this_run.take_back(workspace, old)
        registry = _registry(workspace, env)
        if registry is not None and not was_killed:
            registry.refuse_taken(names.model[1])
        is_current = not dvc.status([f"register@{old}"]) if not was_killed else False
        with locks.hold(workspace.workspace_lock, timeout_s=_LOCK_TIMEOUT_S):
            files.write_json(note, {"new": new})
            with _undone_on_error(note, old) as changes:
                has_versions = registry is not None and changes.rename_model(registry, names)
                _change_all(workspace, names, changes)
                if is_current and workspace.stage_dir(new, "register").is_dir():
                    dvc.commit_unlocked(f"register@{new}")
            note.unlink()
    return {
        "old": old,
        "name": new,
        "instance_dir": config.load_view(workspace, new).subject.instance_dir,
        "model": names.model[1] if has_versions else None,
        "mentions": _mentions(workspace, names),
    }


def _names(workspace: Workspace, settings: Settings, old: str, new: str) -> _Names:
    folders = workspace.instance_dir(old), workspace.instance_dir(new)
    own = settings.subjects.get(old) or settings.subjects[new]  # the latter after a kill
    others = [each.instance_dir for each in settings.subjects.values() if each is not own]
    is_ours = own.instance_dir in folders and folders[0] not in others
    prefix = settings.registry.model_name_prefix
    return _Names(
        old,
        new,
        photos=folders if is_ours else None,
        model=(f"{prefix}-{old}", f"{prefix}-{new}"),
    )


def _refuse(workspace: Workspace, names: _Names) -> None:
    """Raise SettingsError for a name that is wrong, taken, or looks like another."""
    new = names.new
    try:
        config.check_name(new)
    except ValueError as error:
        raise SettingsError(str(error), got=repr(new)) from None
    if new in config.load_settings(workspace.params).subjects:
        raise SettingsError(f"the subject {new!r} already exists", hint="choose another name")
    renamed = config.parse_yaml(_renamed_params(config.read_text(workspace.params), names))
    config.check_settings(renamed, file=workspace.params.name)
    places = [workspace.places(new).outputs]
    if names.photos is not None:
        folder = workspace.resolve(names.photos[1])
        places += [folder, pointer_of(folder)]
    for place in filter(Path.exists, places):
        raise SettingsError(
            f"{place.relative_to(workspace.root)} already exists, of an earlier subject {new!r}",
            hint="move or delete it, or choose another name",
        )


class _Registry:
    """The registry of a workspace that has one."""

    def __init__(self, workspace: Workspace, uri: str | None) -> None:
        from dreambooth_core.registry import renaming, tracking  # MLflow takes seconds to import

        self._renaming = renaming
        self._tracking = tracking.resolve_tracking(workspace, uri=uri)
        self.exists = renaming.has_store(self._tracking)

    def refuse_taken(self, name: str) -> None:
        self._renaming.refuse_taken(self._tracking, name)

    def rename(self, old: str, new: str) -> bool:
        return self._renaming.rename(self._tracking, old, new)


def _registry(workspace: Workspace, env: Mapping[str, str]) -> _Registry | None:
    found = _Registry(workspace, env.get("MLFLOW_TRACKING_URI"))
    return found if found.exists else None


# ---- the changes ------------------------------------------------------------------------------


class _Changes:
    """Changes that can be undone in reverse order. Each is skipped if it is already made."""

    def __init__(self, undo: ExitStack) -> None:
        self._undo = undo

    def move(self, source: Path, target: Path) -> None:
        """Rename a file or folder."""
        if source.exists() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
            self._undo.callback(target.rename, source)

    def edit(self, path: Path, change: Callable[[str], str]) -> None:
        """Change the text of a file that may be missing."""
        if not path.is_file():
            return
        before = config.read_text(path)
        after = change(before)
        if after != before:
            files.write_bytes(path, after.encode())
            self._undo.callback(files.write_bytes, path, before.encode())

    def rename_model(self, registry: _Registry, names: _Names) -> bool:
        """Rename the registered model and its experiment; return whether there is a model."""
        old, new = names.model
        self._undo.callback(registry.rename, new, old)
        return registry.rename(old, new)


@contextmanager
def _undone_on_error(note: Path, old: str) -> Iterator[_Changes]:
    try:
        with ExitStack() as undo:
            yield _Changes(undo)
            undo.pop_all()
    except BaseException as error:
        note.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StageError(
                f"the subject {old!r} could not be renamed, and nothing has changed",
                got=f"{error.strerror}: {error.filename}",
                hint="make the file or the disk writable, then repeat the command",
            ) from None
        raise


def _change_all(workspace: Workspace, names: _Names, changes: _Changes) -> None:
    """Rename everything outside the registry; params.yaml, which names the rest, comes last."""
    old, new = names.old, names.new
    _move_photos(workspace, names, changes)
    changes.move(workspace.places(old).outputs, workspace.places(new).outputs)
    for name in ("record.json", "version.json"):
        record = workspace.stage_dir(new, "register") / name
        changes.edit(record, lambda text: _field(text, "name", *names.model))
    for part in _OF_THE_STORE:
        changes.move(workspace.state / part / old, workspace.state / part / new)
    for training in (workspace.state / "train").glob("*"):
        if retention.subject_of(training) == old:
            changes.edit(training / "job.json", lambda text: _field(text, "subject", old, new))
    changes.edit(workspace.root / "dvc.lock", lambda text: _renamed_lock(text, names))
    changes.edit(workspace.root / "dvc.yaml", lambda text: _renamed_plot(text, old, new))
    changes.edit(workspace.params, lambda text: _renamed_params(text, names))


def _move_photos(workspace: Workspace, names: _Names, changes: _Changes) -> None:
    if names.photos is None:
        return
    source, target = map(workspace.resolve, names.photos)
    changes.move(source, target)
    changes.move(pointer_of(source), pointer_of(target))
    old, new = re.escape(names.old), names.new
    changes.edit(
        pointer_of(target), lambda text: re.sub(rf"(?m)^([- ] path: ){old}$", rf"\g<1>{new}", text)
    )
    ignored = source.parent / ".gitignore"
    changes.edit(ignored, lambda text: re.sub(rf"(?m)^/{old}$", f"/{new}", text))


def _field(text: str, key: str, old: str, new: str) -> str:
    """The JSON text with the new value of a field; a value that differs stays."""
    return text.replace(f'"{key}": "{old}"', f'"{key}": "{new}"', 1)


def _renamed_params(text: str, names: _Names) -> str:
    if names.old not in config.parse_yaml(text)["subjects"]:
        return text
    text = config.rename_key(text, ("subjects", names.old), names.new)
    if names.photos is None:
        return text
    return config.set_value(text, ("subjects", names.new, "instance_dir"), names.photos[1])


def _renamed_plot(text: str, old: str, new: str) -> str:
    text = text.replace(f"work/{old}/train/metrics.csv", f"work/{new}/train/metrics.csv")
    return re.sub(rf"(Training loss of ){re.escape(old)}(?![\w-])", rf"\g<1>{new}", text)


def _renamed_lock(text: str, names: _Names) -> str:
    """The text of dvc.lock with the subject's stages under the new name, and the same hashes."""
    stages = re.split(r"(?m)^(?=  \S+@\S+:$)", text)
    is_own = re.compile(rf"  \S+@{re.escape(names.old)}:\n")
    return "".join(_renamed_stage(s, names) if is_own.match(s) else s for s in stages)


def _renamed_stage(text: str, names: _Names) -> str:
    old, new = re.escape(names.old), names.new
    patterns = [
        (rf"^(  \S+@){old}(:)$", new),
        (rf"^(    cmd: .* --subject ){old}()$", new),
        (rf"^(.* path: work/){old}(/.*)$", new),
        (rf"^( +subjects\.){old}([.:].*)$", new),
    ]
    if names.photos is not None:
        folder = re.escape(names.photos[0])
        patterns.append((rf"^(.* (?:path|instance_dir): ){folder}()$", names.photos[1]))
    for pattern, to in patterns:
        text = re.sub(f"(?m){pattern}", rf"\g<1>{to}\g<2>", text)
    return text


def _mentions(workspace: Workspace, names: _Names) -> list[str]:
    """Where the user's own files still name the subject or its model."""
    found: list[str] = []
    params = config.read_text(workspace.params)
    if re.search(rf"models:/{re.escape(names.model[0])}[@/]", params):
        found.append(f"params.yaml: train.init_from names models:/{names.model[0]}")
    deployments = workspace.root / "prefect.yaml"
    if deployments.is_file() and re.search(
        rf"(?m)^ +subject: {re.escape(names.old)}\s*$", config.read_text(deployments)
    ):
        found.append(f"prefect.yaml: a deployment has the subject {names.old}")
    return found
