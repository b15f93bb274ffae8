"""What every command shares: the workspace, the environment, and its output.

With --json, stdout carries one JSON object and everything else goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dreambooth_core import environment
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.workspace import Workspace, find_workspace

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to stdout, all else to stderr.")
]
"""The option that every command has."""

SubjectArgument = Annotated[str, typer.Argument(help="Name of a subject in params.yaml.")]


_FILE_WIDTH = 10_000
"""Columns of a file or a pipe, which nobody reads at the width of a terminal."""


def make_console(*, stderr: bool) -> Console:
    """A console that prints text as it is: no markup in it, no line wrapped, no row cut in a file.

    Only tables in a terminal fold their cells to its width.
    """
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr,
        width=None if stream.isatty() else _FILE_WIDTH,
        soft_wrap=True,
        highlight=False,
        markup=False,
        emoji=False,
    )


def user_path(text: str | Path) -> Path:
    """The path that a user names; ~ is the home folder. Raises BadParameter."""
    if isinstance(text, Path):  # a default: Typer parses those too
        return text
    if not text.strip() or "\0" in text:
        raise typer.BadParameter("the path is empty" if not text.strip() else "not a path")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~nobody
        return Path(text)


@dataclass(frozen=True)
class Terminal:
    """Prints text and tables, or one JSON object."""

    as_json: bool
    stdout_fd: int

    @property
    def console(self) -> Console:
        """The console for text: stdout, or stderr if stdout carries JSON."""
        return make_console(stderr=self.as_json)

    def say(self, text: str) -> None:
        """Print a line while the command works."""
        self.console.print(text)

    def warn(self, text: str) -> None:
        """Print a warning, as one line."""
        self.console.print(f"warning: {text}", style="yellow")

    def finish(self, result: Mapping[str, Any], show: Callable[[Console], None]) -> None:
        """Print the command's result once, as JSON or through `show`."""
        if self.as_json:
            self._write(result)
        else:
            show(self.console)

    def print_raw(self, text: str) -> None:
        """Print text that a machine may read: never wrapped, styled or cut."""
        self.console.print(text, end="")

    def fail(self, error: BaseException, exit_code: int) -> None:
        """Print an error to stderr; with --json, also as the JSON object."""
        make_console(stderr=True).print(f"error: {error}", style="red")
        if self.as_json:
            known = isinstance(error, DreamBoothError)
            fields = error.to_json() if known else {"what": str(error)}
            self._write({"error": fields, "exit_code": exit_code})

    def _write(self, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
        with os.fdopen(os.dup(self.stdout_fd), "w", encoding="utf-8") as stream:
            stream.write(text)


@dataclass(frozen=True)
class Session:
    """The workspace, its environment, and the terminal."""

    workspace: Workspace
    env: dict[str, str]
    terminal: Terminal


workspace_option: ContextVar[Path | None] = ContextVar("workspace_option", default=None)
keeps_models: ContextVar[bool] = ContextVar("keeps_models", default=False)
"""Whether this process runs more commands, so that the models of one serve the next."""
_terminal: ContextVar[Terminal | None] = ContextVar("terminal", default=None)


def open_session(*, as_json: bool, **more: str) -> Session:
    """Find the workspace and complete its environment, with `more` too. Raises SettingsError."""
    opened = open_terminal(as_json=as_json)
    root = find_workspace(workspace_option.get() or Path.cwd())
    return Session(Workspace(root), environment.set_defaults(root, **more), opened)


def terminal() -> Terminal:
    """The terminal of this call; a plain one if the command has not opened its own yet."""
    return _terminal.get() or open_terminal(as_json=False)


def close_terminal() -> None:
    """Close the terminal, so that the next command of this process opens its own."""
    opened = _terminal.get()
    if opened is not None:
        os.close(opened.stdout_fd)
        _terminal.set(None)


def open_terminal(*, as_json: bool) -> Terminal:
    """Open the terminal. With `as_json`, redirect what libraries print from stdout to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    if as_json:
        os.dup2(2, 1)
    opened = Terminal(as_json, kept)
    _terminal.set(opened)
    return opened
