"""Runs `dreambooth` as a child process: the same code and errors as on the command line."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any

from app.site import Site
from dreambooth_core.errors import DreamBoothError

_AT_ONCE = 2
_slots = asyncio.Semaphore(_AT_ONCE)


class CommandError(DreamBoothError):
    """A command refused its input, or its work failed."""


async def run_child(site: Site, *words: str) -> tuple[bytes, str]:
    """Run a module of this project; return its stdout, and the last line of its stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *words),
        cwd=site.workspace.root,
        env=dict(site.env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return out, "".join(err.decode(errors="replace").strip().splitlines()[-1:])


def error_of(error: Mapping[str, Any]) -> CommandError:
    """The error that a command printed as JSON."""
    parts = {name: error.get(name) for name in ("got", "allowed", "hint")}
    return CommandError(error["what"], **parts)


async def call(site: Site, *words: str) -> dict[str, Any]:
    """Run a command with --json and return its object. Raises CommandError with its error."""
    async with _slots:
        out, last = await run_child(site, "cli", *words, "--json")
    try:
        result: dict[str, Any] = json.loads(out)
    except ValueError:
        raise CommandError(f"dreambooth {words[0]} failed", got=last) from None
    error = result.get("error")
    if error is not None and "exit_code" in result:
        raise error_of(error)
    return result


def command(*words: str) -> list[str]:
    """The command line of `dreambooth` with this interpreter."""
    return [sys.executable, "-m", "cli", *words]
