"""Waits for the runs that were started before, then runs: `python -m app.turn ROOT SUBJECT`.

The process becomes `dreambooth run`, so the app follows and stops it by the same id.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from app import runs
from app.commands import command
from app.site import open_site

_POLL_S = 1.0


def main(root: str, subject: str) -> None:
    """Wait, and run the subject."""
    site = open_site(Path(root), "127.0.0.1", 0)
    while runs.ahead_of(site, subject) is not None:
        time.sleep(_POLL_S)
    words = command("run", subject)
    os.execve(words[0], words, dict(site.env))


if __name__ == "__main__":
    main(*sys.argv[1:])
