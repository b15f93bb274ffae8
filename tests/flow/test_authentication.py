"""Prefect and MLflow servers that ask for a password: a run with it works, one without says so."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cli.server import answers
from dreambooth_core.supervision import free_port, start_logged, stop_group
from dreambooth_core.waiting import wait_until
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.service, pytest.mark.timeout(1200)]

USER, SECRET = "ada", "pl4nted-p4ssw0rd-of-12"
_SERVER = "prefect.server.api.server:create_app"


@contextlib.contextmanager
def _serving(home: Path, command: list[str], health: str, env: Mapping[str, str]) -> Iterator[None]:
    home.mkdir()
    log = home / "server.log"
    process = start_logged([sys.executable, "-m", *command], log, env={**os.environ, **env})
    try:
        assert wait_until(lambda: answers(health), timeout_s=240, every_s=0.5), log.read_text()
        yield
    finally:
        stop_group(process, grace_s=10)


@pytest.fixture(scope="module")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a Prefect server with a password."""
    home, port = tmp_path_factory.mktemp("prefect") / "home", free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{SECRET}",
        "PREFECT_UI_ENABLED": "0",
    }
    command = ["uvicorn", "--factory", _SERVER, "--port", str(port), "--lifespan", "on"]
    with _serving(home, command, f"{url}/health", env):
        yield url


@pytest.fixture(scope="module")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server with its app basic-auth."""
    pytest.importorskip("flask_wtf", reason="MLflow's basic auth needs the extra auth")
    home, port = tmp_path_factory.mktemp("mlflow") / "home", free_port()
    url = f"http://127.0.0.1:{port}"
    config = home.parent / "auth.ini"
    config.write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{home}/auth.db\n"
        f"admin_username = {USER}\nadmin_password = {SECRET}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    env = {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "x" * 32,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [
        *("mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1"),
        *("--port", str(port), "--workers", "1", "--backend-store-uri"),
        *(f"sqlite:///{home}/mlflow.db", "--artifacts-destination", str(home / "artifacts")),
    ]
    with _serving(home, command, f"{url}/health", env):
        yield url


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return workspaces.build(tmp_path_factory.mktemp("workspace") / "checkout")


def _cli(workspace: Workspace, env: Mapping[str, str], *words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "cli", *words],
        cwd=workspace.root,
        env={**workspaces.environment(workspace.root), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("given", [{}, {"PREFECT_API_AUTH_STRING": f"{USER}:wrong"}])
def test_prefect_refuses_a_run_without_the_password_in_one_sentence(
    workspace: Workspace,
    prefect_url: str,
    given: Mapping[str, str],
) -> None:
    env = {"PREFECT_API_URL": prefect_url, **given}
    code, _, err = _cli(workspace, env, "run", SUBJECT)
    assert code == 1
    assert err.splitlines()[-1].startswith(f"error: Prefect at {prefect_url} refuses the user")
    assert "PREFECT_API_AUTH_STRING=USER:PASSWORD" in err
    assert "Traceback" not in err
    assert not (workspace.root / "work").exists()


def test_mlflow_refuses_a_run_without_the_password_in_one_sentence(
    workspace: Workspace, mlflow_url: str
) -> None:
    code, _, err = _cli(workspace, {"MLFLOW_TRACKING_URI": mlflow_url}, "run", SUBJECT)
    assert code == 1
    assert f"MLflow at {mlflow_url} asks for a user and a password" in err
    assert "MLFLOW_TRACKING_USERNAME" in err
    assert "Traceback" not in err
    assert not (workspace.root / "work").exists()


def test_run_with_both_passwords_works_and_keeps_them_nowhere(
    workspace: Workspace, prefect_url: str, mlflow_url: str
) -> None:
    env = {
        "PREFECT_API_URL": prefect_url,
        "PREFECT_API_AUTH_STRING": f"{USER}:{SECRET}",
        "MLFLOW_TRACKING_URI": mlflow_url,
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": SECRET,
    }
    code, out, err = _cli(workspace, env, "run", SUBJECT, "--json")
    assert code == 0, err[-2000:]
    assert json.loads(out)["version"]["version"] == 1
    code, shown, err = _cli(workspace, env, "status", "--json")
    assert code == 0, err[-2000:]
    assert json.loads(shown)["servers"] == {"prefect": prefect_url, "mlflow": mlflow_url}
    assert SECRET not in out + shown + err
    found = [path for path in workspace.root.rglob("*") if path.is_file()]
    assert {path.name for path in found} >= {"job.json", "train.log", "index.html"}
    assert [path for path in found if SECRET.encode() in path.read_bytes()] == []
