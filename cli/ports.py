"""Ports of the services on the loopback interface, checked before anything starts."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from dreambooth_core.errors import SettingsError

_HOST = "127.0.0.1"
_KNOCK_S = 1.0
_LAST = 65535


DEFAULT_PORTS: Mapping[str, int] = {
    "--prefect-port": 4200,
    "--mlflow-port": 5000,
    "--metrics-port": 9464,  # the usual one of exporters that are no part of Prometheus
}
"""The ports of `dreambooth up`, by option."""


@dataclass(frozen=True)
class Ports:
    """Ports on the loopback interface."""

    prefect: int
    mlflow: int
    metrics: int

    def require_free(self) -> None:
        """Raise SettingsError, with the next free port, for a port that another program has."""
        options = dict(zip(DEFAULT_PORTS, (self.prefect, self.mlflow, self.metrics), strict=True))
        for option, port in reversed(options.items()):
            if list(options.values()).count(port) > 1:
                raise SettingsError(
                    f"two servers would listen on port {port}",
                    hint=_hint(option, _next_free(port + 1, set(options.values()))),
                )
        require_free(options)


def require_free(options: Mapping[str, int]) -> None:
    """Raise SettingsError, with the next free port, for a port that another program has."""
    for option, port in options.items():
        if not is_free(port):
            others = set(options.values())
            raise SettingsError(
                f"port {port} is taken", hint=_hint(option, _next_free(port + 1, others))
            )


def is_free(port: int) -> bool:
    """Whether a server can listen on a port, whatever protocol the present user speaks."""
    with socket.socket() as knock:
        knock.settimeout(_KNOCK_S)
        # On macOS, a bind succeeds next to a program that listens on all interfaces.
        if knock.connect_ex((_HOST, port)) == 0:
            return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _next_free(port: int, besides: set[int] | None = None) -> int | None:
    """The first free port from `port` on, or None."""
    taken = besides or set()
    return next((p for p in range(port, _LAST + 1) if p not in taken and is_free(p)), None)


def _hint(option: str, port: int | None) -> str:
    return "stop the program that has it" if port is None else f"try {option} {port}"
