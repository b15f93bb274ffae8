"""Serve the app: python -m app ROOT HOST PORT. `dreambooth app` checks them and starts this."""

from __future__ import annotations

import sys
from pathlib import Path

from app.server import serve
from app.site import open_site


def main(root: str, host: str, port: str) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    serve(open_site(Path(root), host, int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
