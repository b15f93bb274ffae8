"""The commands watch and notify: automations of Prefect."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

import typer

from cli.server import lasting_api
from cli.services import api_in_use
from cli.session import JsonOption, open_session


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(watch)
    app.command()(notify)


def _webhook(text: str) -> str:
    """An address that a webhook can have. Raises BadParameter, which does not repeat it."""
    try:
        parts = urlsplit(text.strip())
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_whole = False
    if not is_whole:
        raise typer.BadParameter("not an address that begins with https:// or http://")
    return text.strip()


def watch(
    *,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks.")] = 30,
    json: JsonOption = False,
) -> None:
    """Ask Prefect for a run when a subject's photos change; `up` does it, too.

    Deploy first: the automation of `train-subject/local` starts the run.
    """
    session = open_session(as_json=json)
    url = lasting_api(session.env, api_in_use(session.workspace, session.env))
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks import photo_watch

    with temporary_settings({PREFECT_API_URL: url}):
        photo_watch.watch(session.workspace, every_s=every, say=session.terminal.say)
    session.terminal.finish({"stopped": True}, lambda _: None)


def notify(
    url: Annotated[
        str,
        typer.Argument(
            parser=_webhook,
            metavar="URL",
            envvar="DREAMBOOTH_WEBHOOK",
            help="Address of the webhook, such as an incoming webhook of Slack or Mattermost.",
        ),
    ],
    *,
    json: JsonOption = False,
) -> None:
    """Call a webhook when a champion changes and when a run of a deployment fails.

    Repeat with another address to replace it. Prefect stores the address encrypted.
    """
    session = open_session(as_json=json)
    api = lasting_api(session.env, api_in_use(session.workspace, session.env))
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks import notifications

    with temporary_settings({PREFECT_API_URL: api}):
        names = notifications.notify(session.workspace, url)
    host = urlsplit(url).hostname
    session.terminal.finish(
        {"automations": names, "host": host},
        lambda console: console.print("\n".join(f"{host}: {name}" for name in names)),
    )
