"""The HTML page, grids, curves and the model card."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.records import SCORES


@dataclass(frozen=True)
class ScoreKind:
    """A score on the page; `better` is +1 if higher is better, and -1 if lower is better."""

    key: str
    means: str
    better: int

    @property
    def name(self) -> str:
        """The name in tables and charts."""
        return SCORES[self.key]


KINDS = (
    ScoreKind("dino", "likeness to the subject", 1),
    ScoreKind("clip_i", "likeness to the subject, by CLIP", 1),
    ScoreKind("clip_t", "follows the prompt", 1),
    ScoreKind("pres", "how much the class became the subject", -1),
    ScoreKind("div", "differing images of one prompt", 1),
)
"""The scores in the order of the page and the card: the one that decides comes first."""
