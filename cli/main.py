"""The command line `dreambooth`."""

from __future__ import annotations

import gc
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from typer.exceptions import TyperException

from cli import commands_models, commands_plan, commands_run, commands_workspace, session
from dreambooth_core.errors import DreamBoothError

app = typer.Typer(
    name="dreambooth",
    help="From photos of a subject to a scored, compared and registered best checkpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

_TYPER_INTERRUPTED = 130
"""What Typer makes of a KeyboardInterrupt."""


@app.callback()
def _global_options(
    workspace: Annotated[
        Path | None,
        typer.Option(
            "--workspace",
            envvar="DREAMBOOTH_WORKSPACE",
            help="The project's folder; without it the nearest one with a params.yaml.",
        ),
    ] = None,
) -> None:
    session.workspace_option.set(workspace)


commands_run.add_to(app)
commands_workspace.add_to(app)
commands_plan.add_to(app)
commands_models.add_to(app)


def run(arguments: list[str]) -> int:
    """Run one command; 0: done, 1: the work failed, 2: input or settings are wrong."""
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
        return _tell_stopped()
    except Exception as error:  # a fault of ours: show all of it
        traceback.print_exc()
        session.terminal().fail(error, 1)
        return 1
    if result == _TYPER_INTERRUPTED:
        return _tell_stopped()
    return result if isinstance(result, int) else 0


def _stop_like_ctrl_c(_number: int, _frame: FrameType | None) -> None:
    """Whoever sends SIGTERM gets the same orderly end: servers stopped, a sentence, code 1."""
    raise KeyboardInterrupt


def _tell_stopped() -> int:
    session.terminal().fail(
        KeyboardInterrupt("stopped; the same command continues where this one ended"), 1
    )
    return 1


def _show_usage_error(error: TyperException) -> None:
    """An unknown option or a missing argument, as Typer words it."""
    show = getattr(error, "show", None)
    if callable(show):
        show()
    else:
        session.terminal().fail(error, 2)


def main() -> None:
    """What the installed command `dreambooth` calls."""
    code = run(sys.argv[1:])
    gc.freeze()  # else the interpreter walks through all of torch once more before it ends
    sys.exit(code)
