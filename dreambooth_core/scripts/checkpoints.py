"""Checkpoints in the layout of the guide's scripts: everything of a step in `checkpoint-N`.

```text
checkpoint-N/unet/                            loads with UNet2DConditionModel.from_pretrained
checkpoint-N/text_encoder/                    if it is trained
checkpoint-N/pytorch_lora_weights.safetensors  instead of both for LoRA
checkpoint-N/training_state/                  the rest of a resume state: no weight twice
checkpoint-N/record.json                      written last: sha256 of every file
```
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors.torch import save_file

from dreambooth_core import files
from dreambooth_core.errors import SettingsError, StageError
from dreambooth_core.records import Method, Record
from dreambooth_core.scripts import shared_weights
from dreambooth_core.training import protocols
from dreambooth_core.training.checkpoints import resume_state
from dreambooth_core.training.checkpoints.published import METRICS, checkpoint_name
from dreambooth_core.training.optim.ddp import WEIGHTS
from dreambooth_core.training.progress import log_line
from dreambooth_core.training.protocols import CheckpointSource, StateKind

STATE = "training_state"

_WITHOUT_EFFECT = frozenset(
    (
        *("output_dir", "logging_dir", "report_to", "resume_from_checkpoint", "local_rank"),
        *("checkpointing_steps", "checkpoints_total_limit", "dataloader_num_workers"),
        *("validation_prompt", "num_validation_images", "validation_steps", "validation_epochs"),
        *("validation_scheduler", "push_to_hub", "hub_model_id", "set_grads_to_none"),
        *("pre_compute_text_embeddings", "image_interpolation_mode", "save_steps"),
        *("skip_save_text_encoder", "output_kohya_format"),
    )
)
"""Flags that change no weight."""
_OPTIMIZER_FLAGS = ("optimizer", "use_8bit_adam")
_NAME = re.compile(r"checkpoint-(\d+)")


class ScriptCheckpoint(Record):
    """A checkpoint's record: its step, its settings, sha256 of its files."""

    step: int
    method: Method
    settings: dict[str, Any]
    files: dict[str, str]
    run: str = ""
    """The name of its run (resume.py); empty in checkpoints of older versions."""
    images: tuple[str, ...] = ()
    """Fingerprints of the photos and of the class images."""


class ScriptLayout:
    """Writes `checkpoint-N` folders into `folder` and keeps at most `limit` of them."""

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        limit: int | None,
        record: ScriptCheckpoint,
    ) -> None:
        """Every checkpoint has `record` with its own step and files."""
        self._folder, self._every, self._limit, self._record = folder, every, limit, record

    def begin(self, source: CheckpointSource, *, step: int) -> None:
        """Do nothing: step 0 has no checkpoint."""

    def is_due(self, step: int) -> bool:
        """Whether `step` is a multiple of checkpointing_steps."""
        return step % self._every == 0

    def save(self, source: CheckpointSource, *, step: int, metrics: str) -> None:
        """Write the checkpoint, rename it into place, verify it, and only then prune older ones.

        Raises StageError if the written files do not verify.
        """
        path, processes = self._folder / checkpoint_name(step), PartialState()
        with resume_state.shared_aside(path) as aside:
            self._write(source, aside)
            processes.wait_for_everyone()
            if processes.is_main_process:
                shared_weights.remove_shared(aside / STATE, checkpoint=aside)
                files.write_text(aside / STATE / METRICS, metrics)
                hashes = files.tree_hashes(aside)
                self._record.model_copy(update={"step": step, "files": hashes}).write(aside)
        if processes.is_main_process:
            self._verify(path)
            log_line(f"saved {path}")
            self._prune(keep=step)
        processes.wait_for_everyone()

    def _write(self, source: CheckpointSource, aside: Path) -> None:
        """Write the networks in the main process, and each process's part of the training state."""
        state = aside / STATE
        state.mkdir(exist_ok=True)
        with source.gathered_weights():
            if PartialState().is_main_process:
                source.model.write(aside)
        source.save(state)

    def _verify(self, path: Path) -> None:
        if read_whole(path) is None:
            raise StageError(
                f"{path.name} was written but cannot be read back",
                got=str(path),
                hint="check the disk; the older checkpoints are untouched",
            )

    def _prune(self, *, keep: int) -> None:
        """Remove the run's lowest steps beyond the limit, but never the step just written."""
        if self._limit is None:
            return
        own = [path for path, _ in records(self._folder, run=self._record.run)]
        others = [path for path in own if path.name != checkpoint_name(keep)]
        for path in others[: max(0, len(others) + 1 - self._limit)]:
            shutil.rmtree(path, ignore_errors=True)


