"""Tables of pictures on the page: columns to compare, a group per prompt, a row per seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.records import ImageScore


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture with what made it; `score` is that of a picture of the suite."""

    path: Path
    seed: int
    score: ImageScore | None = None

    @property
    def caption(self) -> str:
        """The seed and the scores, for the enlarged picture."""
        if self.score is None:
            return f"seed {self.seed}"
        words = f"seed {self.seed} · DINO {self.score.dino:.3f} · CLIP-T {self.score.clip_t:.3f}"
        if self.score.copied is None:
            return words
        return f"{words} · {self.score.copied:.3f} like the nearest photo, patch by patch"

    @property
    def nearest_photo(self) -> int | None:
        """The index of the photo with the most similar layout."""
        return None if self.score is None else self.score.nearest


@dataclass(frozen=True, kw_only=True)
class Column:
    """One side of a comparison: a name, what it is, and whether it is marked."""

    name: str
    note: str = ""
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Group:
    """The pictures of one prompt: a row per seed, each with a picture per column or None."""

    prompt: str
    rows: tuple[tuple[Sample | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table of pictures; `key` is unique on the page."""

    key: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]

    @property
    def paths(self) -> Iterator[Path]:
        """The files of all pictures."""
        for group in self.groups:
            for row in group.rows:
                yield from (sample.path for sample in row if sample is not None)


def by_prompt(
    key: str,
    columns: Sequence[Column],
    samples: Mapping[str, Sequence[Sample]],
    *,
    prompts: Sequence[str],
) -> Sheet:
    """The sheet of a suite; each column's samples come round by round, in order of the prompts."""
    rounds = max((len(samples[c.name]) for c in columns), default=0) // max(1, len(prompts))

    def at(column: Column, index: int) -> Sample | None:
        own = samples[column.name]
        return own[index] if index < len(own) else None

    groups = [
        Group(
            prompt=prompt,
            rows=tuple(
                tuple(at(column, number * len(prompts) + p) for column in columns)
                for number in range(rounds)
            ),
        )
        for p, prompt in enumerate(prompts)
    ]
    return Sheet(key=key, columns=tuple(columns), groups=tuple(groups))


def before_and_after(key: str, rows: Mapping[str, Sequence[Sample]]) -> Sheet:
    """The sheet of one prompt: a group per model, a column per seed that all of them have."""
    shown = min(len(samples) for samples in rows.values())
    return Sheet(
        key=key,
        columns=tuple(Column(name=str(number + 1)) for number in range(shown)),
        groups=tuple(
            Group(prompt=name, rows=(tuple(samples[:shown]),)) for name, samples in rows.items()
        ),
    )
