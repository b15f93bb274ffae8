"""A real PostgreSQL server for tests and benchmarks, from the programs of the system."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dreambooth_core.supervision import free_port

NOBODY = 65534
"""The server refuses to run as root."""


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The address of the empty database `postgres` in a server that ends with the block.

    It listens on loopback and accepts any password.
    """
    user = {"user": NOBODY, "group": NOBODY} if os.geteuid() == 0 else {}
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        there = ["-D", f"{name}/data"]
        options = {"cwd": name, "stdout": subprocess.DEVNULL, **user}
        subprocess.run(["initdb", *there, "-A", "trust", "-U", "ada"], check=True, **options)
        server = ["-o", f"-p {port} -k {name} -h 127.0.0.1", "-l", f"{name}/log", "-w"]
        subprocess.run(["pg_ctl", *there, *server, "start"], check=True, **options)
        try:
            yield f"postgresql://ada:pl4nted@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run(["pg_ctl", *there, "-m", "immediate", "stop"], check=True, **options)
