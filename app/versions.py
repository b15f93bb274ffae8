"""The registry's versions of a subject, as `dreambooth compare` lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.layout import link, problem
from app.parts import redrawn
from app.residents import Resident
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.records import SCORES

CHAMPION, CHALLENGER = "champion", "challenger"


@dataclass(frozen=True)
class Versions:
    """All versions, oldest first, as plain JSON."""

    rows: list[dict[str, Any]]
    earlier_champion: int | None = None
    """The version that a rollback would put back in use."""

    def row(self, number: int) -> dict[str, Any]:
        """One version."""
        return next(row for row in self.rows if row["version"] == number)

    def with_alias(self, alias: str) -> int | None:
        """The version that has an alias now."""
        return next((row["version"] for row in self.rows if alias in row["aliases"]), None)

    @property
    def titles(self) -> dict[str, str]:
        """Each version's number with its aliases, newest first."""
        return {str(row["version"]): title_of(row) for row in reversed(self.rows)}

    @property
    def pair(self) -> tuple[int, int] | None:
        """Challenger and champion; the newest other version where there is no challenger."""
        champion = self.with_alias(CHAMPION)
        others = [row["version"] for row in self.rows if row["version"] != champion]
        challenger = self.with_alias(CHALLENGER) or (others[-1] if others else None)
        return None if champion is None or challenger is None else (challenger, champion)


async def read(registry: Resident, name: str) -> Versions:
    """The versions of a subject. Raises CommandError if none is registered."""
    told = await registry.call("compare", name)
    return Versions(told["versions"], told["earlier_champion"])


async def shown_in(place: Any, registry: Resident, name: str) -> Versions | None:
    """The versions of a subject; None with the reason in `place`, or if the page is gone."""
    try:
        found = await read(registry, name)
    except DreamBoothError as error:
        with redrawn(place):
            problem(error)
            link("Train it", f"/train/{name}", classes="act main")
        return None
    return None if place.is_deleted else found


def title_of(row: Mapping[str, Any]) -> str:
    """A version in words, such as "version 3, champion"."""
    return ", ".join([f"version {row['version']}", *row["aliases"]])


def uri_of(row: Mapping[str, Any]) -> str:
    """The reference of a version for `dreambooth generate`."""
    return f"models:/{row['name']}/{row['version']}"


def scores_of(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Each score's name, value and interval."""
    found: list[tuple[str, str, str]] = []
    for key, title in SCORES.items():
        value, interval = row["scores"].get(key), row["intervals"].get(key)
        if value is not None:
            bounds = f"{interval['low']:.3f} to {interval['high']:.3f}" if interval else ""
            found.append((title, f"{value:.3f}", bounds))
    return found
