"""The room Train in a browser: from photos to a run, stopped, continued and watched by two."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.commands import command
from dreambooth_core import locks
from dreambooth_core.waiting import wait_until
from tests import tiny_models
from tests.app.conftest import PHONE, RunningApp, running_app, serious
from tests.flow import workspaces

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(1500)]

STEPS = 240
LONG_MS = 400_000


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    workspace = workspaces.build(tmp_path_factory.mktemp("train") / "project")
    workspaces.change(workspace.root, "train.max_train_steps", STEPS)
    workspaces.change(workspace.root, "train.checkpointing_steps", STEPS // 6)
    with running_app(workspace) as running:
        yield running


class Counting:
    """A user at a page: every method is one action."""

    def __init__(self, page: Any) -> None:
        self._page, self.actions = page, 0

    def choose(self, label: str, path: Path) -> None:
        self.actions += 2  # the button, and the folder in the dialog
        self._page.get_by_label(label).set_input_files(path)

    def type(self, label: str, text: str) -> None:
        self.actions += 1
        self._page.get_by_label(label).fill(text)

    def press(self, role: str, name: str) -> None:
        self.actions += 1
        self._page.locator("#content").get_by_role(role, name=name, exact=True).click()


def runs_of(app: RunningApp, subject: str) -> list[int]:
    """The processes of `dreambooth run` of a subject, without their children."""
    import psutil

    words = command("run", subject)
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        own = process.info["cmdline"] == words
        if own and process.info["cwd"] == str(app.workspace.root):
            found.append(process.pid)
    return found


def end(app: RunningApp, subject: str, page: Any) -> None:
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="training").first.wait_for(timeout=60_000)
    assert runs_of(app, subject) == []


def test_new_user_trains_stops_continues_and_sees_the_end(
    app: RunningApp, opened: Any, tmp_path: Path
) -> None:
    folder = tiny_models.build_photos(tmp_path / "cup")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    page = opened(app.url)
    user = Counting(page)
    user.choose("Choose a folder", folder)
    page.get_by_text("Rejected:").wait_for(timeout=60_000)
    user.type("Class noun", "mug")
    user.press("button", "Add the subject")
    page.get_by_role("heading", name="cup").wait_for(timeout=60_000)
    user.press("link", "Train")
    user.press("button", "Start training")
    page.get_by_role("button", name="Stop").wait_for()
    assert user.actions <= 8
    lock = app.workspace.subject_lock("cup")
    assert wait_until(lambda: locks.holder_of(lock) is not None, timeout_s=300, every_s=0.2)

    second = opened(f"{app.url}/train/cup")
    second.locator(".checkpoint").nth(2).wait_for(timeout=LONG_MS)  # step 0 and two checkpoints
    assert "Before training" in second.locator(".checkpoint").first.inner_text()
    assert second.locator(".checkpoint").nth(2).locator("img").count() > 3
    assert second.locator(".curve svg").count() == 1
    second.get_by_role("button", name="Save now").click()
    second.get_by_text(re.compile(r"Saved at step \d+\. The training continues\.")).wait_for()
    end(app, "cup", second)
    page.get_by_role("button", name="Continue training").wait_for()

    page.get_by_role("button", name="Continue training").click()
    page.get_by_role("button", name="Stop").wait_for()
    page.close()  # a closed browser changes nothing
    second.get_by_text("Selected: checkpoint-").wait_for(timeout=2 * LONG_MS)
    assert second.get_by_role("link", name="Open the report").is_visible()
    assert second.locator(".stages .ready").count() == 9
    log = app.workspace.places("cup").log_file("train").read_text()
    assert "training starts after step 0" in log
    assert log.count("training starts after step") > 1


def test_two_browsers_start_one_run_which_survives_the_app(app: RunningApp, opened: Any) -> None:
    with running_app(app.workspace) as other:
        pages = [opened(f"{app.url}/train/mug"), opened(f"{other.url}/train/mug")]
        for page in pages:
            page.get_by_role("button", name="Start training").click()
        pages[1].get_by_text("already at work").wait_for()
        assert len(runs_of(app, "mug")) == 1
        pages[1].close()
    assert len(runs_of(app, "mug")) == 1
    pages[0].get_by_role("button", name="Stop").wait_for()
    end(app, "mug", pages[0])


def test_failed_run_shows_its_error(app: RunningApp, opened: Any) -> None:
    settings = app.workspace.params.read_text()
    workspaces.change(app.workspace.root, "evaluate.suite", "no-such-suite")
    try:
        page = opened(f"{app.url}/train/mug")
        page.get_by_role("button", name="training").first.click()
        page.get_by_role("alert").get_by_text("unknown prompt suite").wait_for(timeout=60_000)
    finally:
        app.workspace.params.write_text(settings)


def test_keyboard_starts_and_stops_a_run(app: RunningApp, opened: Any) -> None:
    page = opened(f"{app.url}/train/mug")
    page.get_by_role("button", name="training").first.wait_for()
    focus(page, "training")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").wait_for()
    focus(page, "Stop")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="training").first.wait_for(timeout=60_000)


def focus(page: Any, text: str) -> None:
    """Press Tab until the control with the text has the focus."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if text in (page.evaluate("document.activeElement.textContent") or ""):
            return
    raise AssertionError(f"Tab does not reach {text!r}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_accessible_and_fit_a_phone(app: RunningApp, opened: Any, scheme: str) -> None:
    for path in ("/train", "/train/cup", "/train/none"):
        page = opened(f"{app.url}{path}", viewport=PHONE, color_scheme=scheme)
        page.wait_for_timeout(2500)
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_run_goes_to_the_worker_where_up_runs(app: RunningApp, opened: Any) -> None:
    shutil.copytree(workspaces.REPOSITORY / "flows", app.workspace.root / "flows")
    from dreambooth_core.supervision import free_port, stop_group

    options = ("--prefect-port", "--mlflow-port", "--metrics-port")
    ports = [word for option in options for word in (option, str(free_port()))]
    with (app.workspace.root / "up.log").open("wb") as sink:
        up = subprocess.Popen(
            [*command("up"), *ports],
            cwd=app.workspace.root,
            env=workspaces.environment(app.workspace.root),
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    try:
        note = app.workspace.services_note
        assert wait_until(note.is_file, timeout_s=300, every_s=0.5)
        api = app.workspace.service("prefect_api")
        env = {**workspaces.environment(app.workspace.root), "PREFECT_API_URL": api or ""}
        subprocess.run(
            ["prefect", "--no-prompt", "deploy", "--all"],
            cwd=app.workspace.root,
            env=env,
            check=True,
            capture_output=True,
        )
        page = opened(f"{app.url}/train/mug")
        page.get_by_role("button", name="training").first.click()
        page.get_by_text("The worker of").wait_for()
        page.get_by_text("Running").wait_for(timeout=300_000)
        assert runs_of(app, "mug") == []
        end(app, "mug", page)
    finally:
        stop_group(up, grace_s=90)
