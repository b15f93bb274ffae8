"""Who reaches the app: loopback, other pages, passwords; and what its start costs."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from dreambooth_core.workspace import Workspace
from tests.app.conftest import RunningApp, cpu_seconds, running_app
from tests.flow import workspaces

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(300)]

PASSWORD = "correct horse <b>"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return workspaces.build(tmp_path_factory.mktemp("access") / "project")


@pytest.fixture(scope="module")
def app(workspace: Workspace) -> Iterator[RunningApp]:
    with running_app(workspace) as running:
        yield running


@pytest.fixture(scope="module")
def locked(workspace: Workspace) -> Iterator[RunningApp]:
    with running_app(workspace, DREAMBOOTH_APP_PASSWORD=PASSWORD) as running:
        yield running


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:  # pyright: ignore
        return None


def status(url: str, **headers: str) -> int:
    method = headers.pop("method", "GET")
    asked = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.build_opener(_NoRedirect).open(asked, timeout=20) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def refused(workspace: Workspace, *options: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cli", "app", *options],
        cwd=workspace.root,
        env={**workspaces.environment(workspace.root), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    return done.stderr


def test_start_takes_at_most_5_cpu_seconds_and_loads_no_torch(app: RunningApp) -> None:
    assert status(app.url) == 200
    assert cpu_seconds(app.process.pid) <= 5
    assert "libtorch" not in Path(f"/proc/{app.process.pid}/maps").read_text()


@pytest.mark.parametrize(
    "headers",
    [{"Host": "photos.example"}, {"method": "POST", "Origin": "https://photos.example"}],
)
def test_requests_of_other_pages_are_refused(app: RunningApp, headers: dict[str, str]) -> None:
    assert status(app.url, **headers) == 403


def test_websocket_of_another_page_is_refused(app: RunningApp) -> None:
    address = f"ws{app.url.removeprefix('http')}/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    with connect(address, origin=Origin(app.url)) as socket:
        assert "sid" in str(socket.recv())
    with pytest.raises(InvalidStatus) as caught, connect(address, origin=Origin("https://a.test")):
        pass
    assert caught.value.response.status_code == 403


@pytest.mark.parametrize(
    "name",
    ["params.yaml", ".git/config", "work/../params.yaml", "work/%2e%2e/params.yaml", "app.log"],
)
def test_files_outside_the_output_folders_are_not_served(app: RunningApp, name: str) -> None:
    assert status(f"{app.url}/files/{name}") == 404


def test_other_address_needs_a_password(workspace: Workspace) -> None:
    text = refused(workspace, "--host", "0.0.0.0")
    assert "needs a password" in text
    assert "export DREAMBOOTH_APP_PASSWORD=" in text
    short = refused(workspace, DREAMBOOTH_APP_PASSWORD="short")
    assert "at least 8" in short


def test_taken_port_is_named_with_the_next_free_one(app: RunningApp) -> None:
    port = int(app.url.rpartition(":")[2])
    assert f"port {port} is taken; what to do: try --port" in refused(
        app.workspace, "--port", str(port)
    )


def test_nothing_answers_without_the_session_of_a_password(locked: RunningApp) -> None:
    paths = ("/", "/subjects/mug", "/files/work/mug/report/index.html", "/static/app.css")
    assert {status(locked.url + path) for path in paths} == {303}
    socket = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    assert status(locked.url + socket) == 303
    assert PASSWORD not in locked.log.read_text()


def test_browser_logs_in_and_out(locked: RunningApp, opened: Any) -> None:
    page = opened(f"{locked.url}/")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Subjects").wait_for()
    page.get_by_role("link", name="Log out").click()
    page.get_by_label("Password").wait_for()
    page.goto(f"{locked.url}/")
    assert page.get_by_label("Password").is_visible()


def test_missing_extra_is_one_sentence_with_the_command(
    workspace: Workspace, tmp_path: Path
) -> None:
    hook = "import sys; sys.modules['nicegui'] = None"
    (tmp_path / "sitecustomize.py").write_text(hook)
    path = f"{tmp_path}:{workspaces.environment(workspace.root)['PYTHONPATH']}"
    text = refused(workspace, PYTHONPATH=path)
    assert 'pip install "dreambooth-pipeline[app]"' in text
    assert "Traceback" not in text
