"""The photos of a new subject: what the data gate says of each, and copies of the usable ones."""

from __future__ import annotations

import shlex
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.config import SubjectView
from dreambooth_core.data import gate, messages
from dreambooth_core.data.captions import METADATA
from dreambooth_core.data.listing import printable
from dreambooth_core.data.masks import FOLDER as MASKS
from dreambooth_core.errors import DataError
from dreambooth_core.pipeline import StageContext
from dreambooth_core.pipeline import validate as stage
from dreambooth_core.records import GateReport
from dreambooth_core.workspace import Workspace

_HINT = "put 3 to 6 photos of the subject there, or name another folder with --images"


@dataclass(frozen=True)
class Intake:
    """A user's folder, and the gate's report on it."""

    folder: Path
    report: GateReport


def is_same(images: Path, target: Path) -> bool:
    """Whether two paths lead to the same folder."""
    return images.resolve() == target.resolve()


def inspect(workspace: Workspace, view: SubjectView, images: Path) -> Intake:
    """Let the data gate inspect a user's folder. Raises DataError without any usable photo."""
    _refuse_own_folder(workspace, view, images)
    subject = view.subject.model_copy(update={"instance_dir": str(images.absolute())})
    context = StageContext(
        view.model_copy(update={"subject": subject}), workspace.places(view.name)
    )
    try:
        with stage.inspected(context) as inspection:
            gate.require_usable(inspection.report)
            return Intake(images, inspection.report)
    except DataError as error:
        usual = messages.FOLDER_HINT.format(subject=view.name)
        hint = _HINT if error.hint == usual else error.hint
        raise DataError(f"--images: {error.what}", got=error.got, hint=hint) from None


def copy(intake: Intake, target: Path) -> list[str]:
    """Copy the accepted photos, their captions and masks; return the names of the copies."""
    accepted = {image.name for image in intake.report.accepted}
    photos = [path for path in intake.folder.iterdir() if printable(path.name) in accepted]
    captions = [path.with_suffix(".txt") for path in photos]
    stems = {path.stem for path in photos}
    masks = [path for path in (intake.folder / MASKS).glob("*") if path.stem in stems]
    wanted = sorted({*photos, *captions, intake.folder / METADATA, *masks})
    copied = [path for path in wanted if path.is_file()]
    names = [printable(path.relative_to(intake.folder).as_posix()) for path in copied]
    for path, name in zip(copied, names, strict=True):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target / name)
    return names


def check_folder(images: Path) -> None:
    """Raise DataError unless `images` is a folder that can be opened."""
    try:
        is_folder = stat.S_ISDIR(images.stat().st_mode)
    except OSError as error:
        raise DataError(
            "--images: the folder of photos cannot be opened",
            got=f"{printable(str(images))} ({error.strerror})",
            hint=_HINT,
        ) from None
    if not is_folder:
        raise DataError(
            "--images is a file, not a folder",
            got=printable(str(images)),
            hint=f"name the folder that has the photos: --images {shlex.quote(str(images.parent))}",
        )


def _refuse_own_folder(workspace: Workspace, view: SubjectView, images: Path) -> None:
    found, own = images.resolve(), (workspace.root / "data" / "instance").resolve()
    is_inside = found.is_relative_to(own) or own.is_relative_to(found)
    if is_inside and not is_same(images, workspace.resolve(view.subject.instance_dir)):
        raise DataError(
            "--images is inside this project's own folder of photos, or contains it",
            got=printable(str(images)),
            hint=_HINT
            if own.is_relative_to(found)
            else f"cp -r {shlex.quote(str(images))} /tmp/{view.name}, then repeat the command with "
            f"--images /tmp/{view.name}",
        )
