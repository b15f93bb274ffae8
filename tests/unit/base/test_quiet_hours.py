"""Quiet hours: both ends and the zone are checked when settings are read, and time zones count."""

from __future__ import annotations

import datetime

import pytest

from dreambooth_core.config import RuntimeSettings, quiet_hours


def utc(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(f"2026-{text}+00:00")


@pytest.mark.parametrize(
    ("hours", "moment", "is_quiet"),
    [
        ("22:00-06:00", "01-01T21:59", False),
        ("22:00-06:00", "01-01T22:00", True),
        ("22:00-06:00", "01-01T03:00", True),
        ("22:00-06:00", "01-01T06:00", False),
        ("08:00-17:30 UTC", "01-01T17:29", True),
        ("08:00-17:30 UTC", "01-01T17:30", False),
        ("22:00-06:00 Europe/Berlin", "01-01T21:00", True),  # 22:00 in winter
        ("22:00-06:00 Europe/Berlin", "07-01T20:00", True),  # 22:00 in summer
        ("22:00-06:00 Europe/Berlin", "07-01T04:00", False),
        ("22:00-06:00 Asia/Tokyo", "01-01T12:59", False),
        ("22:00-06:00 Asia/Tokyo", "01-01T13:00", True),
    ],
)
def test_quiet_hours_hold_on_the_clocks_of_their_zone(
    hours: str, moment: str, is_quiet: bool
) -> None:
    assert quiet_hours.parse(hours).contains(utc(moment)) is is_quiet


@pytest.mark.parametrize(
    ("hours", "reason"),
    [
        ("22:00", "not a start and an end"),
        ("22-6", "not a start and an end"),
        ("22:00-06:00 Europe/Berlin now", "not a start and an end"),
        ("22:00-24:00", "24:00 is not a time of the day"),
        ("25:00-06:00", "25:00 is not a time of the day"),
        ("22:00-22:00", "the same time"),
        ("22:00-06:00 Berlin", "Berlin is not a time zone; use START-END ZONE"),
        ("22:00-06:00 Europe", "Europe is not a time zone"),
        ("22:00-06:00 ../../etc/passwd", "is not a time zone"),
        ("", "not a start and an end"),
    ],
)
def test_wrong_end_or_zone_is_refused_with_an_example(hours: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RuntimeSettings.model_validate(
            {
                "log_every_steps": 1,
                "stop_grace_s": 1,
                "keep_store_days": 1,
                "keep_store_gib": 1,
                "quiet_hours": hours,
            }
        )
