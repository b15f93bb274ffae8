"""A version's verdict as tags of the version: written after a comparison, read for its page."""

from __future__ import annotations

import json
from collections.abc import Mapping

from dreambooth_core import files
from dreambooth_core.records import Interval, RegisteredVersion, Verdict
from dreambooth_core.registry.versions import VersionInfo

_WHY = "verdict"
_PROMOTE = "verdict.promote"
_CHAMPION = "verdict.champion"
_DIFFERENCE = "verdict.difference"
_NO_CHAMPION = "none"


def label(version: RegisteredVersion) -> str:
    """The name of a version in verdicts."""
    return f"{version.name}/{version.version}"


def tags_of(verdict: Verdict) -> dict[str, str]:
    """The verdict as tags."""
    return {
        _WHY: verdict.why,
        _PROMOTE: str(verdict.promote).lower(),
        _CHAMPION: verdict.champion or _NO_CHAMPION,
        _DIFFERENCE: files.canonical_json(verdict.to_json()["difference"]),
    }


def verdict_of(info: VersionInfo) -> Verdict | None:
    """The verdict on a version, or None if it has not been compared yet."""
    tags: Mapping[str, str] = info.tags
    if _WHY not in tags:
        return None
    champion = tags.get(_CHAMPION, _NO_CHAMPION)
    return Verdict(
        challenger=label(info.version),
        champion=None if champion == _NO_CHAMPION else champion,
        promote=tags.get(_PROMOTE) == "true",
        why=tags[_WHY],
        difference={
            name: Interval.model_validate(interval)
            for name, interval in json.loads(tags.get(_DIFFERENCE, "{}")).items()
        },
    )
