"""The frame of every room: header, navigation, skip link, messages; and the few parts they share.

How to add a room:

1. Write `app/rooms/NAME.py` with `add_to(site)`. In it, decorate one function per page with
   `@ui.page("/NAME/{subject}")`; the page reads the workspace each time it is opened, so a reload
   shows the present state. Nothing is kept in the browser or in `ui.storage`.
2. Put the content into `with room(site, "Title", current="/NAME"):`. It gives the header and an
   `h1`.
3. Add the module to ROOMS in `app/server.py`, and its link to NAVIGATION below.

Rules:

- Build pages from `tag(...)`: plain HTML that `static/app.css` and the report's own style sheet
  (loaded first) give their look. Texts are escaped; never use `ui.html` for a user's text.
- Call the command line for all work: `await commands.call(site, "promote", ...)` runs `dreambooth`
  as a child process and raises its error; quick reads of files go through
  `await run.io_bound(...)`. Nothing slow on the event loop, no torch in this process.
- Show errors with `problem(error)`, the result of an action with `say(text)` (a live region).
- Handle events with `button`, `checkbox`, `Field`, `Select` or `listen`, never with `element.on`.
- Poll with `ui.timer(seconds, ...)` and redraw only what has changed, so that the focus stays.
- Pictures: `pictures.url_of(site, path)` for files below work/ and the store.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from nicegui import app as web
from nicegui import ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement
from starlette.responses import Response

from app.access import LOGOUT
from app.site import Site
from dreambooth_core.errors import DreamBoothError

NAVIGATION = {
    "/": "Subjects",
    "/train": "Train",
    "/settings": "Settings",
    "/result": "Result",
    "/judge": "Judge",
    "/registry": "Registry",
}
"""The links of the header."""

_STATIC = Path(__file__).parent / "static"
_LOOK = "/look/"


def add_look() -> None:
    """Load the report's style sheet and the app's own on every page."""
    web.add_static_files("/static", _STATIC)
    report = resources.files("dreambooth_core.report") / "templates" / "page.css"
    text = report.read_text("utf-8")

    @web.get(f"{_LOOK}page.css")
    def page_css() -> Response:
        return Response(text, media_type="text/css")

    ui.add_head_html(
        f'<link rel="stylesheet" href="{_LOOK}page.css">'
        '<link rel="stylesheet" href="/static/app.css">'
        '<link rel="stylesheet" href="/static/judging.css">'
        '<script src="/static/app.js" defer></script>'
        '<script src="/static/gallery.js" defer></script>'
        '<script src="/static/painter.js" defer></script>',
        shared=True,
    )


def tag(name: str, text: str = "", *, classes: str = "", **attributes: Any) -> TextElement:
    """An HTML element with an escaped text. Names end in _ or have _ for -: for_, aria_label.

    An attribute that is None or False is left out.
    """
    made = TextElement(tag=name, text=text)
    made.classes(classes)
    for key, value in attributes.items():
        if value is not None and value is not False:
            made.props[key.rstrip("_").replace("_", "-")] = value
    return made


def link(text: str, to: str, *, classes: str = "") -> TextElement:
    """A link to a page of the app."""
    return tag("a", text, href=to, classes=classes)


def button(
    text: str, on_click: Callable[[], Awaitable[None] | None], *, classes: str = "", **more: Any
) -> TextElement:
    """A button. It is disabled while its handler runs, so that a second click does nothing."""
    made = tag("button", text, classes=f"act {classes}", type="button", **more)

    async def press(_: None) -> None:
        if made.props.get("disabled"):
            return
        made.props["disabled"] = True
        made.update()
        try:
            result = on_click()
            if result is not None:
                await result
        finally:
            if not made.is_deleted:
                made.props.pop("disabled", None)
                made.update()

    listen(made, "click", press)
    return made


def checkbox(label: str, on_change: Callable[[bool], Awaitable[None] | None]) -> None:
    """A checkbox with its label."""
    with tag("label", classes="tick"):
        box = tag("input", type="checkbox")
        tag("span", label)
    listen(box, "change", on_change, value="e.target.checked")


def listen(
    element: Element,
    event: str,
    handler: Callable[[Any], Awaitable[None] | None],
    *,
    value: str = "null",
) -> None:
    """Call `handler` on each event, with a JavaScript value of it such as "e.target.value".

    The handler runs in the context of the page. NiceGUI's own is the element's parent; after a
    redraw during the handler, that could neither say anything nor open a page. An error is said.
    """

    async def receive(told: Any) -> None:
        with element.client:
            try:
                result = handler(told.args)
                if result is not None:
                    await result
            except (DreamBoothError, OSError) as error:
                say(str(error), is_problem=True)

    element.on(event, receive, js_handler=f"(e) => emit({value})")


def text_input(value: str) -> TextElement:
    """A text field without a label. Typed text survives updates of the page."""
    made = tag("input", type="text", autocomplete="off", spellcheck="false")
    made.props["^value"] = value  # the attribute: Vue would write a property anew each time
    return made


OnValue = Callable[[str], Awaitable[None] | None]
"""Receives the value of a field."""


class Field:
    """A text field with its label, a hint and a place for its error; `value` follows the typing.

    `on_change` gets the value while it is typed, `on_commit` when the field is left.
    """

    def __init__(
        self,
        label: str,
        value: str = "",
        *,
        on_change: OnValue | None = None,
        on_commit: OnValue | None = None,
        hint: str = "",
        **attributes: Any,
    ) -> None:
        self.value = value
        with tag("div", classes="field"):
            caption = tag("label", label)
            self.input = text_input(value)
            for name, own in attributes.items():
                self.input.props[name.rstrip("_").replace("_", "-")] = own
            caption.props["for"] = self.input.html_id
            self.hint = tag("p", hint, classes="small")
            self.error = tag("p", classes="wrong", role="alert")
        described = f"{self.hint.html_id} {self.error.html_id}"
        self.input.props["aria-describedby"] = described
        for event, handler in {"input": on_change, "change": on_commit}.items():
            listen(self.input, event, partial(self._receive, handler), value="e.target.value")

    def _receive(self, handler: OnValue | None, value: str) -> Awaitable[None] | None:
        self.value = value
        return handler(value) if handler is not None else None

    def set_value(self, value: str) -> None:
        """Replace what stands in the field."""
        self.value = value
        script = f"document.getElementById({_js(self.input.html_id)}).value = {_js(value)}"
        ui.run_javascript(script)

    def focus(self) -> None:
        """Move the keyboard's focus here."""
        ui.run_javascript(f"document.getElementById({_js(self.input.html_id)}).focus()")

    def show_error(self, text: str | None) -> None:
        """Show the mistake in the value, or None."""
        self.error.set_text(text or "")
        ui.run_javascript(
            f"document.getElementById({_js(self.input.html_id)})"
            f".setAttribute('aria-invalid', {_js('true' if text else 'false')})"
        )


