"""Serves pictures and reports from the workspace's own output folders, and nothing else."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from nicegui import app as web
from starlette.responses import FileResponse, PlainTextResponse, Response

from app.site import Site

_FOLDERS = ("work", ".state/app", ".state/evaluate", ".state/generate")
_KINDS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".html", ".css", ".js"))
_PREFIX = "/files/"
_SANDBOX = "sandbox allow-scripts allow-popups; default-src 'self' data: 'unsafe-inline'"


def add_to(site: Site) -> None:
    """Add the route."""

    @web.get(_PREFIX + "{name:path}")
    def serve_file(name: str) -> Response:
        path = (site.workspace.root / name).resolve()
        folders = [(site.workspace.root / folder).resolve() for folder in _FOLDERS]
        is_shown = any(path.is_relative_to(folder) for folder in folders)
        if not is_shown or path.suffix.lower() not in _KINDS or not path.is_file():
            return PlainTextResponse("not found", status_code=404)
        headers = {"Cache-Control": "no-cache"}
        if path.suffix == ".html":
            headers["Content-Security-Policy"] = _SANDBOX
        return FileResponse(path, headers=headers)


def url_of(site: Site, path: Path) -> str:
    """The URL of a file in one of the served folders; it changes when the file does."""
    name = path.relative_to(site.workspace.root).as_posix()
    return f"{_PREFIX}{quote(name)}?{path.stat().st_mtime_ns if path.exists() else 0}"
