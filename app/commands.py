"""Runs `dreambooth` as a child process: the same code and errors as on the command line."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from app.site import Site
from dreambooth_core.errors import DreamBoothError

_AT_ONCE = 2
_slots = asyncio.Semaphore(_AT_ONCE)


class CommandError(DreamBoothError):
    """A command refused its input, or its work failed."""


async def call(site: Site, *words: str) -> dict[str, Any]:
    """Run a command with --json and return its object. Raises CommandError with its error."""
    async with _slots:
        process = await asyncio.create_subprocess_exec(
            *command(*words, "--json"),
            cwd=site.workspace.root,
            env=dict(site.env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
    try:
        result: dict[str, Any] = json.loads(out)
    except ValueError:
        last = err.decode(errors="replace").strip().splitlines()[-1:]
        raise CommandError(f"dreambooth {words[0]} failed", got="; ".join(last)) from None
    error = result.get("error")
    if error is not None and "exit_code" in result:
        parts = {name: error.get(name) for name in ("got", "allowed", "hint")}
        raise CommandError(error["what"], **parts)
    return result


def command(*words: str) -> list[str]:
    """The command line of `dreambooth` with this interpreter."""
    return [sys.executable, "-m", "cli", *words]