def read_metrics(folder: Path) -> str:
    """The metrics table of a checkpoint."""
    return (folder / STATE / METRICS).read_text()


@dataclass(frozen=True)
class ResumingRun:
    """The resuming run: its flags, its kind of state and its weights."""

    settings: dict[str, Any]
    kind: StateKind
    trained: Mapping[str, Sequence[int]]
    """The shapes of its weights."""


def state_to_resume(
    folder: Path, record: ScriptCheckpoint, run: ResumingRun, *, scratch: Path
) -> Path:
    """The folder that `Strategy` continues from: the checkpoint's own, or one made in `scratch`.

    The scratch folder has the complete weights and links to the rest. It has the weights alone if
    another optimizer or another number of processes wrote the state: the moments would not fit.
    """
    state, settings = folder / STATE, run.settings
    is_alike = all(record.settings.get(n) == settings.get(n) for n in _OPTIMIZER_FLAGS)
    made_by = protocols.saved_state_kind(state)
    is_fitting = is_alike and made_by == run.kind
    if is_fitting and shared_weights.is_complete(state):
        return state
    if made_by != run.kind:
        log_line(
            f"note: the state of {folder.name} is {made_by}, that of this run {run.kind}: the "
            "weights continue, the optimizer starts anew"
        )
    weights = shared_weights.read_weights(state, checkpoint=folder, trained=run.trained)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file(weights, scratch / WEIGHTS)
    for entry in state.iterdir() if is_fitting else ():
        if entry.name != WEIGHTS:
            (scratch / entry.name).symlink_to(entry.resolve())
    return scratch


def read_whole(path: Path) -> ScriptCheckpoint | None:
    """The record of a checkpoint if all its files verify, else None."""
    record = ScriptCheckpoint.read_if_there(path)
    if record is None or checkpoint_name(record.step) != path.name:
        return None
    return None if files.mismatches(path, record.files) else record


def folders(folder: Path) -> list[Path]:
    """All folders named `checkpoint-N`, lowest step first."""
    found = (_NAME.fullmatch(p.name) for p in folder.glob("checkpoint-*") if p.is_dir())
    return [folder / checkpoint_name(step) for step in sorted(int(m[1]) for m in found if m)]


def records(folder: Path, *, run: str | None = None) -> list[tuple[Path, ScriptCheckpoint]]:
    """The checkpoints with a record, lowest step first; their files are not verified."""
    found = ((path, ScriptCheckpoint.read_if_there(path)) for path in folders(folder))
    return [(p, record) for p, record in found if record and run in (None, record.run)]


def effective(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that change weights."""
    return {name: value for name, value in settings.items() if name not in _WITHOUT_EFFECT}


def changes(record: ScriptCheckpoint, settings: dict[str, Any]) -> list[str]:
    """Settings that differ from the checkpoint's, each as `name: old -> new`."""
    old, new = effective(record.settings), effective(settings)
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def check_fits(folder: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise SettingsError unless the checkpoint has the weights that the run trains."""
    saved = shared_weights.read_shapes(folder / STATE, checkpoint=folder, trained=shapes)
    odd = sorted(saved.keys() ^ shapes.keys())
    odd += [n for n in sorted(saved.keys() & shapes.keys()) if list(saved[n]) != list(shapes[n])]
    if odd:
        raise SettingsError(
            "--resume_from_checkpoint: the checkpoint holds other weights than are trained now",
            got=f"{len(odd)} tensors, first {odd[0]}",
            hint="resume with the script, the model and the flags (text encoder, rank, layers) "
            "that made it",
        )
