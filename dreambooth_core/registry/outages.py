"""One warning per outage of an MLflow server, instead of one of urllib3's for each attempt."""

from __future__ import annotations

import logging
import time

from dreambooth_core.logs import logger

_HTTP = logging.getLogger("urllib3.connectionpool")
_RETRY = "Retrying ("
_SAME_OUTAGE_S = 300.0
"""MLflow repeats a call seven times, after up to two minutes each."""


class _OneWarning(logging.Filter):
    """Drops the lines about repeated calls, and warns once for those that belong together."""

    def __init__(self, server: str) -> None:
        super().__init__()
        self._server = server
        self._last: float | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is about something else."""
        if not str(record.msg).startswith(_RETRY):
            return True
        now = time.monotonic()
        if self._last is None or now - self._last > _SAME_OUTAGE_S:
            logger.warning(
                "MLflow at %s does not answer; its calls are repeated for four minutes",
                self._server,
            )
        self._last = now
        return False


def warn_once(server: str) -> None:
    """Report an outage of the server at this address (without credentials) by one warning."""
    for known in [each for each in _HTTP.filters if isinstance(each, _OneWarning)]:
        _HTTP.removeFilter(known)
    _HTTP.addFilter(_OneWarning(server))
