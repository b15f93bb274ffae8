"""The doctor shows what is in use, and advice only where something is wrong."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cli import doctor
from cli.finding import check
from dreambooth_core.masking import without_secrets
from dreambooth_core.workspace import Workspace
from tests.paths import ROOT


def test_advice_stands_only_where_something_is_wrong(tmp_path: Path) -> None:
    found = doctor.examine(Workspace(ROOT), {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/m.db"})
    assert {each["what"] for each in found} >= {"packages", "free disk", "Prefect server"}
    assert [each for each in found if each["state"] == "ok" and each["hint"]] == []
    wrong = check("disk", "1 GiB", state="warning", hint="dreambooth clean")
    assert wrong["hint"] == "dreambooth clean"


def test_servers_in_use_are_shown_without_their_passwords() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    env = {
        "PREFECT_API_URL": f"http://anna:secret@127.0.0.1:{port}/api",
        "MLFLOW_TRACKING_URI": f"http://token-secret@127.0.0.1:{port}",
    }
    shown = [each for each in doctor.examine(Workspace(ROOT), env) if "127.0.0.1" in str(each)]
    assert len(shown) == 2
    assert all(each["state"] == "wrong" and each["hint"] for each in shown)
    assert "secret" not in str(shown)
    assert f"http://anna:***@127.0.0.1:{port}/api" in str(shown)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://anna:p@ss:w@db:5432/mlflow", "postgresql://anna:***@db:5432/mlflow"),
        ("https://abc123@server/api", "https://***@server/api"),
        ("postgresql://db/mlflow?user=a&password=p", "postgresql://db/mlflow?user=a&password=***"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_passwords_and_tokens_are_masked(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown
