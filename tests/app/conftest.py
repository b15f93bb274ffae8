"""A running app on a workspace, and browsers that look at it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.server import answers
from dreambooth_core.supervision import free_port, stop_group
from dreambooth_core.waiting import wait_until
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

_START_S = 60.0
_PAGE_MS = 120_000
_IN_TEST = "PYTEST_CURRENT_TEST"  # with it, NiceGUI behaves differently


@dataclass(frozen=True)
class RunningApp:
    """The process of `dreambooth app` and its address."""

    process: subprocess.Popen[bytes]
    url: str
    workspace: Workspace
    log: Path


@contextlib.contextmanager
def running_app(workspace: Workspace, *options: str, **env: str) -> Iterator[RunningApp]:
    """Run `dreambooth app` in a workspace until the block ends."""
    port, log = free_port(), workspace.root / "app.log"
    present = {k: v for k, v in workspaces.environment(workspace.root).items() if k != _IN_TEST}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "app", "--port", str(port), *options],
            cwd=workspace.root,
            env={**present, **env},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        assert wait_until(
            lambda: answers(url) or process.poll() is not None, timeout_s=_START_S, every_s=0.1
        )
        assert process.poll() is None, log.read_text()
        yield RunningApp(process, url, workspace, log)
    finally:
        stop_group(process, grace_s=5)
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens a page of an app; at the end no script has failed and no other host was asked.

    `expects` is a part of an error that the browser itself logs.
    """
    contexts, faults = [], list[str]()

    def open_page(url: str, *, expects: str = "", **options: Any) -> Any:
        def log(message: Any) -> None:
            if message.type == "error" and not (expects and expects in message.text):
                faults.append(message.text)

        context = browser.new_context(viewport=options.pop("viewport", DESKTOP), **options)
        context.set_default_timeout(_PAGE_MS)
        contexts.append(context)
        page = context.new_page()
        own = tuple(f"{scheme}://{url.split('/')[2]}" for scheme in ("http", "ws"))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", log)
        page.on(
            "request",
            lambda r: None if r.url.startswith((*own, "data:", "blob:")) else faults.append(r.url),
        )
        page.on("websocket", lambda w: None if w.url.startswith(own) else faults.append(w.url))
        page.goto(url)
        page.locator("h1").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def serious(page: Any) -> list[tuple[str, list[str]]]:
    """What axe calls serious or critical on a page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
    found = axe.Axe().run(page).response["violations"]
    return [
        (each["id"], [node["html"][:200] for node in each["nodes"]])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
