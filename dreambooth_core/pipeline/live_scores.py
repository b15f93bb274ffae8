"""What is known of a training's checkpoints while it runs, for whoever watches the folder.

One file per scored row lies next to the training's states, with the row and its first round of
images. The published scores are those of the stage `evaluate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreambooth_core import files
from dreambooth_core.records import CheckpointScore, Record, ScoreRow

_FOLDER = "scored"


class ScoredRow(Record):
    """A row with its images of one seed, in the order of the prompts."""

    row: ScoreRow
    prompts: tuple[str, ...]
    images: tuple[str, ...]
    """Paths relative to the workspace."""


def write(
    state_dir: Path,
    row: CheckpointScore,
    images: Sequence[Path],
    *,
    prompts: Sequence[str],
    root: Path,
) -> None:
    """Note a scored row of the training that works in `state_dir`."""
    count = len(prompts)
    noted = ScoredRow(
        row=ScoreRow(**row.model_dump(include=set(ScoreRow.model_fields))),
        prompts=tuple(prompts),
        images=tuple(path.relative_to(root).as_posix() for path in images[:count]),
    )
    folder = state_dir / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / f"{row.name.replace(' ', '-')}.json", noted.to_json())


def read(state_dir: Path) -> list[ScoredRow]:
    """The rows scored so far, in order of steps."""
    folder = state_dir / _FOLDER
    names = [path.name for path in folder.glob("*.json") if not files.is_aside(path.name)]
    found = [ScoredRow.read_if_there(folder, name) for name in names]
    return sorted((each for each in found if each), key=lambda each: each.row.step or 0)
