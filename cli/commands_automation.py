"""The command watch."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.server import lasting_api
from cli.services import running_api
from cli.session import JsonOption, open_session


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(watch)


def watch(
    *,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks.")] = 30,
    json: JsonOption = False,
) -> None:
    """Ask Prefect for a run when a subject's photos change; `up` does it, too.

    Deploy first: the automation of `train-subject/local` starts the run.
    """
    session = open_session(as_json=json)
    url = lasting_api(session.env, running=running_api(session.workspace))
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks import photo_watch

    with temporary_settings({PREFECT_API_URL: url}):
        photo_watch.watch(session.workspace, every_s=every, say=session.terminal.say)
    session.terminal.finish({"stopped": True}, lambda _: None)
