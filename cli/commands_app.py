"""The command app: the web app of a workspace, in a process that imports no command."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cli import app_address
from cli.ports import require_free
from cli.session import JsonOption, open_session
from dreambooth_core import config, environment
from dreambooth_core.errors import SettingsError


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("app")(start)


def start(
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Others than 127.0.0.1 need a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the app.")] = 7860,
    json: JsonOption = False,
) -> None:
    """Open the web app: add subjects, change settings, train. Stop it with Ctrl-C."""
    session = open_session(as_json=json)
    if not environment.is_installed("nicegui"):
        raise SettingsError(
            "the app is not installed", hint='pip install "dreambooth-pipeline[app]"'
        )
    app_address.check_password(host, session.env)
    require_free({"--port": port})
    config.load_settings(session.workspace.params)
    url = app_address.url_of(host, port)
    session.terminal.finish({"url": url}, lambda console: console.print(f"app: {url}"))
    root = str(session.workspace.root)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "app", root, host, str(port)], session.env)
