"""Resume states: weights, optimizer, scaler and metrics at a step, from which training is exact.

Sample, crop, noise, timestep and learning rate are functions of the seed and the step, so no
generator, sampler or scheduler has a state to save.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dreambooth_core import files
from dreambooth_core.errors import StageError
from dreambooth_core.records import Record
from dreambooth_core.training.published import METRICS

_WEIGHTS = "weights.safetensors"
_OPTIMIZER = "optimizer.safetensors"


@dataclass(frozen=True)
class TrainState:
    """All that an update depends on besides the job: tensors by parameter name, and the rows."""

    step: int
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    scaler: dict[str, float] | None
    metrics: str


class StateRecord(Record):
    """A resume state's record, written last: whose it is, and the sha256 of its files."""

    step: int
    fingerprint: str
    scaler: dict[str, float] | None
    files: dict[str, str]


def save_state(folder: Path, state: TrainState, *, fingerprint: str, keep: int) -> None:
    """Write the state aside, rename it, verify it, and only then prune older ones.

    The newest `keep` states up to this step stay; those of later steps (an earlier run went
    further) are not in the way. Raises StageError when the disk gives back other bytes.
    """
    path = folder / _name(state.step)
    with files.atomic_dir(path) as aside:
        save_file(state.weights, aside / _WEIGHTS)
        save_file(state.optimizer, aside / _OPTIMIZER)
        (aside / METRICS).write_text(state.metrics)
        StateRecord(
            step=state.step,
            fingerprint=fingerprint,
            scaler=state.scaler,
            files=files.tree_hashes(aside),
        ).write(aside)
    if _verified(path, fingerprint=fingerprint) is None:
        raise StageError(
            f"the state of step {state.step} was written but cannot be read back",
            got=str(path),
            hint="check the disk; the older states are untouched",
        )
    for step in [s for s in _steps(folder) if s <= state.step][keep:]:
        shutil.rmtree(folder / _name(step), ignore_errors=True)


def newest_state(
    folder: Path, *, fingerprint: str, at_least: int = 0, at_most: int | None = None
) -> StateRecord | None:
    """The newest whole state of this fingerprint within the limits; damaged ones are passed by."""
    for step in _steps(folder):
        if step < at_least or (at_most is not None and step > at_most):
            continue
        if record := _verified(folder / _name(step), fingerprint=fingerprint):
            return record
    return None


def load_state(folder: Path, record: StateRecord) -> TrainState:
    """The state of a record that `newest_state` has verified."""
    path = folder / _name(record.step)
    return TrainState(
        step=record.step,
        weights=load_file(path / _WEIGHTS),
        optimizer=load_file(path / _OPTIMIZER),
        scaler=record.scaler,
        metrics=(path / METRICS).read_text(),
    )


def read_metrics(folder: Path, record: StateRecord) -> str:
    """Only the metrics table of a state."""
    return (folder / _name(record.step) / METRICS).read_text()


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _steps(folder: Path) -> list[int]:
    """Steps of all states that are there, whole or not, newest first."""
    return sorted(_listed(folder), reverse=True)


def _listed(folder: Path) -> Iterator[int]:
    for path in folder.glob("step-*"):
        if found := re.fullmatch(r"step-(\d{8})", path.name):
            yield int(found[1])


def _verified(path: Path, *, fingerprint: str) -> StateRecord | None:
    record = StateRecord.read_if_there(path)
    if record is None or record.fingerprint != fingerprint or _name(record.step) != path.name:
        return None
    if {_WEIGHTS, _OPTIMIZER, METRICS} - record.files.keys():
        return None
    return None if files.mismatches(path, record.files) else record
