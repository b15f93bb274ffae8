"""Runs flows for the command line: one subject or all, a whole run or some stages, a benchmark."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cli import services
from cli.progress import TerminalReporter
from cli.server import prefect_api
from cli.session import Session
from cli.stuck_runs import tags_of_process
from dreambooth_core import config
from dreambooth_core.config.changes import changed_view
from dreambooth_core.errors import DreamBoothError, SettingsError, StageError
from dreambooth_core.logs import logger
from dreambooth_core.masking import scrubbed, without_secrets
from dreambooth_core.pipeline import STAGES, check_stage, input_checks
from dreambooth_core.pipeline.full_disk import full_disk_among
from tasks.progress import reporter
from tasks.staleness import refuse_the_impossible

# A call to Prefect is repeated after 2, 4, 8... s: for 2 minutes while a server starts again, or
# for 6 s.
_LONG_RETRIES, _SHORT_RETRIES = 6, 2

SILENT_PREFECT: Mapping[str, str] = {
    # The command itself reports a failure; Prefect's log would repeat it.
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    # Its threads log an error for each event that a server misses.
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
}
"""Environment variables of commands that start a flow themselves."""

STAGES_BY_NAME = STAGES[:-1]
"""What `--stage` takes. The report ends a whole run, after the comparison."""


_ADD = "add one with `dreambooth subject add`"


@dataclass(frozen=True)
class Order:
    """What to run: up to which stage (None: everything), with which changed settings."""

    last: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


def subjects_of(
    session: Session, name: str | None, *, every: bool, command: str = "run"
) -> list[str]:
    """The subjects of a command. Raises SettingsError unless it is one by name, or all."""
    names = list(config.load_settings(session.workspace.params).subjects)
    if (name is None) == (not every):
        raise SettingsError(
            f"{command} takes the name of one subject, or --all",
            got="both" if every else "neither",
            allowed=", ".join(names) or None,
            hint=f"dreambooth {command} {names[0]}"
            if names
            else "add one with `dreambooth subject add`",
        )
    if every and not names:
        raise SettingsError("params.yaml has no subjects", hint=_ADD)
    return names if name is None else [name]


def check(session: Session, subject: str, order: Order) -> list[str]:
    """Raise for a wrong name, setting or store before anything starts; return what to warn of."""
    from dreambooth_core.pipeline.registered import require_store  # MLflow takes seconds to import

    if order.last is not None:
        check_stage(order.last, STAGES_BY_NAME)
    workspace = session.workspace
    view = changed_view(workspace, subject, order.changes)
    refuse_the_impossible(workspace, view, env=session.env, last=order.last or STAGES[-1])
    require_store(workspace, session.env)
    return input_checks.warnings(workspace.root, view)


def run_one(session: Session, subject: str, order: Order) -> dict[str, Any]:
    """Run a subject and return the summary. Raises for a wrong setting before anything starts."""
    warnings = check(session, subject, order)
    for text in warnings:
        session.terminal.warn(text)
    with open_api(session) as api_url:
        return {**_flow(session, subject, order, api_url), "warnings": warnings}


def run_all(session: Session, subjects: Sequence[str], order: Order) -> dict[str, Any]:
    """Run subjects one by one; return a summary or an error of each."""
    results: dict[str, Any] = {}
    with open_api(session) as api_url:
        for subject in subjects:
            session.terminal.say(f"-- {subject}")
            try:
                warnings = check(session, subject, order)
                for text in warnings:
                    session.terminal.warn(text)
                summary = _flow(session, subject, order, api_url)
                results[subject] = {**summary, "warnings": warnings}
            except DreamBoothError as error:
                results[subject] = {"error": error.to_json(), "exit_code": error.exit_code}
                session.terminal.warn(f"{subject} failed: {error}")
    return results


def exit_code_of(results: Mapping[str, Any]) -> int:
    """0 if all subjects ran; 2 if each had wrong input or settings; else 1."""
    codes = {result.get("exit_code", 0) for result in results.values()}
    return codes.pop() if len(codes) == 1 else 1


def open_api(session: Session) -> Any:
    """The Prefect API of this run: that of `up`, the one in the environment, or its own."""
    given = services.api_in_use(session.workspace, session.env)
    return prefect_api(session.workspace, session.env, given)


class _Warnings(logging.Handler):
    """Shows warnings in the terminal. Errors are not: the command ends with them."""

    def __init__(self, session: Session) -> None:
        super().__init__(logging.WARNING)
        self._terminal = session.terminal

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message without the fields of a log line."""
        if record.levelno < logging.ERROR:
            self._terminal.warn(getattr(record, "plain", record.getMessage()))


