"""infra/compose.yaml's services, started from its own commands and settings without containers.

SeaweedFS is no package here, so moto's server stands for the object store.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core import files
from dreambooth_core.supervision import free_port
from tests import services
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

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

NOBODY = 65534
BIN = Path(sys.executable).parent


class Services:
    """The compose file's services on free ports of the loopback interface."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.secrets = services.make_secrets(home / ".env")
        self._services = services.compose(self.secrets)
        names = {"postgres": 5432, "s3": 8333, "prefect": 4200, "mlflow": 5000}
        self.ports = {name: free_port() for name in names}
        self._places = {
            f"{host}:{port}": f"127.0.0.1:{self.ports[name]}"
            for name, port in names.items()
            for host in (name, "127.0.0.1")
        }
        self._stack = contextlib.ExitStack()

    def environment(self, name: str) -> dict[str, str]:
        """A service's variables of the compose file, with this machine's addresses."""
        values: dict[str, Any] = self._services[name]["environment"]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_TR"))}
        own = {key: self._here(str(value)) for key, value in values.items()}
        return {**kept, "PATH": f"{BIN}:{kept['PATH']}", "TMPDIR": str(self.home), **own}

    def command(self, name: str) -> list[str]:
        texts = [self._here(part) for part in self._services[name]["command"]]
        return [text.replace("/services/", f"{services.INFRA}/services/") for text in texts]

    def _here(self, text: str) -> str:
        for there, here in self._places.items():
            text = text.replace(there, here)
        return text.replace("/var/lib/dreambooth", str(self.home / "prefect"))

    def start(self, name: str, command: list[str], *, url: str, **variables: str) -> None:
        log = self._stack.enter_context((self.home / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            command, env={**self.environment(name), **variables}, cwd=self.home,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        self._stack.callback(_end, process)
        deadline = time.monotonic() + 300
        while status(url) is None:
            assert process.poll() is None, (self.home / f"{name}.log").read_text()[-3000:]
            assert time.monotonic() < deadline, name
            time.sleep(0.5)

    def start_database(self) -> None:
        user = {"user": NOBODY, "group": NOBODY} if os.geteuid() == 0 else {}
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        Path(folder).chmod(0o777)
        environment = self.environment("postgres")
        password = Path(folder) / "password"
        password.write_text(environment["POSTGRES_PASSWORD"])
        password.chmod(0o644)
        options = {"cwd": folder, "stdout": subprocess.DEVNULL, **user}
        where = ["-D", f"{folder}/data"]
        rules = environment["POSTGRES_INITDB_ARGS"].split()
        subprocess.run(
            ["initdb", *where, "-U", "postgres", "--pwfile", password, *rules],
            check=True, **options,
        )  # fmt: skip
        server = f"-p {self.ports['postgres']} -k {folder} -h 127.0.0.1"
        subprocess.run(["pg_ctl", *where, "-o", server, "-l", f"{folder}/log", "-w", "start"],
                       check=True, **options)  # fmt: skip
        stop = ["pg_ctl", *where, "-m", "immediate", "stop"]
        self._stack.callback(subprocess.run, stop, check=True, **options)
        self.psql_as("postgres", script=services.INFRA / "services" / "roles.sh")

    def psql_as(self, role: str, *, script: Path | None = None, database: str = "", sql: str = ""):
        """Run a script, or a query as a role."""
        names = {"postgres": "POSTGRES_PASSWORD", "mlflow": "MLFLOW_DATABASE_PASSWORD",
                 "prefect": "PREFECT_DATABASE_PASSWORD"}  # fmt: skip
        environment = self.environment("postgres") | {
            "PGHOST": "127.0.0.1", "PGPORT": str(self.ports["postgres"]),
            "PGPASSWORD": self.secrets[names[role]],
        }  # fmt: skip
        query = ["psql", "-U", role, "-d", database, "-tAc", sql]
        return subprocess.run(
            ["sh", script] if script else query,
            env=environment, capture_output=True, text=True, check=script is not None,
        )  # fmt: skip

    def start_all(self) -> None:
        self.start_database()
        s3 = self.ports["s3"]
        self.start("s3", [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(s3)],
                   url=f"http://127.0.0.1:{s3}")  # fmt: skip
        prefect = self.command("prefect")
        prefect[prefect.index("--host") + 1] = "127.0.0.1"
        prefect[prefect.index("--port") + 1] = str(self.ports["prefect"])
        self.start("prefect", prefect, url=f"{self.url('prefect')}/api/health")
        self.start("mlflow", self.command("mlflow"), url=f"{self.url('mlflow')}/health",
                   HOST="127.0.0.1", PORT=str(self.ports["mlflow"]), WORKERS="1")  # fmt: skip
        for _ in range(2):  # a second start changes nothing
            subprocess.run(
                self.command("first-start"), env=self.environment("first-start"), check=True
            )

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def bucket(self, name: str) -> list[str]:
        """The keys of a bucket."""
        import boto3

        url = self.url("s3")
        secret = {"aws_access_key_id": "admin", "aws_secret_access_key": "x"}
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **secret)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=name)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def close(self) -> None:
        self._stack.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 15)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait(10)


def status(url: str) -> int | None:
    """The HTTP status that a URL answers with, or None."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Services]:
    home = tmp_path / "services"
    home.mkdir()
    running = Services(home)
    try:
        running.start_all()
        yield running
    finally:
        running.close()


def test_whole_run_on_all_services(tmp_path: Path, started: Services) -> None:
    root = workspaces.build(tmp_path / "checkout").root
    worker = started.environment("worker")
    environment = workspaces.environment(root) | {
        name: value for name, value in worker.items()
        if name.startswith(("AWS_", "MLFLOW_", "PREFECT_API"))
    }  # fmt: skip

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
