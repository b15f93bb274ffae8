"""The log of a run: every line says which run, subject, stage and step it belongs to."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from logging.handlers import RotatingFileHandler
from pathlib import Path

logger = logging.getLogger("dreambooth")
"""The one logger of the project."""

FIELDS = ("run", "subject", "stage", "step")
"""What a line starts with, as `name=value`, in this order; a field without a value is left out.

`step` is an optimizer update."""

_MAX_BYTES, _OLD_FILES = 5_000_000, 2

_fields: ContextVar[Mapping[str, str]] = ContextVar("fields", default={})  # noqa: B039 - read only


@contextlib.contextmanager
def log_fields(**values: str) -> Iterator[None]:
    """Add fields to every line that the block logs, in this thread and its tasks."""
    token = _fields.set({**_fields.get(), **values})
    try:
        yield
    finally:
        _fields.reset(token)


def present_fields() -> Mapping[str, str]:
    """The fields of a line that is logged now, for a process that works for this one."""
    return _fields.get()


def with_fields(message: str) -> str:
    """A message after the present fields."""
    values = _fields.get()
    words = [f"{name}={_word(values[name])}" for name in FIELDS if name in values]
    return " ".join([*words, message])


def _word(value: str) -> str:
    """A value as logfmt has it: in quotes if it has a space."""
    return json.dumps(value, ensure_ascii=False) if " " in value else value


class _Fields(logging.Filter):
    """Puts the fields in front of every message; `plain` is the message without them."""

    def filter(self, record: logging.LogRecord) -> bool:
        plain = record.getMessage()
        record.__dict__["plain"] = plain
        record.msg = with_fields(plain)
        record.args = ()
        return True


logger.addFilter(_Fields())


def timed_line(text: str, seconds: float | None = None) -> str:
    """A line of a log file after a time in UTC (RFC 3339), by default now."""
    at = time.time() if seconds is None else seconds
    when = datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="milliseconds")
    return f"{when} {text}"


class _RunFormatter(logging.Formatter):
    """The time, the level and the message, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record).replace("\n", "\\n")
        return timed_line(f"{record.levelname} {message}", record.created)


class _RunFile(RotatingFileHandler):
    """A log file. A full disk stops the log, never the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore the error."""


@contextlib.contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Also write the lines of the block to a file, from level INFO on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _RunFile(path, maxBytes=_MAX_BYTES, backupCount=_OLD_FILES, encoding="utf-8", delay=True)
    file.setFormatter(_RunFormatter())
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(file)
    try:
        yield
    finally:
        logger.removeHandler(file)
        logger.setLevel(before)
        with contextlib.suppress(OSError):
            file.close()
