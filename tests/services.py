"""infra/compose.yaml as the tests read it, and its services started without containers."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from dreambooth_core.supervision import free_port
from tests.flow import workspaces
from tests.paths import ROOT
from tests.postgres import NOBODY

INFRA = ROOT / "infra"
COMPOSE = INFRA / "compose.yaml"
BIN = Path(sys.executable).parent
_VARIABLE = re.compile(r"\$\{(\w+)(?::[?-]([^}]*))?\}")


def make_secrets(file: Path) -> dict[str, str]:
    subprocess.run(
        ["sh", INFRA / "services" / "secrets.sh", file], check=True, stdout=subprocess.DEVNULL
    )
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def compose(secrets: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The services by name."""
    text = _VARIABLE.sub(lambda found: secrets.get(found[1], found[2]), COMPOSE.read_text())
    return YAML(typ="safe").load(text)["services"]


class StoreGate(http.server.ThreadingHTTPServer):
    """Forwards requests to the object store, or answers 503 (Slow Down) while `is_busy`."""

    daemon_threads = True
    is_busy = False
    refused = 0
    store = 0

    @classmethod
    @contextlib.contextmanager
    def in_front_of(cls, store: int, *, at: int) -> Iterator[StoreGate]:
        """Listen on port `at` for the store on port `store`."""
        with cls(("127.0.0.1", at), _Forward) as gate:
            gate.store = store
            threading.Thread(target=gate.serve_forever, daemon=True).start()
            yield gate
            gate.shutdown()


class _Forward(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        """Pass one request on, with its body in one piece."""
        gate = self.server
        assert isinstance(gate, StoreGate)
        body = self._body()
        if gate.is_busy:
            gate.refused += 1
            self._send(503, {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        store = http.client.HTTPConnection("127.0.0.1", gate.store, timeout=60)
        dropped = ("transfer-encoding", "expect", "content-length")
        kept = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
        store.request(self.command, self.path, body, {**kept, "Content-Length": str(len(body))})
        found = store.getresponse()
        self._send(found.status, dict(found.getheaders()), found.read())

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the requests out of the output of tests."""


class Services:
    """The compose file's services on free ports of the loopback interface."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.secrets = make_secrets(home / ".env")
        self._services = compose(self.secrets)
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
        return [text.replace("/services/", f"{INFRA}/services/") for text in texts]

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
        self._restart_database = lambda: subprocess.run(
            ["pg_ctl", *where, "-o", server, "-l", f"{folder}/log", "-w", "-m", "fast", "restart"],
            check=True, **options,
        )  # fmt: skip
        self.psql_as("postgres", script=INFRA / "services" / "roles.sh")

    def restart_database(self) -> None:
        """Restart PostgreSQL: all open connections end."""
        self._restart_database()

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
        store = free_port()
        self.start("s3", [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(store)],
                   url=f"http://127.0.0.1:{store}")  # fmt: skip
        self.gate = self._stack.enter_context(StoreGate.in_front_of(store, at=self.ports["s3"]))
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

    def environment_of_runs(self, root: Path) -> dict[str, str]:
        """The environment of a worker's processes in the workspace at `root`."""
        names = ("AWS_", "MLFLOW_", "PREFECT_API")
        worker = self.environment("worker")
        own = {name: value for name, value in worker.items() if name.startswith(names)}
        return workspaces.environment(root) | own

    @classmethod
    @contextlib.contextmanager
    def started(cls, home: Path) -> Iterator[Services]:
        """All services, which end with the block; `home` is a new folder for them."""
        home.mkdir()
        running = cls(home)
        with running._stack:
            running.start_all()
            yield running


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
