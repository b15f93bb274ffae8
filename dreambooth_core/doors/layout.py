"""Checkpoints as the seed document's scripts lay them out: everything of a step in `checkpoint-N`.

```text
checkpoint-N/unet/                            loads with UNet2DConditionModel.from_pretrained
checkpoint-N/text_encoder/                    when it is trained
checkpoint-N/pytorch_lora_weights.safetensors  instead of both for LoRA
checkpoint-N/training_state/                  what a resume needs besides
checkpoint-N/record.json                      written last: sha256 of every file
```
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dreambooth_core import files
from dreambooth_core.errors import SettingsError, StageError
from dreambooth_core.records import Method, Record
from dreambooth_core.training.layout import write_weights
from dreambooth_core.training.narrator import say
from dreambooth_core.training.published import METRICS, checkpoint_name
from dreambooth_core.training.resume import TrainState
from dreambooth_core.training.trainer import Trainer

LATEST = "latest"

_STATE = "training_state"
_WEIGHTS = f"{_STATE}/weights.safetensors"
_OPTIMIZER = f"{_STATE}/optimizer.safetensors"
_UNET = "unet."
_NAME = re.compile(r"checkpoint-(\d+)")


class ScriptCheckpoint(Record):
    """A checkpoint's record: its step, the settings it was made with, sha256 of its files."""

    step: int
    method: Method
    settings: dict[str, Any]
    scaler: dict[str, float] | None
    files: dict[str, str]


class ScriptLayout:
    """Writes `checkpoint-N` folders below `folder` and keeps at most `limit` of them."""

    def __init__(
        self,
        folder: Path,
        *,
        method: Method,
        every: int,
        limit: int | None,
        settings: dict[str, Any],
        is_main: bool,
    ) -> None:
        self._folder = folder
        self._method: Method = method
        self._every, self._limit = every, limit
        self._settings, self._is_main = settings, is_main

    def begin(self, trainer: Trainer, *, step: int) -> None:
        """Nothing to do: a run makes checkpoints only as it goes."""

    def is_due(self, step: int) -> bool:
        """At every multiple of checkpointing_steps; the last step's weights are the result."""
        return step % self._every == 0

    def save(self, trainer: Trainer, *, step: int, metrics: str) -> None:
        """Write the checkpoint aside, rename it, verify it, and only then prune older ones.

        Raises StageError when the disk gives back other bytes.
        """
        if not self._is_main:
            return
        path = self._folder / checkpoint_name(step)
        state = trainer.state(step, metrics=metrics)
        with files.atomic_dir(path) as aside:
            write_weights(trainer.trainee, aside, method=self._method)
            _write_state(aside, state, method=self._method)
            ScriptCheckpoint(
                step=step,
                method=self._method,
                settings=self._settings,
                scaler=state.scaler,
                files=files.tree_hashes(aside),
            ).write(aside)
        if read_whole(path) is None:
            raise StageError(
                f"{path.name} was written but cannot be read back",
                got=str(path),
                hint="check the disk; the older checkpoints are untouched",
            )
        say(f"saved {path}")
        self._prune(keep=step)

    def _prune(self, *, keep: int) -> None:
        """Remove the lowest steps beyond the limit, but never the step just written."""
        if self._limit is None:
            return
        others = [step for step in _steps(self._folder) if step != keep]
        for step in others[: max(0, len(others) + 1 - self._limit)]:
            shutil.rmtree(self._folder / checkpoint_name(step), ignore_errors=True)


def _write_state(folder: Path, state: TrainState, *, method: Method) -> None:
    """What is needed to go on, without what stands in `unet/` already."""
    (folder / _STATE).mkdir()
    weights = {n: w for n, w in state.weights.items() if not _is_in_unet_folder(n, method)}
    save_file(weights, folder / _WEIGHTS)
    save_file(state.optimizer, folder / _OPTIMIZER)
    (folder / _STATE / METRICS).write_text(state.metrics)


def _is_in_unet_folder(name: str, method: Method) -> bool:
    return method == "full" and name.startswith(_UNET)


def load_state(folder: Path, record: ScriptCheckpoint) -> TrainState:
    """The state of a checkpoint that `find_checkpoint` has verified."""
    weights = load_file(folder / _WEIGHTS)
    if record.method == "full":
        for path in sorted((folder / "unet").glob("*.safetensors")):
            weights |= {f"{_UNET}{name}": tensor for name, tensor in load_file(path).items()}
    return TrainState(
        step=record.step,
        weights=weights,
        optimizer=load_file(folder / _OPTIMIZER),
        scaler=record.scaler,
        metrics=(folder / _STATE / METRICS).read_text(),
    )


def find_checkpoint(folder: Path, name: str) -> tuple[Path, ScriptCheckpoint] | None:
    """The checkpoint called `name`, or the newest whole one for "latest"; None if there is none.

    Raises SettingsError for a name that is not there or not whole.
    """
    if name == LATEST:
        return _newest_whole(folder)
    path = folder / Path(name).name
    record = read_whole(path)
    if record is None:
        what = "is not whole" if path.is_dir() else "does not exist"
        whole = [p.name for p in _folders(folder) if read_whole(p) is not None]
        raise SettingsError(
            f"--resume_from_checkpoint: {path.name} {what}",
            got=str(path),
            allowed=", ".join([*whole, LATEST]) if whole else "no checkpoint of this project's yet",
        )
    return path, record


def _newest_whole(folder: Path) -> tuple[Path, ScriptCheckpoint] | None:
    for path in reversed(_folders(folder)):
        if record := read_whole(path):
            return path, record
        say(f"warning: {path.name} is not whole: passed by")
    return None


def read_whole(path: Path) -> ScriptCheckpoint | None:
    """The record of a checkpoint whose every file is what it says; else None."""
    record = ScriptCheckpoint.read_if_there(path)
    if record is None or checkpoint_name(record.step) != path.name:
        return None
    return None if files.mismatches(path, record.files) else record


def _folders(folder: Path) -> list[Path]:
    return [folder / checkpoint_name(step) for step in _steps(folder)]


def _steps(folder: Path) -> list[int]:
    """Steps of all folders with a checkpoint's name, lowest first."""
    found = (_NAME.fullmatch(p.name) for p in folder.glob("checkpoint-*") if p.is_dir())
    return sorted(int(match[1]) for match in found if match)


def changes(record: ScriptCheckpoint, settings: dict[str, Any]) -> list[str]:
    """Which settings are not those of the checkpoint, each as `name: old -> new`."""
    names = sorted(record.settings.keys() | settings.keys())
    return [
        f"{name}: {record.settings.get(name)} -> {settings.get(name)}"
        for name in names
        if record.settings.get(name) != settings.get(name)
    ]


def check_fits(state: TrainState, shapes: dict[str, torch.Size]) -> None:
    """Raise SettingsError unless the state's weights are those that are trained now."""
    odd = sorted(state.weights.keys() ^ shapes.keys())
    odd += [n for n, w in state.weights.items() if n in shapes and w.shape != shapes[n]]
    if odd:
        raise SettingsError(
            "--resume_from_checkpoint: the checkpoint holds other weights than are trained now",
            got=f"{len(odd)} tensors, first {odd[0]}",
            hint="resume with the script, the model and the flags (text encoder, rank, layers) "
            "that made it",
        )
