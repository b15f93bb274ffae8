"""Runs commands one after another in a process that stays: `python -m cli.resident`.

Imports and models are loaded once; the modules that are given as arguments are imported before the
first command. Each line of stdin is a JSON list of words, as they stand behind `dreambooth`; the
answer is a line of stdout with the exit code and what the command printed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from cli import main, session
from dreambooth_core import environment
from dreambooth_core.workspace import find_workspace


def serve(modules: Sequence[str] = ()) -> None:
    """Import modules, then answer until stdin ends."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        if modules:
            environment.set_defaults(find_workspace(Path.cwd()))  # libraries read it at import
        for name in modules:
            importlib.import_module(name)
        for line in sys.stdin:
            answers.write(json.dumps(_run(json.loads(line))) + "\n")
            answers.flush()


def _run(words: list[str]) -> dict[str, object]:
    """Run a command; what it prints goes into files of its own."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as messages:
        with _redirected(1, output.fileno()), _redirected(2, messages.fileno()):
            try:
                code = main.run(words)
            finally:
                session.close_terminal()
        output.seek(0)
        messages.seek(0)
        printed = {"output": output.read().decode(), "messages": messages.read().decode()}
    return {"exit_code": code, **printed}


@contextlib.contextmanager
def _redirected(fd: int, target: int) -> Iterator[None]:
    kept = os.dup(fd)
    os.dup2(target, fd)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(kept, fd)
        os.close(kept)


if __name__ == "__main__":
    session.keeps_models.set(True)
    serve(sys.argv[1:])
