"""The work of `dreambooth run`: one subject or all of them, a whole run or some stages."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cli import services
from cli.progress import TerminalReporter
from cli.server import prefect_api
from cli.session import Session
from dreambooth_core import config
from dreambooth_core.errors import DreamBoothError, SettingsError
from dreambooth_core.pipeline import STAGES, input_checks
from tasks import this_run
from tasks.progress import reporter
from tasks.staleness import refuse_the_impossible

STAGES_BY_NAME = STAGES[:-1]
"""What `--stage` takes. The report ends a whole run, after the comparison."""


@dataclass(frozen=True)
class Order:
    """What to run: up to which stage (None: everything), with which changed settings."""

    last: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


def subjects_of(session: Session, name: str | None, *, every: bool) -> list[str]:
    """The subjects to run. Raises SettingsError unless it is one by name, or all."""
    names = list(config.load_settings(session.workspace.params).subjects)
    if (name is None) == (not every):
        raise SettingsError(
            "run takes the name of one subject, or --all",
            got="both" if every else "neither",
            allowed=", ".join(names) or None,
            hint=f"dreambooth run {names[0]}" if names else "add one with `dreambooth subject add`",
        )
    if every and not names:
        raise SettingsError(
            "params.yaml has no subjects", hint="add one with `dreambooth subject add`"
        )
    return names if name is None else [name]


def _check_stage(last: str | None) -> None:
    """Raise SettingsError for a stage that does not exist."""
    if last is not None and last not in STAGES_BY_NAME:
        near = config.nearest(last, STAGES_BY_NAME)
        raise SettingsError(
            f"no stage has the name {last!r}",
            allowed=", ".join(STAGES_BY_NAME),
            hint=f"did you mean {near}?" if near else "leave --stage out to run all of them",
        )


def check(session: Session, subject: str, order: Order) -> list[str]:
    """Raise for a wrong name or setting before anything starts; return what to warn of."""
    _check_stage(order.last)
    workspace = session.workspace
    view = this_run.changed_view(workspace, subject, order.changes)
    refuse_the_impossible(workspace, view, env=session.env, last=order.last or STAGES[-1])
    return input_checks.warnings(workspace.root, view)


def run_one(session: Session, subject: str, order: Order) -> dict[str, Any]:
    """Run a subject and return the summary; raises what the flow raises."""
    return run_all(session, [subject], order, stop_at_failure=True)[subject]


def run_all(
    session: Session, subjects: Sequence[str], order: Order, *, stop_at_failure: bool = False
) -> dict[str, Any]:
    """Run subjects one by one; return a summary or an error of each."""
    running = services.running_api(session.workspace)
    results: dict[str, Any] = {}
    with prefect_api(session.workspace, session.env, running=running) as api_url:
        for subject in subjects:
            if len(subjects) > 1:
                session.terminal.say(f"-- {subject}")
            try:
                results[subject] = _flow(session, subject, order, api_url)
            except DreamBoothError as error:
                if stop_at_failure:
                    raise
                results[subject] = {"error": error.to_json(), "exit_code": error.exit_code}
                session.terminal.warn(f"{subject} failed: {error}")
    return results


def _flow(session: Session, subject: str, order: Order, api_url: Any) -> dict[str, Any]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.run_stages import run_stages
    from flows.train_subject import train_subject

    logging.getLogger("dreambooth").setLevel(logging.WARNING)
    root, changes = str(session.workspace.root), dict(order.changes) or None
    with (
        TerminalReporter(session.terminal.console) as shown,
        temporary_settings({PREFECT_API_URL: api_url()}),
    ):
        reporter.set(shown)
        summary = (
            train_subject(subject, root, changes)
            if order.last is None
            else run_stages(subject, order.last, root, changes)
        )
    return {**summary, "set": dict(order.changes)}
