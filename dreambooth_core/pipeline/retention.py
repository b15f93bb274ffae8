"""Which checkpoints of a training stay on disk once one of them is selected.

The output of the train stage is what DVC caches and pushes, so it keeps only the weights that were
selected. The store keeps those of every checkpoint until another training of the subject replaces
them. Records, scores and pictures of all checkpoints stay in any case.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from dreambooth_core import files
from dreambooth_core.errors import StageError
from dreambooth_core.pipeline.common import StageContext, publishing
from dreambooth_core.records import Selection, TrainingRun
from dreambooth_core.workspace import Places

_CHECKPOINTS = "checkpoints"


def weights_dir(places: Places, training: TrainingRun, name: str) -> Path:
    """The folder with the weights of a checkpoint: the stage's output, else the store.

    Raises StageError if neither has it.
    """
    stored = places.store_dir("train", training.fingerprint) / _CHECKPOINTS
    for folder in (places.stage_dir("train"), stored):
        if (folder / name).is_dir():
            return folder / name
    raise StageError(
        f"the weights of {name} are not on this machine: another checkpoint was selected",
        got=str(places.stage_dir("train")),
        hint=f"`dvc repro --force --single-item train@{places.subject}` trains again, to the same "
        "bytes; then repeat the command",
    )


def has_unselected(context: StageContext) -> bool:
    """Whether the output of the train stage has other weights than the selected ones."""
    best = _selected(context.places)
    folder = context.places.stage_dir("train")
    return best is not None and [path.name for path in _checkpoints(folder)] != [best]


def keep_selected(context: StageContext) -> None:
    """Publish the training again, with the weights of the selected checkpoint alone."""
    places = context.places
    folder = places.stage_dir("train")
    best = _selected(places)
    if best is None:
        return  # `register` says so
    weights = weights_dir(places, TrainingRun.read(folder), best)
    with publishing(places, "train") as out:
        files.copy_tree(weights, out / best)
        for path in folder.iterdir():
            if path.is_file():
                shutil.copyfile(path, out / path.name)


def remove_replaced(context: StageContext) -> None:
    """Remove the finished trainings of the subject that a later one has replaced."""
    places = context.places
    published = places.outputs.parent.glob("*/train")
    used = {run.fingerprint for path in published if (run := TrainingRun.read_if_there(path))}
    for folder in (places.store / "train").glob("*"):
        is_done = TrainingRun.read_if_there(folder / "out") is not None
        if folder.name not in used and is_done and subject_of(folder) == places.subject:
            shutil.rmtree(folder)


def subject_of(training: Path) -> str | None:
    """The subject of a training in the store."""
    try:
        return json.loads((training / "job.json").read_text())["subject"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _selected(places: Places) -> str | None:
    """The name of the selected checkpoint."""
    return Selection.read(places.stage_dir("select")).best


def _checkpoints(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("checkpoint-*")) if path.is_dir())