def _show_warnings(session: Session) -> None:
    """Show the log's warnings as those of the command, and nothing else of it."""
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    for handler in [each for each in logger.handlers if isinstance(each, _Warnings)]:
        logger.removeHandler(handler)
    logger.addHandler(_Warnings(session))


def _has_lasting_api(session: Session) -> bool:
    """Whether the Prefect server starts again if it ends: that of this run or of `up` does."""
    given = session.env.get("PREFECT_API_URL")
    return given in (None, "", services.running_api(session.workspace))


def _flow(session: Session, subject: str, order: Order, api_url: Any) -> dict[str, Any]:
    root, changes = str(session.workspace.root), dict(order.changes) or None
    with in_flow(session, api_url):
        from flows.run_stages import run_stages
        from flows.train_subject import train_subject

        summary = (
            train_subject(subject, root, changes)
            if order.last is None
            else run_stages(subject, order.last, root, changes)
        )
    return {**summary, "set": dict(order.changes)}


def run_bench(
    session: Session, *, subjects_root: str, out: str, subjects: list[str], ablations: int
) -> dict[str, Any]:
    """Run the flow `dreambench`, and return the tables and their files."""
    root = str(session.workspace.root)
    with open_api(session) as api_url, in_flow(session, api_url):
        from flows.dreambench import dreambench

        return dreambench(subjects_root, out, subjects, ablations, root)


def run_evaluation(session: Session, subjects: list[str]) -> dict[str, Any]:
    """Run the flow `evaluate-again`, and return the scores by subject."""
    root = str(session.workspace.root)
    with open_api(session) as api_url, in_flow(session, api_url):
        from flows.evaluate_again import evaluate_again

        return evaluate_again(subjects, root)


@contextlib.contextmanager
def in_flow(session: Session, api_url: Any) -> Iterator[None]:
    """Set up Prefect and the terminal for a flow that the block calls.

    Raises StageError if the Prefect server stops answering, or fails.
    """
    from httpx import HTTPError
    from prefect import tags
    from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        PREFECT_LOGGING_TO_API_ENABLED,
        temporary_settings,
    )

    _show_warnings(session)
    url, retries = api_url(), _LONG_RETRIES if _has_lasting_api(session) else _SHORT_RETRIES
    with (
        TerminalReporter(session.terminal.console) as shown,
        temporary_settings(
            {
                PREFECT_API_URL: url,
                PREFECT_CLIENT_MAX_RETRIES: retries,
                # The terminal and run.log have the lines; a server that is gone would add errors.
                PREFECT_LOGGING_TO_API_ENABLED: False,
            }
        ),
        tags(*tags_of_process(os.getpid())),
    ):
        reporter.set(shown)
        try:
            yield
        except (HTTPError, ConcurrencySlotAcquisitionError) as error:
            raise _server_error(session, url, error) from None


def _server_error(session: Session, url: str, error: Exception) -> StageError:
    """The error about a Prefect server that is gone, or that cannot work, as on a full disk."""
    from httpx import TransportError
    from prefect.settings import PREFECT_HOME

    is_gone = isinstance(error, TransportError)
    folders = [session.workspace.root, PREFECT_HOME.value()]
    full = None if is_gone else full_disk_among(folders, "Prefect's server stopped working")
    return full or StageError(
        f"Prefect at {without_secrets(url)} {'no longer answers' if is_gone else 'failed'}; "
        "finished work is kept",
        got=scrubbed(str(error), url),
        hint="start it again, or unset PREFECT_API_URL; then repeat the command",
    )
