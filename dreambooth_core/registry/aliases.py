"""The aliases challenger (newest registered) and champion (in use): who moved them, when and why.

MLflow keeps only where an alias points now. The history of champions is a tag of the registered
model. The alias is the truth: a kill between the two leaves a history that the next call mends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from dreambooth_core.errors import RegistryError
from dreambooth_core.registry.tracking import Tracking, alone, connect, in_plain_words
from dreambooth_core.registry.versions import VersionInfo, aliases_of, get_version

CHALLENGER = "challenger"
CHAMPION = "champion"
PARITY = "parity"
"""Tag of a version: how the export parity check ended."""

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
class Reign:
    """A champion in the history, and the decision that made it one."""

    version: int
    who: str
    when: str
    why: str


def challenger(tracking: Tracking, *, name: str) -> VersionInfo | None:
    """The challenger, or None. Raises RegistryError for an unknown model."""
    return _pointed_at(tracking, name, CHALLENGER)


def champion(tracking: Tracking, *, name: str) -> VersionInfo | None:
    """The champion, or None. Raises RegistryError for an unknown model."""
    return _pointed_at(tracking, name, CHAMPION)


def _pointed_at(tracking: Tracking, name: str, alias: str) -> VersionInfo | None:
    version = aliases_of(tracking, name=name).get(alias)
    return None if version is None else get_version(tracking, name=name, version=version)


def set_challenger(tracking: Tracking, *, name: str, version: int) -> VersionInfo:
    """Make a version the challenger, unless it is the champion (found again by its fingerprint).

    Raises RegistryError unless its export parity passed.
    """
    _require_parity(get_version(tracking, name=name, version=version))
    if aliases_of(tracking, name=name).get(CHAMPION) != version:
        _point(tracking, name, CHALLENGER, version)
    return get_version(tracking, name=name, version=version)


def set_tags(tracking: Tracking, *, name: str, version: int, tags: Mapping[str, str]) -> None:
    """Set tags of a version, such as the verdict of a comparison."""
    client = connect(tracking)
    with in_plain_words(tracking, doing=f"tagging version {version} of {name}"):
        for key, value in tags.items():
            client.set_model_version_tag(name, str(version), key, value)


def promote(tracking: Tracking, *, name: str, version: int, decision: Decision) -> VersionInfo:
    """Make a version the champion; it stops being the challenger.

    Raises RegistryError for an unknown version and for one whose export parity has not passed.
    """
    _require_parity(get_version(tracking, name=name, version=version))
    with alone(tracking):
        reigns = _history(tracking, name)
        if not reigns or reigns[-1].version != version:
            reigns = [*reigns, Reign(version=version, **asdict(decision))]
        _state(tracking, name, version, "promoted", decision)
        _write_history(tracking, name, reigns)
        _point(tracking, name, CHAMPION, version)
        _drop_challenger(tracking, name, version)
    return get_version(tracking, name=name, version=version)


def rollback(tracking: Tracking, *, name: str, decision: Decision) -> VersionInfo:
    """Make the champion before this one the champion again; the steps back are unlimited.

    Raises RegistryError when there is none before it.
    """
    with alone(tracking):
        reigns = _history(tracking, name)
        current = aliases_of(tracking, name=name).get(CHAMPION)
        if len(reigns) < 2:
            raise RegistryError(
                f"{name} has no earlier champion to go back to",
                got=f"champion: {'none' if current is None else f'version {current}'}",
                hint="`dreambooth promote SUBJECT VERSION` makes any version the champion",
            )
        deposed, before = reigns[-1], reigns[-2]
        _state(tracking, name, deposed.version, "rolled_back", decision)
        _state(tracking, name, before.version, "restored", decision)
        # The alias first: a history that is one too long is mended, a lost one is not.
        _point(tracking, name, CHAMPION, before.version)
        _write_history(tracking, name, reigns[:-1])
    return get_version(tracking, name=name, version=before.version)


def champions(tracking: Tracking, *, name: str) -> tuple[Reign, ...]:
    """The champions up to the present one, oldest first; those rolled back are left out."""
    return tuple(_history(tracking, name))


def _history(tracking: Tracking, name: str) -> list[Reign]:
    """The history, mended to end with the version that the alias points at."""
    client = connect(tracking)
    current = aliases_of(tracking, name=name).get(CHAMPION)
    with in_plain_words(tracking, doing=f"reading the champions of {name}"):
        text = client.get_registered_model(name).tags.get(_HISTORY, "[]")
    reigns = [Reign(**reign) for reign in json.loads(text)]
    if current is None:
        return []
    places = [i for i, reign in enumerate(reigns) if reign.version == current]
    if places:  # what stands after it was written just before a kill, or undone elsewhere
        return reigns[: places[-1] + 1]
    return [*reigns, Reign(version=current, who="unknown", when="", why="set outside the project")]


def _write_history(tracking: Tracking, name: str, reigns: Sequence[Reign]) -> None:
    kept = [asdict(reign) for reign in reigns[-_HISTORY_LENGTH:]]
    with in_plain_words(tracking, doing=f"writing the champions of {name}"):
        connect(tracking).set_registered_model_tag(name, _HISTORY, json.dumps(kept))


def _state(tracking: Tracking, name: str, version: int, what: str, decision: Decision) -> None:
    """Write a decision into a version's tags, as `promoted.who` and so on."""
    tags = {f"{what}.{key}": value for key, value in asdict(decision).items()}
    set_tags(tracking, name=name, version=version, tags=tags)


def _point(tracking: Tracking, name: str, alias: str, version: int) -> None:
    with in_plain_words(tracking, doing=f"moving the alias {alias} of {name}"):
        connect(tracking).set_registered_model_alias(name, alias, str(version))


def _drop_challenger(tracking: Tracking, name: str, version: int) -> None:
    """A champion is not its own challenger."""
    if aliases_of(tracking, name=name).get(CHALLENGER) == version:
        with in_plain_words(tracking, doing=f"removing the alias {CHALLENGER} of {name}"):
            connect(tracking).delete_registered_model_alias(name, CHALLENGER)


def _require_parity(info: VersionInfo) -> None:
    """Refuse an alias for an upload that was never seen to give the images that were scored."""
    if info.tags.get(PARITY) != PARITY_PASSED:
        raise RegistryError(
            f"version {info.version.version} of {info.version.name} has not passed export parity",
            got=info.tags.get(PARITY, "never checked"),
            hint="run the subject again: the check runs before a version gets an alias",
        )
