"""Photos on their way in: each upload goes to a draft, a folder that becomes a subject or goes.

A file is streamed to the disk; one that breaks off leaves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from nicegui import app as web
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from app.site import Site
from dreambooth_core import files

MAX_FILE = 200 * 2**20
MAX_DRAFT = 4 * 2**30
"""Bytes of one file and of all photos of a draft."""

_MAX_NAME = 200
_NO_NAMES = ("", ".", "..", "masks")
_MAX_FILES = 500
_KEEP_FREE = 2**30
_KEEP_S = 3 * 24 * 3600.0
_ID = re.compile(r"[0-9a-f]{16}")
_publishing = asyncio.Lock()


def new_draft() -> str:
    """The name of a new draft; its folder is made by the first upload."""
    return secrets.token_hex(8)


def folder_of(site: Site, draft: str) -> Path:
    """The folder of a draft's photos."""
    return site.files / "drafts" / draft / "photos"


def is_draft(site: Site, draft: str) -> bool:
    """Whether the draft exists."""
    return _ID.fullmatch(draft) is not None and folder_of(site, draft).is_dir()


def delete(site: Site, draft: str) -> None:
    """Delete a draft with its photos."""
    if _ID.fullmatch(draft):
        shutil.rmtree(folder_of(site, draft).parent, ignore_errors=True)


def delete_old(site: Site) -> None:
    """Delete drafts that nobody has touched for days."""
    for folder in site.files.glob("drafts/*"):
        if time.time() - folder.stat().st_mtime > _KEEP_S:
            shutil.rmtree(folder, ignore_errors=True)


def add_to(site: Site) -> None:
    """Add the route that receives one file: its bytes are the body."""
    delete_old(site)

    @web.post("/upload/{draft}")
    async def upload(draft: str, name: str, request: Request) -> Response:
        if not _ID.fullmatch(draft):
            return PlainTextResponse("no such draft", status_code=404)
        problem = mistake_in(name) or _problem_of_size(site, draft, request)
        if problem is not None:
            return PlainTextResponse(problem, status_code=413 if "large" in problem else 400)
        folder = folder_of(site, draft)
        return await receive(request, _free(folder / name))


def mistake_in(name: str) -> str | None:
    """The mistake in a file's name, if any; `masks/photo.png` is a valid one."""
    path = Path(name)
    is_plain = name in (path.name, f"masks/{path.name}")
    if not is_plain or path.name in _NO_NAMES or "\0" in name or files.is_aside(path.name):
        return f"not a name for a photo: {name!r:.100}"
    if len(path.name.encode(errors="surrogateescape")) > _MAX_NAME:
        return f"the name is longer than {_MAX_NAME} bytes: {name[:60]}..."
    return None


def _problem_of_size(site: Site, draft: str, request: Request) -> str | None:
    announced = int(request.headers.get("content-length") or 0)
    present = [p.stat().st_size for p in folder_of(site, draft).rglob("*") if p.is_file()]
    site.files.mkdir(parents=True, exist_ok=True)
    if announced > MAX_FILE:
        return f"too large: {announced / 2**20:.0f} MiB, at most {MAX_FILE >> 20} MiB are allowed"
    if sum(present) + announced > MAX_DRAFT or len(present) >= _MAX_FILES:
        return (
            f"too large together: at most {MAX_DRAFT >> 30} GiB and {_MAX_FILES} files are allowed"
        )
    if shutil.disk_usage(site.files).free - announced < _KEEP_FREE:
        return "too large for this disk: less than 1 GiB would stay free"
    return None


async def receive(
    request: Request, target: Path, *, refuse: Callable[[], Response | None] = lambda: None
) -> Response:
    """Write the body to a file, completely or not at all.

    `refuse` is asked when the body is complete; with a response, the file stays as it is.
    """
    writing = files.atomic_file(target)
    aside = writing.__enter__()
    try:
        await _stream(request, aside)
    except BaseException as error:
        writing.__exit__(type(error), error, error.__traceback__)
        if not isinstance(error, ClientDisconnect | _TooLarge):
            raise
        text = f"too large: at most {MAX_FILE >> 20} MiB are allowed"
        return PlainTextResponse(text, status_code=413)
    async with _publishing:
        if refused := refuse():
            with contextlib.suppress(_Refused):
                writing.__exit__(_Refused, _Refused(), None)
            return refused
        await asyncio.to_thread(writing.__exit__, None, None, None)  # flushes to the disk
    return PlainTextResponse("received")


async def _stream(request: Request, target: Path) -> None:
    size = 0
    with target.open("wb") as sink:
        async for chunk in request.stream():
            size += len(chunk)
            if size > MAX_FILE:
                raise _TooLarge
            sink.write(chunk)


class _Refused(Exception):
    """The body is complete, but the file may not be replaced."""


class _TooLarge(Exception):
    """The body is longer than a file may be."""


def _free(target: Path) -> Path:
    """The path, or one with a number if a file has it."""
    number, free = 2, target
    while free.exists():
        free = target.with_stem(f"{target.stem}-{number}")
        number += 1
    return free
