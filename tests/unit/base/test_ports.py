"""Taken ports, with real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cli.ports import Ports, is_free
from dreambooth_core.errors import SettingsError
from dreambooth_core.supervision import free_port


@pytest.fixture(params=["listens", "only bound", "all interfaces"])
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port of a program that speaks no HTTP."""
    with socket.socket() as program:
        program.bind(("0.0.0.0" if request.param == "all interfaces" else "127.0.0.1", 0))
        if request.param != "only bound":
            program.listen()
        yield program.getsockname()[1]


def test_a_taken_port_is_refused_with_a_free_one_to_try(taken: int) -> None:
    with pytest.raises(SettingsError, match=f"port {taken} is taken") as caught:
        Ports(prefect=free_port(), mlflow=taken, metrics=free_port()).require_free()
    option, port = str(caught.value.hint).removeprefix("try ").split()
    assert option == "--mlflow-port"
    assert is_free(int(port))


def test_one_port_for_both_servers_is_refused() -> None:
    port = free_port()
    with pytest.raises(SettingsError, match=r"two servers.*--mlflow-port"):
        Ports(prefect=port, mlflow=port, metrics=free_port()).require_free()
    with pytest.raises(SettingsError, match=r"two servers.*--metrics-port"):
        Ports(prefect=port, mlflow=free_port(), metrics=port).require_free()


def test_free_ports_are_left_free() -> None:
    ports = Ports(prefect=free_port(), mlflow=free_port(), metrics=free_port())
    ports.require_free()
    assert is_free(ports.prefect)
    assert is_free(ports.mlflow)
