"""The page of a mask: a brush over a photo of a subject (`static/painter.js`)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote, urlencode

from nicegui import run, ui

from app import automatic, pictures, unused
from app.layout import button, link, problem, room, say, tag
from app.site import Site
from dreambooth_core import config
from dreambooth_core.config import SubjectView
from dreambooth_core.errors import DreamBoothError

_AUTOMATIC = "automatic"
_HELP = (
    "Paint with the mouse, a pen or a finger. With the keyboard: the arrow keys move the brush "
    "(with Shift, one pixel), Space paints, [ and ] change the size, B takes the brush, E the "
    "eraser, Ctrl+Z undoes."
)


def add_to(site: Site) -> None:
    """Add the page."""

    @ui.page("/subjects/{name}/mask")
    async def mask(name: str, photo: str, start: str = "") -> None:
        with room(site, f"Mask of {photo}", current="/", eyebrow=name):
            try:
                view = config.load_view(site.workspace, name)
            except DreamBoothError as error:
                problem(error)
                return
            await _show(site, view, photo, is_automatic=start == _AUTOMATIC)


def url_of(name: str, photo: str, *, from_automatic: bool = False) -> str:
    """The address of the page for a photo, with its present or its automatic mask."""
    words = {"photo": photo, **({"start": _AUTOMATIC} if from_automatic else {})}
    return f"/subjects/{name}/mask?{urlencode(words)}"


async def _show(site: Site, view: SubjectView, photo: str, *, is_automatic: bool) -> None:
    least = await run.io_bound(_least_share)
    tag("p", "Paint the subject. Training then learns the painted part alone.", classes="lead")
    unused.show_masks(site, view)
    source = f"/mask/{view.name}?{urlencode({'photo': photo})}"
    found = automatic.picture_of(site, view, photo) if is_automatic else None
    start = None if found is None else pictures.url_of(site, found)
    with tag("mask-painter", data_source=source, data_least=least, data_start=start):
        _show_tools(lambda: _start_anew(site, view, photo))
        stage = tag(
            *("div",),
            classes="stage",
            tabindex="0",
            role="application",
            aria_label=f"Mask of {photo}",
            aria_describedby="mask-help",
        )
        with stage:
            tag("img", alt="")
            tag("canvas")
            tag("span", classes="ring")
        tag("p", "Loading the photo.", classes="told", role="status")
        tag("p", _HELP, classes="small", id="mask-help")
        with tag("div", classes="acts"):
            tag("button", "Save the mask", type="button", classes="act main", data_act="save")
            link("Back to the photos", f"/subjects/{quote(view.name)}", classes="act")


async def _start_anew(site: Site, view: SubjectView, photo: str) -> None:
    """Put the automatic mask in place of the present one."""
    say("Looking for the subject in each photo.")
    await automatic.make(site, view)
    found = automatic.picture_of(site, view, photo)
    if found is None:
        say("This photo is not accepted, so it has no automatic mask.", is_problem=True)
        return
    say("The automatic mask is in place of yours; Undo takes it back.")
    source = json.dumps(pictures.url_of(site, found))
    ui.run_javascript(f"document.querySelector('mask-painter').take({source})")


def _show_tools(start_anew: Callable[[], Awaitable[None]]) -> None:
    def tool(act: str, text: str, **more: Any) -> None:
        tag("button", text, type="button", classes="act small-act", data_act=act, **more)

    with tag("div", classes="tools", role="group", aria_label="Tools"):
        tool("brush", "Brush", aria_pressed="true")
        tool("eraser", "Eraser", aria_pressed="false")
        with tag("label", "Size", classes="size"):
            tag("input", type="range", min="1", max="40", value="8")
        for act in ("undo", "redo", "fill", "clear"):
            tool(act, act.capitalize())
        button("Start from the automatic mask", start_anew, classes="small-act")


def _least_share() -> float:
    from dreambooth_core.data import masks  # numpy and Pillow, which would delay the start

    return masks.LEAST_SHARE
