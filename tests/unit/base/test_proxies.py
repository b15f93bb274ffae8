"""A proxy in the environment must not get the calls to this machine's own services."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from dreambooth_core.environment import exempt_loopback

_CALL = """
import httpx, requests, sys, urllib.request
from dreambooth_core.environment import exempt_loopback
exempt_loopback()
url = sys.argv[1]
print(urllib.request.urlopen(url).status, requests.get(url).status_code, httpx.get(url).status_code)
"""


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_calls_to_loopback_pass_by_the_proxy(service, name, monkeypatch) -> None:
    for other in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-c", _CALL, service], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["200"] * 3, done.stderr[-500:]


def test_hosts_that_the_user_exempted_stay_exempted(monkeypatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "example.org, localhost")
    exempt_loopback()
    assert os.environ["no_proxy"] == "example.org,localhost,127.0.0.1,::1"
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"]


def test_without_a_proxy_nothing_is_set(monkeypatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    exempt_loopback()
    assert not [name for name in os.environ if name.lower().endswith("_proxy")]
