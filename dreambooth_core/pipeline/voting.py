"""Votes on the versions of a subject: who votes, between which versions, and what came out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dreambooth_core.errors import RegistryError, SettingsError
from dreambooth_core.evaluation.preference import Preference
from dreambooth_core.pipeline import decisions, registered
from dreambooth_core.pipeline.common import StageContext
from dreambooth_core.registry import aliases, versions, votes
from dreambooth_core.registry.versions import VersionInfo
from dreambooth_core.registry.votes import Vote, Winner


@dataclass(frozen=True)
class Pair:
    """The two versions that people compare."""

    challenger: int
    champion: int


def pair_of(
    context: StageContext, challenger: int | None = None, champion: int | None = None
) -> Pair:
    """The pair to judge: by default the versions of the aliases challenger and champion.

    Raises RegistryError if there are no two versions to compare.
    """
    tracking, name = registered.tracking_of(context), context.settings.model_name
    infos = versions.list_versions(tracking, name=name)
    numbers = [info.version.version for info in infos]
    known = versions.aliases_of(tracking, name=name)
    second = champion or known.get(aliases.CHAMPION)
    if second is None:
        raise RegistryError(
            f"{name} has no champion to compare with",
            allowed=f"versions {', '.join(map(str, numbers))}",
            hint=f"dreambooth promote {context.settings.name} VERSION",
        )
    first = challenger or known.get(aliases.CHALLENGER)
    if first is None:
        others = [number for number in numbers if number != second]
        if not others:
            raise RegistryError(
                f"{name} has a single version, so there is nothing to compare",
                got=f"version {second}",
                hint=f"change a setting, then `dreambooth run {context.settings.name}`",
            )
        first = others[-1]
    for number in (first, second):
        versions.get_version(tracking, name=name, version=number)
    if first == second:
        raise SettingsError("a vote compares two versions", got=f"version {first} against itself")
    return Pair(first, second)


def cast(context: StageContext, pair: Pair, *, prompt: str, seed: int, winner: Winner) -> Vote:
    """Add a vote by the account of this process, now. Raises SettingsError and RegistryError."""
    if not prompt.strip():
        raise SettingsError("the prompt is empty", hint='--prompt "a photo of sks mug"')
    vote = Vote(
        challenger=pair.challenger,
        champion=pair.champion,
        prompt=prompt.strip(),
        seed=seed,
        winner=winner,
        who=decisions.account(),
        when=decisions.now(),
    )
    votes.cast(registered.tracking_of(context), name=context.settings.model_name, vote=vote)
    return vote


def preference_of(context: StageContext, pair: Pair) -> Preference:
    """What people prefer so far. Raises RegistryError."""
    infos = versions.list_versions(
        registered.tracking_of(context), name=context.settings.model_name
    )
    return preference_among(infos, pair)


def preference_among(infos: Iterable[VersionInfo], pair: Pair) -> Preference:
    """What people prefer, according to all versions of a subject."""
    found = votes.counts(infos, challenger=pair.challenger, champion=pair.champion)
    return Preference(wins=found["challenger"], losses=found["champion"], ties=found["tie"])
