"""`dreambooth notify`: a webhook hears of champions and failed runs; nothing keeps its secret."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dreambooth_core.supervision import free_port
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces
from tests.flow.receiver import receiving
from tests.flow.running_up import Up, running, wait_for
from tests.flow.workspaces import SUBJECT

SECRET = "planted-secret-of-a-webhook"
MODEL = "dreambooth-mug"


def notify(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", "notify", *arguments], cwd=root,
        env={**workspaces.environment(root), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("url", ["", "hooks.example.org/x", "ftp://example.org", "https://", "[::"])
def test_address_that_no_webhook_can_have_is_refused(tmp_path: Path, url: str) -> None:
    workspaces.write_settings(tmp_path, (SUBJECT,))
    done = notify(tmp_path, url)
    assert done.returncode == 2
    assert "not an address that begins with https:// or http://" in " ".join(done.stderr.split())


def test_unreachable_prefect_is_one_sentence(tmp_path: Path) -> None:
    workspaces.write_settings(tmp_path, (SUBJECT,))
    done = notify(
        tmp_path, f"https://example.org/{SECRET}",
        PREFECT_API_URL=f"http://127.0.0.1:{free_port()}/api",
    )  # fmt: skip
    assert done.returncode == 1
    assert "is unreachable" in done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.service
@pytest.mark.timeout(1500)
def test_webhook_hears_of_promotions_and_of_a_failed_run(tmp_path: Path) -> None:
    workspace = workspaces.build(tmp_path / "checkout")
    (workspace.root / "flows").symlink_to(workspaces.REPOSITORY / "flows")
    with receiving(f"/{SECRET}") as receiver, running(workspace, tmp_path / "log") as up:
        assert "notify when a run fails" in up.call("cli", "notify", receiver.url)
        run = up.tick("train-subject/local", subject=SUBJECT)
        wait_for(lambda: receiver.calls or "Failed" in up.states(run), timeout_s=600)
        (call,) = receiver.calls
        assert call["event"] == "dreambooth.champion.changed"
        assert call["text"].startswith("mug: version 1 is the champion. dreambooth-mug/1 becomes")
        told = call["payload"]
        assert {key: told[key] for key in ("model", "version", "previous", "how")} == {
            "model": MODEL, "version": 1, "previous": None, "how": "comparison",
        }  # fmt: skip
        assert set(told["scores"]) >= {"dino", "clip_t"}
        wait_for(lambda: up.states(run) == {"Completed"})

        forget_champion(up)
        up.call("cli", "promote", SUBJECT, "1", "--why", 'says "<me>"')
        wait_for(lambda: len(receiver.calls) == 2)
        assert receiver.texts()[1] == 'mug: version 1 is the champion. says "<me>"'
        up.call("cli", "promote", SUBJECT, "1")  # changes nothing, so it says nothing

        up.prefect("automation", "pause", "notify when the champion changes")
        up.call("cli", "notify", receiver.url)
        with up.client() as client:
            states = {each.name: each.enabled for each in client.read_automations()}
        assert states["notify when the champion changes"] is False
        assert states["notify when a run fails"] is True

        spoil_photos(workspace)
        failing = up.tick("train-subject/local", subject=SUBJECT)
        wait_for(lambda: len(receiver.calls) == 3, timeout_s=300)
        assert receiver.texts()[2].startswith("train-subject mug ended as Failed. ")
        assert "no photo in this folder" in receiver.texts()[2]
        assert str(failing) in receiver.calls[2]["payload"]["url"]
    assert not [path for path in files_of(workspace.root) if SECRET.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.service
@pytest.mark.timeout(900)
def test_promotion_succeeds_without_prefect_and_says_what_was_not_sent(tmp_path: Path) -> None:
    workspace = workspaces.build(tmp_path / "checkout")
    workspaces.run_in(workspace.root, sys.executable, "-m", "cli", "run", SUBJECT)
    client = MlflowClient(f"sqlite:///{workspace.root / 'mlflow.db'}")
    client.delete_registered_model_alias(MODEL, "champion")
    env = {
        **workspaces.environment(workspace.root),
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
    }
    done = subprocess.run(
        [sys.executable, "-m", "cli", "promote", SUBJECT, "1"], cwd=workspace.root, env=env,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "champion of dreambooth-mug: 1" in done.stdout
    assert "Prefect did not take the event of the new champion" in done.stderr
    assert "Traceback" not in done.stderr


def forget_champion(up: Up) -> None:
    """Remove the alias, as a user of MLflow's pages can."""
    url = up.workspace.service("mlflow")
    MlflowClient(url).delete_registered_model_alias(MODEL, "champion")


def spoil_photos(workspace: Workspace) -> None:
    folder = workspace.root / "data" / "instance" / SUBJECT
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "note.txt").write_text("no photo")


def files_of(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
