"""The command sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from cli import running, screens
from cli.session import JsonOption, SubjectArgument, open_session
from dreambooth_core.errors import SettingsError
from dreambooth_core.records import SCORES

_STORAGE = "DREAMBOOTH_SWEEP_STORAGE"
_SCORES = {key: SCORES[key] for key in ("dino", "clip_t", "pres")}


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(sweep)


def sweep(
    subject: SubjectArgument,
    *,
    trials: Annotated[
        int, typer.Option(help="Trials in the study, with those of earlier calls and workers.")
    ] = 12,
    params: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            metavar="KEY=VALUES",
            help="What a setting may be, instead of the default: LOW..HIGH, or A,B,C, or one "
            "value to fix it. Repeat for more.",
        ),
    ] = None,
    pruner: Annotated[
        Literal["median", "none"],
        typer.Option(help="median ends a trial that is worse than half of the others so far."),
    ] = "median",
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar=_STORAGE,
            help="Database of the study, such as postgresql://..., for workers on several "
            "machines. Default: a file in .state.",
        ),
    ] = None,
    apply: Annotated[
        bool,
        typer.Option(
            "--apply", help="Train and register the winner; write its settings into params.yaml."
        ),
    ] = False,
    json: JsonOption = False,
) -> int:
    """Search better settings for a subject, and compare the winner on fresh seeds."""
    session = open_session(as_json=json, **running.SILENT_PREFECT)
    from tasks import sweep as work  # Prefect takes seconds to import

    work.check_request(trials)
    if storage is not None and not storage.strip():
        raise SettingsError(f"--storage (or {_STORAGE}) is empty", hint="leave it out")
    work.storage.set(storage)
    for text in running.check(session, subject, running.Order()):
        session.terminal.warn(text)
    work.check_params(session.workspace, subject, params or [])
    root = str(session.workspace.root)
    with running.open_api(session) as api_url, running.in_flow(session, api_url):
        from flows.sweep import sweep as flow

        outcome = flow(subject, trials, list(params or []), pruner, apply, root)
    session.terminal.finish(outcome, lambda console: show(console, outcome))
    return 1 if apply and outcome["applied"] is None else 0


def show(console: Console, outcome: Mapping[str, Any]) -> None:
    """Print the trials, the winner, and what to type next."""
    console.print(_table(outcome))
    if outcome["winner"] is not None:
        name = f"trial {outcome['winner']}" if outcome["changes"] else "the unchanged settings"
        screens.print_fact(console, "Winner", name)
    screens.print_fact(console, "Why", outcome["why"])
    for name, scores in outcome.get("confirmed", {}).items():
        text = ", ".join(f"{_SCORES[key]} {scores[key]:.4f}" for key in _SCORES)
        screens.print_fact(console, f"On fresh seeds, {name}", text)
    if outcome["applied"] is not None:
        screens.show_run(console, {**outcome["applied"], "set": {}})
        if outcome["changes"]:
            screens.print_fact(console, "Written to params.yaml", outcome["overrides"])
    elif outcome["changes"]:
        _show_next(console, outcome)


def _show_next(console: Console, outcome: Mapping[str, Any]) -> None:
    subject = outcome["subject"]
    console.print("Next, to train and register the winner and to keep its settings:", style="bold")
    console.print(f"  dreambooth sweep {subject} --apply    # with the options of this search")
    console.print(f"or write this line under subjects: {subject}: in params.yaml", style="bold")
    console.print(f"  overrides: {outcome['overrides']}")
    console.print(f"and then `dreambooth run {subject}`.", style="bold")


def _table(outcome: Mapping[str, Any]) -> Table:
    """Every trial with its settings and its checkpoint; the winner in bold."""
    table = Table(title=f"Trials of {outcome['study']}")
    keys = sorted(outcome["space"])
    for title in ("trial", "state", *(key.rpartition(".")[2] for key in keys), "checkpoint"):
        table.add_column(title, overflow="fold")
    for title in _SCORES.values():
        table.add_column(title, justify="right")
    for trial in outcome["trials"]:
        changed = [
            "unchanged" if trial["unchanged"] else str(trial["changes"].get(k, "")) for k in keys
        ]
        scores = [f"{trial[key]:.4f}" if key in trial else "" for key in _SCORES]
        checkpoint = trial.get("name", "")
        if checkpoint and not trial["qualified"]:
            checkpoint += " (not qualified)"
        style = "bold green" if trial["number"] == outcome["winner"] else None
        row = (str(trial["number"]), trial["state"], *changed, checkpoint, *scores)
        table.add_row(*row, style=style)
    return table
