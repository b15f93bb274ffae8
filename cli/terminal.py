"""What the command line shows: one JSON object on stdout, or words and tables for people."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from dreambooth_core.errors import DreamBoothError


@dataclass(frozen=True)
class Terminal:
    """`say` is for people while a command works; `finish` is its result, once, at the end."""

    as_json: bool
    stdout_fd: int

    @property
    def console(self) -> Console:
        """For people: stdout, or stderr when stdout carries JSON."""
        return Console(stderr=self.as_json, highlight=False)

    def say(self, text: str) -> None:
        """Show a line to people."""
        self.console.print(text)

    def finish(self, result: Mapping[str, Any], show: Callable[[Console], None]) -> None:
        """Give the result: as JSON, or through `show`."""
        if self.as_json:
            self._write(result)
        else:
            show(self.console)

    def fail(self, error: BaseException, exit_code: int) -> None:
        """Tell what went wrong, readably; with --json as the one object as well."""
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False)
        if self.as_json:
            told = {"what": str(error)}
            if isinstance(error, DreamBoothError):
                told = {k: v for k, v in vars(error).items() if v is not None}
            self._write({"error": told, "exit_code": exit_code})

    def _write(self, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
        with os.fdopen(os.dup(self.stdout_fd), "w", encoding="utf-8") as stream:
            stream.write(text)


def open_terminal(*, as_json: bool) -> Terminal:
    """With `as_json`, whatever a library prints to stdout goes to stderr from now on."""
    sys.stdout.flush()
    kept = os.dup(1)
    if as_json:
        os.dup2(2, 1)
    return Terminal(as_json, kept)
