"""infra/compose.yaml's services, started from its own commands and settings without containers.

SeaweedFS is no package here, so moto's server stands for the object store.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core import files
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT
from tests.services import Services, status

_PACKAGES = ("psycopg2", "boto3", "moto", "flask_wtf", "s3fs")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.service,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("initdb") is None, reason="PostgreSQL is not installed"),
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, _PACKAGES)), reason="needs the extras server and s3"
    ),
]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Services]:
    with Services.started(tmp_path / "services") as running:
        yield running


def test_whole_run_on_all_services(tmp_path: Path, started: Services) -> None:
    root = workspaces.build(tmp_path / "checkout").root
    environment = started.environment_of_runs(root)

    def run(*command: str) -> str:
        done = subprocess.run([sys.executable, "-m", *command], cwd=root, env=environment,
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-4000:])
        return done.stdout

    assert status(f"{started.url('mlflow')}/api/2.0/mlflow/registered-models/search") == 401
    assert status(f"{started.url('prefect')}/api/admin/settings") == 401
    run("cli", "run", SUBJECT, "--json")
    assert any("model_index.json" in key for key in started.bucket("mlflow"))
    ran = started.psql_as(
        "prefect",
        database="prefect",
        sql="select count(*) from flow_run where state_type='COMPLETED'",
    )
    assert int(ran.stdout) >= 1
    versions = started.psql_as(
        "mlflow", database="mlflow", sql="select count(*) from model_versions"
    )
    assert versions.stdout.strip() == "1"
    assert started.psql_as("mlflow", database="prefect", sql="select 1").returncode != 0

    run("dvc", "remote", "add", "--default", "s3", "s3://dvc")
    run("dvc", "push")
    assert started.bucket("dvc")
    before = files.tree_hashes(root / "work" / SUBJECT)
    shutil.rmtree(root / ".dvc" / "cache")
    shutil.rmtree(root / "work")
    run("dvc", "pull", "--allow-missing")
    after = files.tree_hashes(root / "work" / SUBJECT)
    assert after
    assert after.items() <= before.items()
    assert not any(_holds(root, value) for value in started.secrets.values())


def _holds(folder: Path, secret: str) -> bool:
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return any(secret.encode() in path.read_bytes() for path in paths)


BUSY_S = 20.0


def test_run_survives_a_restarted_database_and_a_busy_object_store(
    tmp_path: Path, started: Services
) -> None:
    root = workspaces.build(tmp_path / "checkout").root
    workspaces.change(root, "train.max_train_steps", 60)
    workspaces.change(root, "train.checkpointing_steps", 30)
    log = tmp_path / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "run", SUBJECT],
            cwd=root, env=started.environment_of_runs(root), stdout=sink, stderr=sink,
        )  # fmt: skip

    def wait_for(pattern: str) -> None:
        while not re.search(pattern, log.read_text(errors="replace"), re.MULTILINE):
            assert process.poll() is None, log.read_text(errors="replace")
            time.sleep(0.05)

    wait_for(r"^  train \d+/")
    started.restart_database()
    wait_for(r"^confirm +done")
    started.gate.is_busy = True
    threading.Timer(BUSY_S, setattr, (started.gate, "is_busy", False)).start()
    code, printed = process.wait(900), log.read_text(errors="replace")
    assert code == 0, printed
    assert "Traceback" not in printed
    assert started.gate.refused > 0
    versions = started.psql_as(
        "mlflow", database="mlflow", sql="select count(*) from model_versions"
    )
    assert versions.stdout.strip() == "1"