def problem(error: DreamBoothError | str) -> Element:
    """An error in words: what was wrong, what was found, what to do."""
    with tag("div", classes="problem", role="alert") as box:
        if isinstance(error, str):
            tag("p", error)
            return box
        parts = {"": error.what, "Found: ": error.got, "Allowed: ": error.allowed}
        for name, text in {**parts, "What to do: ": error.hint}.items():
            if text:
                tag("p", f"{name}{text}")
    return box


def say(text: str, *, is_problem: bool = False) -> None:
    """Show and announce the result of an action, below the header of this page."""
    ui.run_javascript(f"dreambooth.say({_js(text)}, {_js(is_problem)})")


def unbroken(text: str) -> str:
    """A sentence whose line breaks part no number from its per cent sign."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def go(to: str) -> None:
    """Open another page of the app."""
    ui.navigate.to(to)


def _js(value: object) -> str:
    return json.dumps(value).replace("<", "\\u003c")


@contextmanager
def room(site: Site, title: str, *, current: str, eyebrow: str = "") -> Iterator[Element]:
    """The frame of a page; `current` is the link of NAVIGATION that it belongs to."""
    ui.page_title(f"{title} - DreamBooth")
    with ui.header(fixed=False, bordered=False, elevated=False, wrap=False).classes("top"):
        link("Skip to the content", "#content", classes="skip")
        link("DreamBooth", "/", classes="brand")
        with tag("nav", aria_label="Rooms"), tag("ul"):
            for to, name in NAVIGATION.items():
                with tag("li"):
                    shown = link(name, to)
                    if to == current:
                        shown.props["aria-current"] = "page"
        if site.password is not None:
            link("Log out", LOGOUT, classes="out")
    tag("div", id="said", classes="said", role="status", aria_live="polite")
    with tag("div", id="content", classes="room", tabindex="-1") as content:
        if eyebrow:
            tag("p", eyebrow, classes="eyebrow")
        tag("h1", title)
        yield content
