"""Votes of people between two versions, as tags of the challenger: one tag per vote.

Every vote has its own key and is never changed, so that votes cast at the same time, by any number
of browsers and machines, cannot overwrite each other.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import ValidationError

from dreambooth_core import files
from dreambooth_core.errors import SettingsError
from dreambooth_core.records import Record
from dreambooth_core.registry import aliases
from dreambooth_core.registry.tracking import Tracking
from dreambooth_core.registry.versions import TAG_LIMIT, VersionInfo, get_version

TAG = "vote."
"""Start of the key of every vote's tag."""

Winner = Literal["challenger", "champion", "tie"]


class Vote(Record):
    """A blind comparison of two versions on one prompt and seed; `champion` was it at that time."""

    challenger: int
    champion: int
    prompt: str
    seed: int
    winner: Winner
    who: str
    when: str


def cast(tracking: Tracking, *, name: str, vote: Vote) -> None:
    """Add a vote. Raises SettingsError for a vote that cannot be, RegistryError if it fails."""
    if vote.challenger == vote.champion:
        raise SettingsError(
            "a vote compares two versions", got=f"version {vote.challenger} against itself"
        )
    text = files.canonical_json(vote.to_json())
    if len(text) > TAG_LIMIT:
        raise SettingsError(
            "the prompt is too long for a vote",
            got=f"{len(vote.prompt)} characters",
            allowed=f"about {TAG_LIMIT - len(text) + len(vote.prompt)}",
        )
    for number in (vote.champion, vote.challenger):
        get_version(tracking, name=name, version=number)
    aliases.set_tags(
        tracking, name=name, version=vote.challenger, tags={f"{TAG}{uuid.uuid4().hex}": text}
    )


def votes_of(info: VersionInfo) -> list[Vote]:
    """The votes on a version as the challenger, oldest first."""
    found = [_read(text) for key, text in info.tags.items() if key.startswith(TAG)]
    return sorted((vote for vote in found if vote is not None), key=lambda vote: vote.when)


def without_votes(tags: Mapping[str, str]) -> dict[str, str]:
    """The other tags of a version."""
    return {key: text for key, text in tags.items() if not key.startswith(TAG)}


def counts(infos: Iterable[VersionInfo], *, challenger: int, champion: int) -> Mapping[Winner, int]:
    """The votes between two versions, also those from times when their roles were exchanged."""
    found: dict[Winner, int] = {"challenger": 0, "champion": 0, "tie": 0}
    other: dict[Winner, Winner] = {"challenger": "champion", "champion": "challenger", "tie": "tie"}
    for info in infos:
        for vote in votes_of(info):
            if (vote.challenger, vote.champion) == (challenger, champion):
                found[vote.winner] += 1
            elif (vote.challenger, vote.champion) == (champion, challenger):
                found[other[vote.winner]] += 1
    return found


def opponents_of(info: VersionInfo, infos: Iterable[VersionInfo]) -> list[int]:
    """The versions that people compared with this one."""
    own = info.version.version
    pairs = {(vote.challenger, vote.champion) for each in infos for vote in votes_of(each)}
    return sorted({b if a == own else a for a, b in pairs if own in (a, b)})


def _read(text: str) -> Vote | None:
    """The vote in a tag; None for a tag that another program wrote."""
    try:
        return Vote.model_validate_json(text)
    except ValidationError:
        return None
