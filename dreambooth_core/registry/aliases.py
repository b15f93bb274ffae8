"""The aliases challenger (newest version) and champion (version in use), with their history.

MLflow stores the present version of an alias and no history, so a tag of the registered model lists
the versions that were champion; who decided, when and why stands in each version's own tags. The
alias decides: if a kill leaves the two apart, the next read repairs the history. Versions may have
been deleted since, so the history is read together with the list of versions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from dreambooth_core.errors import RegistryError
from dreambooth_core.registry.tracking import (
    Tracking,
    connect,
    fitting,
    mlflow_lock,
    registry_errors,
)
from dreambooth_core.registry.versions import (
    TAG_LIMIT,
    VersionInfo,
    aliases_of,
    get_version,
    list_versions,
)

CHALLENGER = "challenger"
CHAMPION = "champion"
PARITY = "parity"
"""Tag of a version: the outcome of the export parity check."""

PARITY_PASSED = "passed"

_HISTORY = "dreambooth.champions"
_HISTORY_LENGTH = 20


@dataclass(frozen=True)
class Decision:
    """Who moved an alias, when (ISO 8601) and why."""

    who: str
    when: str
    why: str


class ChampionChanged(RegistryError):
    """The champion is not the one that a decision was made against."""


def champion(tracking: Tracking, *, name: str) -> VersionInfo | None:
    """The champion, or None. Raises RegistryError for an unknown model."""
    version = aliases_of(tracking, name=name).get(CHAMPION)
    return None if version is None else get_version(tracking, name=name, version=version)


def earlier_champion(tracking: Tracking, *, name: str) -> int | None:
    """The version that `rollback` would restore, or None. Raises RegistryError."""
    current = aliases_of(tracking, name=name).get(CHAMPION)
    before = _champions_before(tracking, name, current)
    return before[-1] if before else None


def set_challenger(tracking: Tracking, *, name: str, version: int) -> VersionInfo:
    """Make a version the challenger, unless it is already the champion.

    Raises RegistryError unless its export parity check passed.
    """
    _require_parity(get_version(tracking, name=name, version=version))
    if aliases_of(tracking, name=name).get(CHAMPION) != version:
        _point(tracking, name, CHALLENGER, version)
    return get_version(tracking, name=name, version=version)


def set_tags(tracking: Tracking, *, name: str, version: int, tags: Mapping[str, str]) -> None:
    """Set tags of a version, such as the verdict of a comparison."""
    client = connect(tracking)
    with registry_errors(tracking, doing=f"tagging version {version} of {name}"):
        for key, value in tags.items():
            client.set_model_version_tag(name, str(version), key, fitting(value, TAG_LIMIT))


def promote(
    tracking: Tracking, *, name: str, version: int, decision: Decision, expected: int | None
) -> VersionInfo:
    """Make a version the champion instead of `expected`; it stops being the challenger.

    Raises ChampionChanged, and changes nothing, if another version is the champion than the one
    that the decision was made against (None for no champion). Raises RegistryError if the version
    is unknown or has not passed its export parity check.
    """
    _require_parity(get_version(tracking, name=name, version=version))
    with mlflow_lock(tracking):
        _require_champion(tracking, name, expected, wanted=version)
        history = _history(tracking, name)
        # The history first: an entry too many at its end is cut again, a missing one is lost.
        if not history or history[-1] != version:
            _write_history(tracking, name, [*history, version])
        _point(tracking, name, CHAMPION, version)
        _state(tracking, name, version, "promoted", decision)
        _drop_challenger(tracking, name, version)
    return get_version(tracking, name=name, version=version)


def rollback(
    tracking: Tracking, *, name: str, decision: Decision, expected: int | None
) -> VersionInfo:
    """Make the previous champion that still exists the champion again; repeat to go further back.

    Raises ChampionChanged if another version than `expected` is the champion, and RegistryError if
    there is no previous champion.
    """
    with mlflow_lock(tracking):
        _require_champion(tracking, name, expected, wanted=None)
        before = _champions_before(tracking, name, expected)
        if not before:
            raise RegistryError(
                f"{name} has no earlier champion to go back to",
                got=f"champion: {_spell(expected)}",
                hint="`dreambooth promote SUBJECT VERSION` makes any version the champion",
            )
        # The alias first: a history with one entry too many can be repaired, a lost entry cannot.
        _point(tracking, name, CHAMPION, before[-1])
        _write_history(tracking, name, before)
        if expected is not None:
            _state(tracking, name, expected, "rolled_back", decision)
        _state(tracking, name, before[-1], "restored", decision)
    return get_version(tracking, name=name, version=before[-1])


def _require_champion(
    tracking: Tracking, name: str, expected: int | None, *, wanted: int | None
) -> None:
    """Raise ChampionChanged unless `expected` (or already `wanted`) is the champion."""
    current = aliases_of(tracking, name=name).get(CHAMPION)
    if current == expected or (wanted is not None and current == wanted):
        return
    raise ChampionChanged(
        f"the champion of {name} was changed meanwhile, so this decision was not carried out",
        got=f"champion: {_spell(current)}; the decision was made against {_spell(expected)}",
        hint="look at the present champion; if the decision still holds, repeat it",
    )


def _spell(version: int | None) -> str:
    return "none" if version is None else f"version {version}"


def _champions_before(tracking: Tracking, name: str, current: int | None) -> list[int]:
    """The versions that were champion before the current one and still exist, oldest first."""
    history = _history(tracking, name)
    if current is not None:
        history.pop()
    existing = {info.version.version for info in list_versions(tracking, name=name)}
    before = [version for version in history if version in existing]
    while before and before[-1] == current:
        before.pop()
    return before


def _history(tracking: Tracking, name: str) -> list[int]:
    """The versions that were champion, cut or extended to end with that of the alias.

    Without the alias (its version was deleted), all of them.
    """
    client = connect(tracking)
    current = aliases_of(tracking, name=name).get(CHAMPION)
    with registry_errors(tracking, doing=f"reading the champions of {name}"):
        text = client.get_registered_model(name).tags.get(_HISTORY, "[]")
    # Older stores hold an object per entry, with the decision.
    found = [e["version"] if isinstance(e, dict) else int(e) for e in json.loads(text)]
    if current is None:
        return found
    places = [i for i, version in enumerate(found) if version == current]
    if places:  # later entries are from before a kill, or undone by another program
        return found[: places[-1] + 1]
    return [*found, current]


def _write_history(tracking: Tracking, name: str, history: Sequence[int]) -> None:
    kept = json.dumps(list(history[-_HISTORY_LENGTH:]))  # far below TAG_LIMIT, for any decisions
    with registry_errors(tracking, doing=f"writing the champions of {name}"):
        connect(tracking).set_registered_model_tag(name, _HISTORY, kept)


def _state(tracking: Tracking, name: str, version: int, what: str, decision: Decision) -> None:
    """Write a decision into a version's tags, such as `promoted.who`."""
    tags = {f"{what}.{key}": value for key, value in asdict(decision).items()}
    set_tags(tracking, name=name, version=version, tags=tags)


def _point(tracking: Tracking, name: str, alias: str, version: int) -> None:
    with registry_errors(tracking, doing=f"moving the alias {alias} of {name}"):
        connect(tracking).set_registered_model_alias(name, alias, str(version))


def _drop_challenger(tracking: Tracking, name: str, version: int) -> None:
    """Remove the alias challenger from a version that is the champion."""
    if aliases_of(tracking, name=name).get(CHALLENGER) == version:
        with registry_errors(tracking, doing=f"removing the alias {CHALLENGER} of {name}"):
            connect(tracking).delete_registered_model_alias(name, CHALLENGER)


def _require_parity(info: VersionInfo) -> None:
    """Refuse an alias for an upload that has not reproduced the scored images."""
    if info.tags.get(PARITY) != PARITY_PASSED:
        raise RegistryError(
            f"version {info.version.version} of {info.version.name} has not passed export parity",
            got=info.tags.get(PARITY, "never checked"),
            hint="run the subject again: the check runs before a version gets an alias",
        )
