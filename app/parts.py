"""Parts that the rooms about a result share: the way between them, selects, reasons."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from nicegui import run, ui
from starlette.responses import RedirectResponse, Response

from app.layout import Field, button, link, listen, problem, room, tag
from app.site import Site
from dreambooth_core import config
from dreambooth_core.errors import DreamBoothError

ROOMS = {"/result": "Result", "/judge": "Judge", "/registry": "Registry"}
"""The rooms about the result of a run, in the order of their use."""

Show = Callable[[str], Awaitable[None] | None]
"""Shows the room of a subject, inside the frame."""


def add_pages(site: Site, path: str, show: Show) -> None:
    """Add the page of a room for each subject, and one to choose the subject."""

    @ui.page(path)
    async def choose() -> Response | None:
        names = await run.io_bound(_names, site)
        if isinstance(names, list) and len(names) == 1:
            return RedirectResponse(f"{path}/{names[0]}")
        with room(site, ROOMS[path], current=path):
            _show_names(names, path)
        return None

    @ui.page(f"{path}/{{name}}")
    async def one(name: str) -> None:
        with room(site, name, current=path, eyebrow=ROOMS[path]):
            try:
                await run.io_bound(config.load_view, site.workspace, name)
            except DreamBoothError as error:
                problem(error)
                return
            _show_ways(name, path)
            shown = show(name)
            if shown is not None:
                await shown


def _names(site: Site) -> list[str] | DreamBoothError:
    try:
        return list(config.load_settings(site.workspace.params).subjects)
    except DreamBoothError as error:
        return error


def _show_names(names: list[str] | DreamBoothError | None, path: str) -> None:
    if not isinstance(names, list):
        problem(names or "The settings cannot be read.")
        return
    if not names:
        with tag("div", classes="empty"):
            tag("p", "No subjects yet. Add one from 3 to 6 photos.")
    with tag("ul", classes="shelf"):
        for name in names:
            with tag("li", classes="subject"), tag("h2"):
                link(name, f"{path}/{name}")


def _show_ways(name: str, current: str) -> None:
    """Links to the other rooms of the same subject."""
    with tag("nav", aria_label=f"Rooms of {name}", classes="ways"), tag("ul"):
        for path, title in {"/train": "Train", **ROOMS}.items():
            with tag("li"):
                shown = link(title, f"{path}/{name}")
                if path == current:
                    shown.props["aria-current"] = "page"


class Select:
    """A native select with its label; `value` follows the choice."""

    def __init__(
        self,
        label: str,
        options: Mapping[str, str],
        value: str,
        *,
        on_change: Show | None = None,
    ) -> None:
        self.value = value
        with tag("div", classes="field"):
            caption = tag("label", label)
            self._box = tag("select")
            caption.props["for"] = self._box.html_id
            with self._box:
                for key, text in options.items():
                    tag("option", text, value=key, selected=key == value)

        def chosen(value: str) -> Awaitable[None] | None:
            self.value = value
            return on_change(value) if on_change else None

        listen(self._box, "change", chosen, value="e.target.value")


def reading() -> Any:
    """A place that a room fills once the registry has answered."""
    with tag("div") as place:
        tag("p", "Reading the registry.", classes="lead", role="status")
    return place


def facts(rows: Sequence[tuple[str, str]]) -> None:
    """Names with their values; rows without a value are left out."""
    with tag("dl", classes="lineage"):
        for name, value in rows:
            if value:
                with tag("div"):
                    tag("dt", name)
                    tag("dd", value)


def ask_reason(place: Any, title: str, action: str, on_reason: Show) -> None:
    """Ask for a reason inside `place`, then act with it; the focus moves into the form."""
    place.clear()

    async def act() -> None:
        if not reason.value.strip():
            reason.show_error("A reason is needed: it is stored with the decision.")
            return
        result = on_reason(reason.value)
        if result is not None:
            await result

    with place, tag("div", classes="ask", role="group", aria_label=title):
        tag("h3", title)
        reason = Field("Reason", "", on_change=None, hint="Stored with your name and the time.")
        with tag("div", classes="acts"):
            button(action, act, classes="main")
            button("Cancel", place.clear)
    focus(reason.input)


def focus(element: Any) -> None:
    """Move the keyboard's focus to an element of the page."""
    element.client.run_javascript(f"document.getElementById({element.html_id!r})?.focus()")


@contextmanager
def redrawn(place: Any) -> Iterator[None]:
    """Replace what `place` shows."""
    place.clear()
    with place:
        yield
