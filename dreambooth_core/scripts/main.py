"""What the scripts call: from the command line to an exit code. Reads the environment."""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from dreambooth_core.environment import gc_paused, library_defaults
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.scripts import failures
from dreambooth_core.scripts.flags import Script
from dreambooth_core.scripts.parsing import help_text, parse
from dreambooth_core.scripts.settings import ScriptSettings, make_settings
from dreambooth_core.scripts.signals import Stop
from dreambooth_core.scripts.wording import in_flags

_HELP = ("--help", "-h")
_TRACEBACK = "DREAMBOOTH_TRACEBACK"
"""Set to anything, it shows where in the program an error came from."""


def main(script: Script, arguments: Sequence[str] | None = None) -> int:
    """Run a script; the exit code is 0, 1 (the work failed or was stopped) or 2 (wrong input)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(word in _HELP for word in arguments):
        print(help_text(script))  # noqa: T201 - what was asked for
        return 0
    # Libraries read these while they are imported.
    for name, value in library_defaults().items():
        os.environ.setdefault(name, value)
    # What libraries tell one another's authors; the one mistake that counts would drown in it.
    warnings.simplefilter("ignore", FutureWarning)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        flags = parse(script, arguments)
        with failures.told(Path(flags.output_dir)):
            return _run(make_settings(script, flags, os.environ))
    except DreamBoothError as error:
        if _is_main(os.environ) or error.exit_code == 1:
            sys.stderr.write(f"error: {in_flags(str(error), script.flags.model_fields)}\n")
        if os.environ.get(_TRACEBACK):
            traceback.print_exception(error)
        return error.exit_code
    finally:
        gc.freeze()  # else the interpreter walks through all of torch once more before it ends


def _run(plan: ScriptSettings) -> int:
    stop = Stop(plan.launcher)
    stop.install()
    with gc_paused():  # torch takes seconds: mistakes are told before
        from dreambooth_core.scripts import run

    return run.run(plan, stop=stop)


def _is_main(env: Mapping[str, str]) -> bool:
    """One process of a run tells a mistake that all of them see."""
    return env.get("RANK", "0") == "0"
