"""The queue of the app: runs wait for those that are at work or were started before."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import runs
from app.commands import command
from app.site import open_site
from dreambooth_core import locks
from dreambooth_core.waiting import wait_until
from tests.app.conftest import RunningApp, running_app
from tests.flow import workspaces

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(1800)]

WAIT = 400_000


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    root = tmp_path_factory.mktemp("queue") / "project"
    workspace = workspaces.build(root, subjects=("mug", "cup", "jar"))
    workspaces.change(workspace.root, "train.max_train_steps", 2000)
    with running_app(workspace) as running:
        yield running


@pytest.fixture
def of_terminal(app: RunningApp) -> Iterator[subprocess.Popen[bytes]]:
    """A run of the subject mug that was started in a terminal."""
    with Path(app.workspace.root, "run.log").open("wb") as sink:
        process = subprocess.Popen(
            command("run", "mug"),
            cwd=app.workspace.root,
            env=workspaces.environment(app.workspace.root),
            stdout=sink,
            stderr=sink,
        )
    yield process
    process.kill()
    process.wait()


def is_at_work(app: RunningApp, subject: str) -> bool:
    return locks.holder_of(app.workspace.subject_lock(subject)) is not None


def test_runs_take_turns_and_the_page_says_who_is_ahead(
    app: RunningApp, opened: Any, of_terminal: subprocess.Popen[bytes]
) -> None:
    assert wait_until(lambda: is_at_work(app, "mug"), timeout_s=400, every_s=0.2)
    pages = {name: opened(f"{app.url}/train/{name}") for name in ("mug", "cup", "jar")}
    pages["mug"].get_by_role("button", name="Stop").wait_for()
    assert not pages["mug"].get_by_role("button", name="training").first.is_visible()
    for name in ("cup", "jar"):
        pages[name].get_by_role("button", name="Start training").click()
        pages[name].get_by_text(f"The run of {name} waits in the queue.").wait_for()
        pages[name].get_by_text("Waiting in the queue for the run of mug.").wait_for()
    site = open_site(app.workspace.root, "127.0.0.1", 0)
    assert runs.start(site, "cup") == "A run of cup waits already: nothing was started."
    overview = opened(f"{app.url}/train").locator("tr", has_text="jar")
    overview.get_by_text("Waiting in the queue for the run of mug.").wait_for()

    of_terminal.send_signal(signal.SIGTERM)
    pages["jar"].get_by_text("Waiting in the queue for the run of cup.").wait_for(timeout=WAIT)
    pages["cup"].get_by_text("Running").wait_for(timeout=WAIT)
    assert not is_at_work(app, "jar")

    pages["jar"].get_by_role("button", name="Stop").click()
    pages["jar"].get_by_text("The run is taken from the queue.").wait_for()
    pages["jar"].get_by_role("button", name="Start training").click()
    pages["jar"].get_by_text("Waiting in the queue for the run of cup.").wait_for()
    pages["cup"].get_by_role("button", name="Stop").click()
    pages["jar"].get_by_text("Running").wait_for(timeout=WAIT)
    assert not is_at_work(app, "cup")
    pages["jar"].get_by_role("button", name="Stop").click()
    pages["jar"].get_by_role("button", name="training").first.wait_for(timeout=WAIT)
