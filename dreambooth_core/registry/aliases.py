"""The aliases challenger (newest version) and champion (version in use), with their history.

MLflow stores the present version of an alias and no history, so a tag of the registered model holds
the champions. The alias decides: if a kill leaves the two apart, the next read repairs the history.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from dreambooth_core.errors import RegistryError
from dreambooth_core.registry.tracking import Tracking, connect, mlflow_lock, registry_errors
from dreambooth_core.registry.versions import VersionInfo, aliases_of, get_version

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


@dataclass(frozen=True)
class Tenure:
    """The time of one champion, and the decision that began it."""

    version: int
    who: str
    when: str
    why: str


def champion(tracking: Tracking, *, name: str) -> VersionInfo | None:
    """The champion, or None. Raises RegistryError for an unknown model."""
    version = aliases_of(tracking, name=name).get(CHAMPION)
    return None if version is None else get_version(tracking, name=name, version=version)


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
            client.set_model_version_tag(name, str(version), key, value)


def promote(tracking: Tracking, *, name: str, version: int, decision: Decision) -> VersionInfo:
    """Make a version the champion; it stops being the challenger.

    Raises RegistryError if the version is unknown or has not passed its export parity check.
    """
    _require_parity(get_version(tracking, name=name, version=version))
    with mlflow_lock(tracking):
        tenures = _history(tracking, name)
        if not tenures or tenures[-1].version != version:
            tenures = [*tenures, Tenure(version=version, **asdict(decision))]
        _state(tracking, name, version, "promoted", decision)
        _write_history(tracking, name, tenures)
        _point(tracking, name, CHAMPION, version)
        _drop_challenger(tracking, name, version)
    return get_version(tracking, name=name, version=version)


def rollback(tracking: Tracking, *, name: str, decision: Decision) -> VersionInfo:
    """Make the previous champion the champion again; repeat to go further back.

    Raises RegistryError if there is no previous champion.
    """
    with mlflow_lock(tracking):
        tenures = _history(tracking, name)
        current = aliases_of(tracking, name=name).get(CHAMPION)
        if len(tenures) < 2:
            raise RegistryError(
                f"{name} has no earlier champion to go back to",
                got=f"champion: {'none' if current is None else f'version {current}'}",
                hint="`dreambooth promote SUBJECT VERSION` makes any version the champion",
            )
        replaced, before = tenures[-1], tenures[-2]
        _state(tracking, name, replaced.version, "rolled_back", decision)
        _state(tracking, name, before.version, "restored", decision)
        # The alias first: a history with one entry too many can be repaired, a lost entry cannot.
        _point(tracking, name, CHAMPION, before.version)
        _write_history(tracking, name, tenures[:-1])
    return get_version(tracking, name=name, version=before.version)


def _history(tracking: Tracking, name: str) -> list[Tenure]:
    """The history, cut or extended to end with the version of the alias."""
    client = connect(tracking)
    current = aliases_of(tracking, name=name).get(CHAMPION)
    with registry_errors(tracking, doing=f"reading the champions of {name}"):
        text = client.get_registered_model(name).tags.get(_HISTORY, "[]")
    tenures = [Tenure(**entry) for entry in json.loads(text)]
    if current is None:
        return []
    places = [i for i, tenure in enumerate(tenures) if tenure.version == current]
    if places:  # later entries are from before a kill, or undone by another program
        return tenures[: places[-1] + 1]
    return [
        *tenures,
        Tenure(version=current, who="unknown", when="", why="set outside the project"),
    ]


def _write_history(tracking: Tracking, name: str, tenures: Sequence[Tenure]) -> None:
    kept = [asdict(tenure) for tenure in tenures[-_HISTORY_LENGTH:]]
    with registry_errors(tracking, doing=f"writing the champions of {name}"):
        connect(tracking).set_registered_model_tag(name, _HISTORY, json.dumps(kept))


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
