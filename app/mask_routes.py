"""The masks of photos on their way in and out: the layers for the brush, and the file."""

from __future__ import annotations

import json
from pathlib import Path

from nicegui import app as web
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app.commands import run_child
from app.site import Site
from app.uploads import mistake_in, receive
from dreambooth_core import config, files
from dreambooth_core.errors import DreamBoothError

_VERSION = "Mask-Version"


def add_to(site: Site) -> None:
    """Add the routes."""

    @web.get("/mask/{subject}")
    async def send_layers(subject: str, photo: str) -> Response:
        folder = _folder_of(site, subject, photo)
        if isinstance(folder, Response):
            return folder
        words = (str(site.workspace.root), subject, photo)
        out, last = await run_child(site, "app.mask_layers", *words)
        if not out:
            return PlainTextResponse(f"the photo cannot be shown: {last}", status_code=500)
        if error := json.loads(out).get("error"):
            return PlainTextResponse(error, status_code=422)
        return Response(out, media_type="application/json", headers={"Cache-Control": "no-store"})

    @web.post("/mask/{subject}")
    async def receive_mask(
        subject: str, photo: str, request: Request, seen: str | None = None
    ) -> Response:
        from dreambooth_core.data import masks  # numpy and Pillow, which would delay the start

        folder = _folder_of(site, subject, photo)
        if isinstance(folder, Response):
            return folder
        target = masks.own_file(folder, photo)
        answer = await receive(request, target, refuse=lambda: _conflict(target, seen))
        answer.headers.setdefault(_VERSION, _version_of(target))
        return answer


def _folder_of(site: Site, subject: str, photo: str) -> Path | Response:
    """The folder of a subject's photos, or the answer that there is no such photo."""
    try:
        view = config.load_view(site.workspace, subject)
    except DreamBoothError as error:
        return PlainTextResponse(str(error), status_code=404)
    folder = site.workspace.resolve(view.subject.instance_dir)
    if mistake_in(photo) or not (folder / photo).is_file():
        return PlainTextResponse("no such photo", status_code=404)
    return folder


def _version_of(mask: Path) -> str:
    return files.sha256_file(mask) if mask.is_file() else ""


def _conflict(mask: Path, seen: str | None) -> Response | None:
    """The refusal to replace a mask that the painter has not seen."""
    present = _version_of(mask)
    if seen is None or seen == present:
        return None
    text = (
        "Not saved: this mask was changed elsewhere after you opened it. Save again to replace it "
        "with yours, or reload the page to continue with the other one."
    )
    return PlainTextResponse(text, status_code=409, headers={_VERSION: present})
