"""The commands run, report and up."""

from __future__ import annotations

import logging
import webbrowser
from typing import Annotated, Any

import typer

from cli import screens, services
from cli.progress import TerminalReporter
from cli.server import prefect_api
from cli.session import JsonOption, Session, SubjectArgument, open_session
from dreambooth_core import config
from dreambooth_core.pipeline import StageContext, input_checks, run_stage
from tasks.progress import reporter
from tasks.staleness import refuse_the_impossible


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(run)
    app.command()(report)
    app.command()(up)


def run(subject: SubjectArgument, *, json: JsonOption = False) -> None:
    """Run the whole pipeline: from photos to the best checkpoint in the registry."""
    # The command itself reports a failure; Prefect's log would repeat it.
    session = open_session(as_json=json, PREFECT_LOGGING_LEVEL="CRITICAL")
    # Report a wrong name or setting before anything starts.
    view = config.load_view(session.workspace, subject)
    refuse_the_impossible(session.workspace, view, env=session.env)
    for warning in input_checks.warnings(session.workspace.root, view):
        session.terminal.warn(warning)
    running = services.running_api(session.workspace)
    with prefect_api(session.workspace, session.env, running=running) as api_url:
        summary = _run_flow(session, subject, api_url)
    session.terminal.finish(summary, lambda console: screens.show_run(console, summary))


def _run_flow(session: Session, subject: str, api_url: Any) -> dict[str, Any]:
    from prefect import tags
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.train_subject import train_subject

    logging.getLogger("dreambooth").setLevel(logging.WARNING)
    with (
        TerminalReporter(session.terminal.console) as shown,
        temporary_settings({PREFECT_API_URL: api_url()}),
        tags("dreambooth", "by-hand"),
    ):
        reporter.set(shown)
        return train_subject(subject, str(session.workspace.root))


def report(
    subject: SubjectArgument,
    *,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the report in a browser.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Render the HTML report of a subject's last run."""
    session = open_session(as_json=json)
    places = session.workspace.places(subject)
    context = StageContext(config.load_view(session.workspace, subject), places, env=session.env)
    run_stage(context, "report")
    page = places.report_page
    if open_page:
        webbrowser.open(page.as_uri())
    session.terminal.finish(
        {"subject": subject, "report": str(page)}, lambda console: screens.show_page(console, page)
    )


def up(
    *,
    pool: Annotated[str, typer.Option(help="Prefect work pool of the worker.")] = "local",
    prefect_port: Annotated[int, typer.Option(help="Port of the Prefect server.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow server.")] = 5000,
    json: JsonOption = False,
) -> None:
    """Start a Prefect server, an MLflow server and a worker; stop them with Ctrl-C."""
    session = open_session(as_json=json)
    ports = services.Ports(prefect=prefect_port, mlflow=mlflow_port)
    local = services.Services(session.workspace, session.env, ports, pool=pool)
    ended = local.serve(session.terminal.say)
    session.terminal.finish({"stopped": True, "services": ended}, lambda _: None)
