"""The command line `dreambooth`."""

from __future__ import annotations

import gc
import importlib.metadata
import platform
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from cli import (
    commands_app,
    commands_automation,
    commands_bench,
    commands_models,
    commands_plan,
    commands_run,
    commands_settings,
    commands_sweep,
    commands_workspace,
    session,
)
from dreambooth_core.errors import DreamBoothError, file_error

GROUPS: dict[str, tuple[str, ...]] = {
    "Prepare": ("init", "doctor", "preset", "settings", "subject", "validate", "plan"),
    "Run": ("run", "save", "sweep", "dreambench", "status", "report"),
    "Use the result": (
        *("choose", "generate", "export", "vote", "compare", "promote", "rollback"),
        "evaluate-again",
    ),
    "Services and storage": ("app", "up", "watch", "notify", "metrics", "clean"),
}
"""The commands by the group that `--help` shows them in, in the order a user needs them."""


class GroupedCommands(TyperGroup):
    """Lists the commands in the order of GROUPS, each in the panel of its group."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands; one without a group comes last."""
        order = [name for names in GROUPS.values() for name in names]
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: order.index(name) if name in order else len(order))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, with the name of its panel."""
        command: Any = super().get_command(ctx, cmd_name)
        panel = next((title for title, names in GROUPS.items() if cmd_name in names), None)
        if command is not None and panel is not None:
            command.rich_help_panel = panel
        return command


app = typer.Typer(
    name="dreambooth",
    cls=GroupedCommands,
    help="Train, score, compare and register DreamBooth models of your subjects.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

_TYPER_INTERRUPTED = 130
"""The result of a command that Typer reports as interrupted."""


def _show_version(wanted: bool) -> None:
    """Print the versions of the project, torch and Python, without importing torch."""
    if wanted:
        project, torch = (importlib.metadata.version(n) for n in ("dreambooth-pipeline", "torch"))
        typer.echo(f"dreambooth {project} (torch {torch}, Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _global_options(
    workspace: Annotated[
        Path | None,
        typer.Option(
            "--workspace",
            parser=session.user_path,
            metavar="FOLDER",
            envvar="DREAMBOOTH_WORKSPACE",
            help="Project folder. Default: the nearest folder upward that has a params.yaml.",
        ),
    ] = None,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the versions."),
    ] = False,
) -> None:
    session.workspace_option.set(workspace)


commands_run.add_to(app)
commands_sweep.add_to(app)
commands_bench.add_to(app)
commands_workspace.add_to(app)
commands_settings.add_to(app)
commands_plan.add_to(app)
commands_models.add_to(app)
commands_app.add_to(app)
commands_automation.add_to(app)


def run(arguments: list[str]) -> int:
    """Run one command; return 0 (done), 1 (the work failed) or 2 (wrong input or settings)."""
    command = typer.main.get_command(app)
    signal.signal(signal.SIGTERM, _stop_like_ctrl_c)
    try:
        result = command.main(arguments, prog_name="dreambooth", standalone_mode=False)
    except DreamBoothError as error:
        session.terminal().fail(error, error.exit_code)
        return error.exit_code
    except TyperException as error:
        _show_usage_error(error)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return _report_stop()
    except Exception as error:
        known = file_error(error)
        if known is None:  # a bug
            traceback.print_exc()
        session.terminal().fail(known or error, 1)
        return 1
    if result == _TYPER_INTERRUPTED:
        return _report_stop()
    return result if isinstance(result, int) else 0


def _stop_like_ctrl_c(_number: int, _frame: FrameType | None) -> None:
    """Treat SIGTERM like Ctrl-C: stop the servers, print one sentence, exit with 1."""
    raise KeyboardInterrupt


def _report_stop() -> int:
    session.terminal().fail(KeyboardInterrupt("stopped; run the same command again to continue"), 1)
    return 1


def _show_usage_error(error: TyperException) -> None:
    """Print Typer's message about an unknown option or a missing argument."""
    show = getattr(error, "show", None)
    if callable(show):
        show()
    else:
        session.terminal().fail(error, 2)


def main() -> None:
    """Entry point of the installed command `dreambooth`."""
    code = run(sys.argv[1:])
    gc.freeze()  # spares the interpreter a last walk through all of torch
    sys.exit(code)
