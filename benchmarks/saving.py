"""How long checkpoints block training, with synchronous and asynchronous saves.

    python -m benchmarks.saving                   # train the pocket model with params.yaml
    python -m benchmarks.saving --size-gb 3.3     # copy, write and hash random tensors

The batches are random, which does not affect the times. Both runs save the same bytes; a test
checks that. Prints one JSON object per run.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file

from benchmarks.recipes import ROOT, RandomRows, make_job
from dreambooth_core import config, files
from dreambooth_core.ports import NullSink, never_stop
from dreambooth_core.training import worker
from dreambooth_core.training.checkpoints import resume_state, saving
from dreambooth_core.training.optim import snapshot
from dreambooth_core.training.trainable import TrainableModel

PARTS = {
    "loop blocked": [(saving.Saver, "save"), (saving.Saver, "check")],
    "  copying": [(snapshot.Snapshots, "take")],
    "whole save": [(saving.PipelineLayout, "save")],
    "  serialising": [(snapshot.StateFiles, "write"), (TrainableModel, "write")],
    "  hashing": [(files, "tree_hashes")],
    "  verifying": [(resume_state, "_verified")],
    "  fsync of folders": [(files, "fsync_tree")],
    "  removing": [(shutil, "rmtree")],
}
"""Timed functions by name; the parts of an asynchronous save overlap with updates only."""
NUM_TENSORS = 686  # SD 1.4's U-Net has as many


class Clock:
    """Wall seconds and CPU seconds of the thread, by part."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.spent[name][0] += time.perf_counter() - began
            self.spent[name][1] += time.thread_time() - cpu

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return timed

    def summary(self) -> dict[str, str]:
        return {name: f"{wall:.2f} s (CPU {cpu:.2f})" for name, (wall, cpu) in self.spent.items()}


def pocket_run(*, asynchronous: bool, num_steps: int) -> dict[str, Any]:
    """Train with params.yaml and time the parts of its saves."""
    settings = config.load_settings(ROOT / "params.yaml")
    train = settings.train.model_copy(update={"max_train_steps": num_steps})
    base = ROOT / settings.base_model.pretrained_model_name_or_path
    rows = RandomRows(base, settings.data.resolution, with_class=True)
    clock, patches = Clock(), []
    for name, places in PARTS.items():
        for owner, attribute in places:
            timed = clock.around(name, getattr(owner, attribute))
            patches.append(mock.patch.object(owner, attribute, timed))
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), base, settings, train, with_class=True)
        job = job.model_copy(update={"async_checkpointing": asynchronous})
        job.state_dir.mkdir(parents=True)
        for patch in patches:
            patch.start()
        began, cpu = time.perf_counter(), time.process_time()
        worker.work(job, open_rows=lambda _: rows.rows_at, open_sink=lambda _: NullSink(),
                    should_stop=never_stop)  # fmt: skip
        spent = f"{time.perf_counter() - began:.2f} s (CPU {time.process_time() - cpu:.2f})"
        for patch in patches:
            patch.stop()
    return {"asynchronous": asynchronous, "steps": num_steps, "run": spent, **clock.summary()}


def by_size(size_gb: float) -> list[dict[str, str]]:
    """Time snapshot and save of `size_gb`, the second time with the memory already allocated."""
    numel = int(size_gb * 1e9 / 4 / NUM_TENSORS)
    live = {str(index): torch.randn(numel) for index in range(NUM_TENSORS)}
    kept = {name: torch.empty_like(tensor) for name, tensor in live.items()}
    turns: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as name:
        for _ in range(2):
            clock, folder = Clock(), Path(name)
            with clock.part("copying"):
                for key, tensor in live.items():
                    kept[key].copy_(tensor)
            with clock.part("serialising"):
                save_file(kept, folder / "weights.safetensors")
            with clock.part("hashing"):
                files.tree_hashes(folder)
            with clock.part("fsync"):
                files.fsync_tree(folder)
            with clock.part("verifying"):
                files.tree_hashes(folder)
            with clock.part("removing"):
                (folder / "weights.safetensors").unlink()
            turns.append(clock.summary())
    return turns


def main() -> None:
    """Print a JSON object per run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--size-gb", type=float)
    args = parser.parse_args()
    if args.size_gb:
        print(json.dumps(by_size(args.size_gb), indent=2))
        return
    for asynchronous in (False, True):
        print(
            json.dumps(pocket_run(asynchronous=asynchronous, num_steps=args.steps), indent=2),
            flush=True,
        )


if __name__ == "__main__":
    main()
