"""`python -m dreambooth_core STAGE --subject NAME`: what `dvc.yaml` runs.

Three further entries: `train-worker JOB` is what accelerate launches, `parity REQUEST` loads an
upload in a fresh process, and `train-node` takes part in a training that another machine leads.
Reads the environment, like every entry point.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from pathlib import Path

from dreambooth_core import config, locks
from dreambooth_core.environment import exempt_loopback, gc_paused, quiet_libraries
from dreambooth_core.errors import DreamBoothError, SettingsError, Stopped, file_error
from dreambooth_core.pipeline import STAGES, StageContext, run_stage
from dreambooth_core.ports import Progress, Throttle
from dreambooth_core.supervision import stop_on_signals
from dreambooth_core.workspace import Workspace

_COMMANDS = (*STAGES, "train-worker", "train-node", "parity")
_LOCK_WAIT_S = 15.0
_LINE_EVERY_S = 5.0
_NODE_WAIT_MIN = 240.0
"""Machine 0 draws class images before it trains: hours for a thousand of SDXL on one card."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 (the work failed) or 2 (input or settings)."""
    words = sys.argv[1:] if argv is None else argv
    try:
        _check_command(words)
        arguments = _parser().parse_args(words)
        quiet_libraries()
        exempt_loopback()
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        return arguments.run(arguments)
    except (DreamBoothError, OSError) as error:
        known = error if isinstance(error, DreamBoothError) else file_error(error)
        if known is None:
            raise
        print(f"error: {known}", file=sys.stderr)
        return known.exit_code


def _check_command(words: list[str]) -> None:
    """Raise SettingsError for an unknown command, with the nearest one."""
    if not words or words[0].startswith("-") or words[0] in _COMMANDS:
        return
    near = config.nearest(words[0].lower(), _COMMANDS)
    raise SettingsError(
        f"no command or stage has the name {words[0]!r}",
        allowed=", ".join(_COMMANDS),
        hint=f"did you mean {near}?" if near else None,
    )


def minutes(text: str) -> float:
    """A finite number of minutes. Raises ValueError."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError(text)
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dreambooth_core")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for stage in STAGES:
        command = commands.add_parser(stage, help=f"run the stage {stage} of one subject")
        command.add_argument("--subject", required=True)
        command.set_defaults(run=_run_stage, stage=stage)
    worker = commands.add_parser("train-worker", help="what accelerate launches")
    worker.add_argument("job", type=Path)
    worker.set_defaults(run=_run_worker)
    node = commands.add_parser("train-node", help="take part in a training that machine 0 leads")
    node.add_argument("--subject", required=True)
    node.add_argument(
        "--wait-min",
        type=minutes,
        default=_NODE_WAIT_MIN,
        help="minutes to wait for machine 0 to come to the training (default: %(default)g)",
    )
    node.set_defaults(run=_run_node)
    parity = commands.add_parser("parity", help="check an upload in this fresh process")
    parity.add_argument("request", type=Path)
    parity.set_defaults(run=_run_parity)
    return parser


def _run_stage(arguments: argparse.Namespace) -> int:
    workspace = Workspace(Path.cwd())
    stop = stop_on_signals()
    if arguments.stage == "train":
        from dreambooth_core.pipeline.registered import require_store

        require_store(workspace, os.environ)
    config.load_view(workspace, arguments.subject)  # no lock for a subject that does not exist
    lock = workspace.subject_lock(arguments.subject)
    with locks.hold(lock, timeout_s=_LOCK_WAIT_S, on_wait=_say_waiting, inheritable=True) as fd:
        context = StageContext(
            config.load_view(workspace, arguments.subject),
            workspace.places(arguments.subject),
            progress=_progress_lines(),
            should_stop=stop.is_set,
            lock_fd=fd,
            env=dict(os.environ),
        )
        try:
            run_stage(context, arguments.stage)
        except Stopped as stopped:
            print(f"{stopped}", file=sys.stderr)
            return 1
    return 0


def _run_worker(arguments: argparse.Namespace) -> int:
    with gc_paused():
        from dreambooth_core.pipeline.train_worker import run_worker

    return run_worker(arguments.job)


def _run_node(arguments: argparse.Namespace) -> int:
    with gc_paused():
        from dreambooth_core.pipeline.train_node import take_part

    workspace, stop = Workspace(Path.cwd()), stop_on_signals()

    def open_context() -> StageContext:
        return StageContext(
            config.load_view(workspace, arguments.subject),
            workspace.places(arguments.subject),
            should_stop=stop.is_set,
            env=dict(os.environ),
        )

    take_part(open_context, wait_s=60 * arguments.wait_min)
    return 0


def _run_parity(arguments: argparse.Namespace) -> int:
    with gc_paused():
        from dreambooth_core.registry import parity

    return parity.main(arguments.request)


def _progress_lines() -> Progress:
    """Progress as plain lines on stderr, one every few seconds."""
    throttle = Throttle(_LINE_EVERY_S)

    def show(done: int, total: int, text: str = "") -> None:
        if throttle.is_due():
            print(f"  {done}/{total} {text}".rstrip(), file=sys.stderr, flush=True)

    return show


def _say_waiting(holder: str) -> None:
    print(f"waiting for {holder}, which works on this subject", file=sys.stderr, flush=True)


if __name__ == "__main__":
    code = main()
    gc.freeze()  # else the interpreter walks through all of torch once more before it ends
    sys.exit(code)
