"""The commands run, save, status, report, up and metrics."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from cli import running, saving, screens, services
from cli.ports import DEFAULT_PORTS, Ports
from cli.session import JsonOption, SubjectArgument, open_session
from dreambooth_core import config
from dreambooth_core.pipeline import StageContext, run_stage
from dreambooth_core.supervision import stop_on_signals
from tasks import this_run

MetricsPort = Annotated[
    int, typer.Option(min=1, max=65535, help="Port of the metrics for Prometheus.")
]

_NOT_IN_NAMES = frozenset("/%&<>")


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(run)
    app.command()(save)
    app.command()(status)
    app.command()(report)
    app.command()(up)
    app.command()(metrics)


def run(
    subject: Annotated[
        str | None, typer.Argument(help="Name of a subject in params.yaml.", show_default=False)
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Run every subject, one by one.")] = False,
    stage: Annotated[
        str | None,
        typer.Option(help=f"Stop after this stage: {', '.join(running.STAGES_BY_NAME)}."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting for this run only, such as train.max_train_steps=100; repeat for more.",
        ),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Run the whole pipeline: from photos to the best checkpoint in the registry."""
    session = open_session(as_json=json, **running.SILENT_PREFECT)
    order = running.Order(stage, this_run.parse(changes or ()))
    names = running.subjects_of(session, subject, every=every)
    if every:
        results = running.run_all(session, names, order)
        session.terminal.finish(
            {"subjects": results}, lambda console: screens.show_runs(console, results)
        )
        return running.exit_code_of(results)
    summary = running.run_one(session, names[0], order)
    session.terminal.finish(summary, lambda console: screens.show_run(console, summary))
    return 0


def save(subject: SubjectArgument, *, json: JsonOption = False) -> None:
    """Save the training in progress at its present step, without stopping it."""
    session = open_session(as_json=json)
    view = config.load_view(session.workspace, subject)
    step = saving.save_now(session.workspace, view.name)
    session.terminal.finish(
        {"subject": subject, "step": step},
        lambda console: console.print(
            f"{subject}: saved at step {step}; the training continues, and after a kill "
            "it resumes from there"
        ),
    )


def status(
    subject: Annotated[
        str | None, typer.Argument(help="Name of a subject. Default: all.", show_default=False)
    ] = None,
    *,
    json: JsonOption = False,
) -> None:
    """Show what is done, what would run again, the versions in use, and the servers."""
    from cli import status as looking

    session = open_session(as_json=json)
    found = looking.look(session.workspace, session.env, subject)
    session.terminal.finish(found, lambda console: looking.show(console, found))


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


def _pool_name(text: str) -> str:
    """A name that Prefect accepts. Raises BadParameter."""
    if not text.strip() or not _NOT_IN_NAMES.isdisjoint(text):
        raise typer.BadParameter(f"not a name, or one with {' '.join(sorted(_NOT_IN_NAMES))}")
    return text


def up(
    *,
    pool: Annotated[
        str,
        typer.Option(parser=_pool_name, metavar="NAME", help="Prefect work pool of the worker."),
    ] = "local",
    prefect_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the Prefect server.")
    ] = DEFAULT_PORTS["--prefect-port"],
    mlflow_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the MLflow server.")
    ] = DEFAULT_PORTS["--mlflow-port"],
    metrics_port: MetricsPort = DEFAULT_PORTS["--metrics-port"],
    json: JsonOption = False,
) -> None:
    """Start a Prefect server, an MLflow server and a worker; stop them with Ctrl-C."""
    session = open_session(as_json=json)
    ports = Ports(prefect=prefect_port, mlflow=mlflow_port, metrics=metrics_port)
    local = services.Services(session.workspace, session.env, ports, pool=pool)
    ended = local.serve(session.terminal.say)
    session.terminal.finish({"stopped": True, "services": ended}, lambda _: None)


def metrics(
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines too.")
    ] = "127.0.0.1",
    port: MetricsPort = DEFAULT_PORTS["--metrics-port"],
    once: Annotated[
        bool, typer.Option("--once", help="Print the metrics, and serve nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Serve metrics for Prometheus: runs, training, queue, disk and memory."""
    from cli import metrics as exporter

    session = open_session(as_json=json)
    if once:
        text = exporter.text_of(session.workspace, session.env)
        session.terminal.finish({"metrics": text}, lambda _: session.terminal.print_raw(text))
        return
    stop = stop_on_signals()
    with exporter.served(session.workspace, session.env, host=host, port=port) as url:
        session.terminal.say(f"metrics: {url}; stop with Ctrl-C")
        stop.wait()
    session.terminal.finish({"stopped": True}, lambda _: None)
