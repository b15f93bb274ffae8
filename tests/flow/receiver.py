"""A web server on the loopback interface that keeps what a webhook sends."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Receiver:
    """What arrived, and the address to call."""

    url: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)

    def texts(self) -> list[str]:
        return [call["text"] for call in self.calls]


@contextlib.contextmanager
def receiving(path: str) -> Iterator[Receiver]:
    """Receive POST requests with a JSON body at `path`."""
    receiver = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_known = self.path == path and self.headers["Content-Type"] == "application/json"
            if is_known:
                receiver.calls.append(json.loads(body))
            self.send_response(200 if is_known else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}{path}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
