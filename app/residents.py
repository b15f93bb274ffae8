"""Two processes that run commands one after another: one draws pictures, one asks the registry.

They load torch and MLflow once, when a room first needs them, and end after some idle minutes, so
that the memory of models is free again. Pictures are sampled one by one, in the order of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from nicegui import app as web

from app.commands import CommandError, error_of
from app.site import Site

_IDLE_S = 300.0
_LIMIT = 64 << 20


class Resident:
    """A process of `cli.resident`, started at the first call and again after its end.

    It imports `modules` before its first command.
    """

    def __init__(self, site: Site, *modules: str) -> None:
        self._site, self._modules = site, modules
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._end: asyncio.TimerHandle | None = None

    async def call(self, *words: str) -> dict[str, Any]:
        """Run a command and return its object. Raises CommandError with its error.

        The command is finished even if the caller is gone meanwhile.
        """
        work = asyncio.ensure_future(self._call(words))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(work)

    async def warm_up(self) -> None:
        """Start the process ahead of its first call: its imports take longer than a picture."""
        async with self._at_work():
            await self._started()

    async def _call(self, words: tuple[str, ...]) -> dict[str, Any]:
        async with self._at_work():
            answer = await self._ask([*words, "--json"])
        return _result(words, answer)

    @contextlib.asynccontextmanager
    async def _at_work(self) -> AsyncIterator[None]:
        """One call after another; the process ends some idle minutes after the last."""
        async with self._turn:
            if self._end is not None:
                self._end.cancel()
            try:
                yield
            finally:
                self._end = asyncio.get_running_loop().call_later(_IDLE_S, self.stop)

    async def _ask(self, words: list[str]) -> dict[str, Any]:
        process, line = await self._started(), b""
        with contextlib.suppress(ConnectionError, ValueError):
            if process.stdin is not None and process.stdout is not None:
                process.stdin.write(json.dumps(words).encode() + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
        if not line:
            self.stop()
            raise CommandError(
                f"the process that runs `dreambooth {words[0]}` has ended",
                hint="repeat it; if it ends again, this machine may lack memory",
            )
        return json.loads(line)

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "cli.resident", *self._modules),
                cwd=self._site.workspace.root,
                env=dict(self._site.env),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=_LIMIT,
            )
        return self._process

    def stop(self) -> None:
        """End the process; the next call starts another."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        self._process = None


def _result(words: tuple[str, ...], answer: dict[str, Any]) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(answer["output"])
    except ValueError:
        last = answer["messages"].strip().splitlines()[-1:]
        said = "".join(last).removeprefix("Error: ")
        raise CommandError(said or f"dreambooth {words[0]} failed") from None
    if answer["exit_code"] == 0:
        return result
    raise error_of(result["error"])


class Residents:
    """The resident processes of the app."""

    def __init__(self, site: Site) -> None:
        self.drawing, self.registry = Resident(site, "cli.generation"), Resident(site)
        web.on_shutdown(self._stop)

    def _stop(self) -> None:
        self.drawing.stop()
        self.registry.stop()


_known: dict[Path, Residents] = {}


def residents_of(site: Site) -> Residents:
    """The processes that all rooms of a site share."""
    return _known.setdefault(site.workspace.root, Residents(site))
