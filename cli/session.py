"""What the commands of one call of `dreambooth` share: the workspace and the terminal."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cli.terminal import Terminal, open_terminal
from dreambooth_core import environment
from dreambooth_core.workspace import Workspace, find_workspace

workspace_option: ContextVar[Path | None] = ContextVar("workspace_option", default=None)
_terminal: ContextVar[Terminal | None] = ContextVar("terminal", default=None)

JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout; all else goes to stderr.")
]
"""The option that every command has."""


@dataclass(frozen=True)
class Session:
    """The workspace, the environment completed for it, and the terminal."""

    workspace: Workspace
    env: dict[str, str]
    terminal: Terminal


def open_session(*, as_json: bool, **more: str) -> Session:
    """Find the workspace and complete the environment, with `more` too. Raises SettingsError."""
    shown = open_terminal(as_json=as_json)
    _terminal.set(shown)
    root = find_workspace(workspace_option.get() or Path.cwd())
    return Session(Workspace(root), environment.set_defaults(root, **more), shown)


def terminal() -> Terminal:
    """The terminal of this call; one for people when no command has opened one yet."""
    return _terminal.get() or open_terminal(as_json=False)
