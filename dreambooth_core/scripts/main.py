"""The entry point of the scripts: parses the command line, runs, returns an exit code."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dreambooth_core.environment import exempt_loopback, gc_paused, library_defaults
from dreambooth_core.errors import DreamBoothError, StageError
from dreambooth_core.scripts.flags import Script
from dreambooth_core.scripts.parsing import help_text, in_flags, parse
from dreambooth_core.scripts.settings import ScriptSettings, make_settings
from dreambooth_core.scripts.signals import Stop

_HELP = ("--help", "-h")
_TRACEBACK = "DREAMBOOTH_TRACEBACK"
"""If this variable is set, errors are printed with their traceback."""
_SAFETENSORS_ERROR = re.compile(r"\(os error (\d+)\)")
_FULL = "free space, or save less: --checkpoints_total_limit, --checkpointing_steps"
_READ_ONLY = "change its permissions, or choose another folder"
_HINTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _READ_ONLY),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EISDIR), "move the existing file away"),
}


def main(script: Script, arguments: Sequence[str] | None = None) -> int:
    """Run a script. Returns 0, 1 if the work failed or was stopped, or 2 for wrong input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(word in _HELP for word in arguments):
        print(help_text(script))  # noqa: T201 - requested output
        return 0
    # Libraries read these at import.
    for name, value in library_defaults().items():
        os.environ.setdefault(name, value)
    exempt_loopback()
    # Warnings of one library about another would bury our messages.
    warnings.simplefilter("ignore", FutureWarning)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        flags = parse(script, arguments)
        with _disk_errors_explained(Path(flags.output_dir)):
            return _run(make_settings(script, flags, os.environ))
    except DreamBoothError as error:
        if _is_main(os.environ) or error.exit_code == 1:
            sys.stderr.write(f"error: {in_flags(error, script.flags.model_fields)}\n")
        if os.environ.get(_TRACEBACK):
            traceback.print_exception(error)
        return error.exit_code
    finally:
        gc.freeze()  # otherwise the interpreter traverses all of torch at exit


def _run(settings: ScriptSettings) -> int:
    stop = Stop(settings.launcher)
    stop.install()
    with gc_paused():  # importing torch takes seconds, so only now
        from dreambooth_core.scripts import run

    return run.run(settings, stop=stop)


def _is_main(env: Mapping[str, str]) -> bool:
    """Whether this is the main process, which alone reports the mistakes that all find."""
    return env.get("RANK", "0") == "0"


@contextlib.contextmanager
def _disk_errors_explained(folder: Path) -> Iterator[None]:
    """Turn an OS error into a StageError that names the checkpoint to resume from.

    Other exceptions are bugs and propagate.
    """
    try:
        yield
    except Exception as error:
        number = _os_error_number(error)
        if number is None:
            raise
        where = getattr(error, "filename", None) or folder
        raise StageError(
            f"the run cannot continue: {os.strerror(number)}",
            got=str(where),
            hint=f"{_HINTS.get(number, 'check the disk and the path')}; {_how_to_resume(folder)}",
        ) from error


def _os_error_number(error: Exception) -> int | None:
    """The errno of an error. safetensors has it only in its message."""
    if isinstance(error, OSError):
        return error.errno
    found = _SAFETENSORS_ERROR.search(str(error))
    is_safetensors = type(error).__name__ == "SafetensorError"  # importing it would import torch
    return int(found[1]) if found and is_safetensors else None


def _how_to_resume(folder: Path) -> str:
    from dreambooth_core.scripts import resume  # imports torch, as the failed run did

    newest = resume.written_last(folder)
    if newest is None:
        return "no checkpoint was saved yet"
    return f"--resume_from_checkpoint {newest[0].name} continues from there"
