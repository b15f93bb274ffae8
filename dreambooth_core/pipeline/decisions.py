"""Who decides, and when: the account of this process, and the time."""

from __future__ import annotations

import datetime
import getpass


def account() -> str:
    """The name of the account that this process runs as."""
    return getpass.getuser()


def now() -> str:
    """The time for a decision, in ISO 8601."""
    present = datetime.datetime.now(datetime.UTC)  # noqa: TID251 - a decision, not an output
    return present.isoformat(timespec="seconds")
