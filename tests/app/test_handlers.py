"""Handlers of the app's events, on pages without a browser."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

nicegui = pytest.importorskip("nicegui", reason="needs the extra app")

from nicegui import Client, core, ui  # noqa: E402
from nicegui.page import page  # noqa: E402

from app.layout import button, go, say, tag  # noqa: E402
from dreambooth_core.errors import DreamBoothError  # noqa: E402


async def press_and_redraw(on_click: Callable[[], Coroutine[Any, Any, None]]) -> list[str]:
    """Press a button whose place is drawn anew meanwhile; what the browser is told after that."""
    core.loop = asyncio.get_running_loop()
    client = Client(page("/here"))
    with client:
        place = tag("div")
    with place, tag("p"):  # the parent of the button goes, too
        act = button("Go", on_click)
    (listener,) = act._event_listeners.values()
    act._handle_event({"listener_id": listener.id, "args": None})
    del act, listener
    await asyncio.sleep(0.05)
    place.clear()
    client.outbox.updates.clear()  # as if they were sent
    gc.collect()
    client.outbox.messages.clear()
    await asyncio.sleep(0.2)
    told = [str(message) for message in client.outbox.messages]
    client.delete()
    return told


async def goes_on() -> None:
    await asyncio.sleep(0.1)
    go("/there")


async def reloads() -> None:
    await asyncio.sleep(0.1)
    ui.navigate.reload()


async def speaks() -> None:
    await asyncio.sleep(0.1)
    say("it is done")


async def fails() -> None:
    await asyncio.sleep(0.1)
    raise DreamBoothError("it is <b>lost</b>")


async def finds_a_full_disk() -> None:
    await asyncio.sleep(0.1)
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("on_click", "text"),
    [
        (goes_on, "/there"),
        (reloads, "history.go(0)"),
        (speaks, "it is done"),
        (fails, "it is \\\\u003cb>lost"),
        (finds_a_full_disk, "No space left on device"),
    ],
)
def test_handler_reaches_the_page_after_its_button_is_gone(
    on_click: Callable[[], Coroutine[Any, Any, None]], text: str
) -> None:
    with ThreadPoolExecutor() as threads:  # Playwright's loop may be running in this one
        told = threads.submit(asyncio.run, press_and_redraw(on_click)).result()
    assert any(text in each for each in told), told
