"""What people prefer, from blind comparisons of two versions on the same prompt and seed.

A tie says nothing about the preference, so that only the other votes count (the sign test: Dixon
and Mood 1946). The interval of their share is Wilson's, 95 % (Wilson 1927; Brown, Cai and DasGupta
2001, "Interval Estimation for a Binomial Proportion", recommend it for small samples).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dreambooth_core.records import Interval

_Z_95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
_EVEN = 0.5


@dataclass(frozen=True, kw_only=True)
class Preference:
    """How often people preferred the challenger, the champion, or neither."""

    wins: int = 0
    losses: int = 0
    ties: int = 0

    @property
    def decided(self) -> int:
        """The votes for one side."""
        return self.wins + self.losses

    @property
    def total(self) -> int:
        """All votes."""
        return self.decided + self.ties

    @property
    def share(self) -> Interval | None:
        """The challenger's share of the decided votes; None without any."""
        return wilson(self.wins, self.decided) if self.decided else None

    @property
    def prefers_champion(self) -> bool:
        """Whether people prefer the champion by more than the noise."""
        return self.share is not None and self.share.high < _EVEN

    def in_words(self) -> str:
        """The counts with the interval of the share."""
        ties = f" and {self.ties} ties" if self.ties else ""
        if self.share is None:
            return f"0 votes{ties}"
        low, high = (f"{100 * bound:.0f}" for bound in (self.share.low, self.share.high))
        return (
            f"the challenger won {self.wins} of {self.decided} votes{ties} "
            f"(95 % interval {low} % to {high} %)"
        )

    def to_json(self) -> dict[str, object]:
        """The counts and the share as plain JSON."""
        share = None if self.share is None else self.share.to_json()
        return {"wins": self.wins, "losses": self.losses, "ties": self.ties, "share": share}


def wilson(wins: int, count: int) -> Interval:
    """A share with Wilson's 95 % score interval."""
    share, square = wins / count, _Z_95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    spread = share * (1 - share) / count + square / (4 * count**2)
    half = _Z_95 / (1 + square / count) * math.sqrt(spread)
    return Interval(mean=share, low=max(0.0, centre - half), high=min(1.0, centre + half))
