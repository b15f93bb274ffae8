"""The examination of a folder of photos: verdicts, squares, the gate's report; kept on disk.

A look belongs to the files of a folder and the settings that judge them. A change of either makes a
new one. One process at a time examines a folder, whatever the number of browsers.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import photo_check
from app.commands import run_child
from app.site import Site
from dreambooth_core import files, locks
from dreambooth_core.errors import DreamBoothError, StageError

_NAME_LENGTH = 16
_at_work: dict[Path, asyncio.Task[None]] = {}
_slot = asyncio.Semaphore(1)


@dataclass(frozen=True)
class Look:
    """The state of a look: `rows` of the photos examined so far, and the report at the end."""

    rows: list[dict[str, Any]]
    report: dict[str, Any] | None
    error: str | None
    folder: Path

    @property
    def is_done(self) -> bool:
        """Whether all photos were examined, or none can be."""
        return self.report is not None or self.error is not None


def of_subject(site: Site, name: str, instance_dir: str) -> tuple[Path, Path, str]:
    """The place of the look at a subject's photos, for `start` and `read`."""
    return site.workspace.resolve(instance_dir), site.files / "looks" / name, name


def start(site: Site, place: tuple[Path, Path, str]) -> None:
    """Examine the photos in another process, unless that is done or under way."""
    photos, home, name = place
    out = _folder(site, place)
    if home in _at_work or (out / photo_check.REPORT).is_file() or _error_of(out):
        return
    task = asyncio.get_running_loop().create_task(_examine(site, photos, out, name))
    _at_work[home] = task
    task.add_done_callback(lambda _: _at_work.pop(home, None))


def read(site: Site, place: tuple[Path, Path, str]) -> Look:
    """The findings so far."""
    out = _folder(site, place)
    rows: list[dict[str, Any]] = []
    if (out / photo_check.VERDICTS).is_file():
        lines = (out / photo_check.VERDICTS).read_text("utf-8").split("\n")[:-1]
        rows = [json.loads(line) for line in lines]
    report = None
    if (out / photo_check.REPORT).is_file():
        report = json.loads((out / photo_check.REPORT).read_bytes())
    return Look(rows, report, _error_of(out), out)


async def _examine(site: Site, photos: Path, out: Path, name: str) -> None:
    async with _slot:
        try:
            with locks.hold(out.parent / "look.lock", timeout_s=0):
                for old in out.parent.iterdir():
                    if old.is_dir():
                        shutil.rmtree(old, ignore_errors=True)
                out.mkdir()
                words = (str(site.workspace.root), name, str(photos), str(out))
                _, last = await run_child(site, "app.photo_check", *words)
        except StageError:
            return  # another server of this workspace looks at them
    is_told = (out / photo_check.REPORT).is_file() or _error_of(out)
    if not is_told and out.is_dir():
        files.write_json(out / photo_check.ERROR, {"what": f"the check failed: {last}"})


def _error_of(out: Path) -> str | None:
    if not (out / photo_check.ERROR).is_file():
        return None
    parts = json.loads((out / photo_check.ERROR).read_bytes())
    return str(DreamBoothError(parts.pop("what"), **parts))


def _folder(site: Site, place: tuple[Path, Path, str]) -> Path:
    photos, home, name = place
    settings = photo_check.data_settings(site.workspace, name)
    unread = set[str]() if settings.captions else {".txt", ".jsonl"}
    listed: list[list[Any]] = []
    for path in sorted(photos.rglob("*")) if photos.is_dir() else ():
        is_mask = path.parent != photos
        is_read = settings.masks == "files" if is_mask else path.suffix not in unread
        if is_read and not files.is_aside(path.name):
            found = path.lstat()
            listed.append([str(path.relative_to(photos)), found.st_size, found.st_mtime_ns])
    digest = files.digest_of([listed, settings.model_dump(mode="json")])
    return home / digest[:_NAME_LENGTH]
