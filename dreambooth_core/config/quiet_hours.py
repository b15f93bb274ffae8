"""Quiet hours: a time of every day in a time zone, such as `22:00-06:00 Europe/Berlin`."""

from __future__ import annotations

import datetime
import re
import zoneinfo
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

_PATTERN = re.compile(r"(\d\d:\d\d)-(\d\d:\d\d)(?: (\S+))?")
_FORM = "use START-END ZONE, such as 22:00-06:00 Europe/Berlin; without a zone, UTC"


@dataclass(frozen=True)
class QuietHours:
    """From `start` to `end`, on the clocks of a time zone; over midnight if `end` is earlier."""

    start: datetime.time
    end: datetime.time
    zone: zoneinfo.ZoneInfo

    def contains(self, moment: datetime.datetime) -> bool:
        """Whether a moment is within the quiet hours; their end is not."""
        clock = moment.astimezone(self.zone).time()
        if self.start < self.end:
            return self.start <= clock < self.end
        return clock >= self.start or clock < self.end


def parse(text: str) -> QuietHours:
    """The quiet hours that a setting names. Raises ValueError."""
    found = _PATTERN.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"not a start and an end; {_FORM}")
    start, end = (_time(clock) for clock in found.groups()[:2])
    if start == end:
        raise ValueError("start and end are the same time; use null for no quiet hours")
    return QuietHours(start, end, _zone(found[3] or "UTC"))


def _time(text: str) -> datetime.time:
    try:
        return datetime.time.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text} is not a time of the day, 00:00 to 23:59") from None


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: a folder of zones, such as Europe
        raise ValueError(f"{name} is not a time zone; {_FORM}") from None


def _check(text: str) -> str:
    parse(text)
    return text


QuietHoursText = Annotated[str, AfterValidator(_check)]
