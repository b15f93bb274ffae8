"""The score store: images and scores that survive kills and are never made twice.

    images/<sampling key>/block-00000/{000.png..., record.json}, made.log
    scores/<score key>/record.json

The sampling key says which model makes which images how; the score key adds the scorers and the
instance photos. So other photos of the subject rescore a model without sampling again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dreambooth_core import files, locks
from dreambooth_core.errors import Stopped
from dreambooth_core.evaluation.suites import EvaluationPlan
from dreambooth_core.ports import Progress, StopSignal, never_stop, no_progress
from dreambooth_core.records import CheckpointScore, Record

Sampler = Callable[[Sequence[str], Sequence[int]], Sequence[Image.Image]]
"""(prompts, seeds) of one block -> its images; image i depends on its prompt and seed alone."""


_LOCK_WAIT_S = 3600.0  # longer than any one block takes


class ImageBlock(Record):
    """A finished block of images: the sha256 of every file in it."""

    files: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class RowImages:
    """The images of one row: those of the suite, prompt by prompt, and of the class prompt."""

    suite: tuple[Path, ...]
    class_prompt: tuple[Path, ...]


@dataclass(frozen=True)
class ScoreStore:
    """Images by sampling key and scores by score key, below `root`."""

    root: Path

    def scores(self, key: str) -> CheckpointScore | None:
        """The row under a score key, if it is there whole."""
        return CheckpointScore.read_if_there(self.root / "scores" / key)

    def keep_scores(self, key: str, row: CheckpointScore) -> None:
        """Write the row under its score key."""
        row.write(self.root / "scores" / key)

    def images(
        self,
        plan: EvaluationPlan,
        *,
        model_sha256: str,
        sampler: Sampler,
        progress: Progress = no_progress,
        should_stop: StopSignal = never_stop,
    ) -> RowImages:
        """The plan's images from the model with that hash; only missing blocks are sampled.

        A kill loses at most the block in work. Raises Stopped between blocks.
        """
        folder = self.root / "images" / plan.sampling_key(model_sha256)
        requests, size = plan.requests, plan.batch_size
        paths: list[Path] = []
        for start in range(0, len(requests), size):
            block = requests[start : start + size]
            place = folder / f"block-{start // size:05d}"
            # Subjects that share words and base model share images too: one process makes a block.
            with locks.hold(folder / "block.lock", timeout_s=_LOCK_WAIT_S):
                if not _is_whole(place, count=len(block)):
                    if should_stop():
                        raise Stopped(
                            f"stopped after {start} of {len(requests)} evaluation images",
                            hint="run the same command again: it continues there",
                        )
                    files.remove_asides(folder)
                    _sample_block(place, block, sampler=sampler)
            paths += [place / _image_name(i) for i in range(len(block))]
            progress(start + len(block), len(requests), "evaluation images")
        return RowImages(
            suite=tuple(paths[: plan.num_images]), class_prompt=tuple(paths[plan.num_images :])
        )


def _image_name(index: int) -> str:
    return f"{index:03d}.png"


def _is_whole(place: Path, *, count: int) -> bool:
    """Whether a block is there with the right bytes; a damaged one is removed, to be made again."""
    block = ImageBlock.read_if_there(place)
    if block is not None and len(block.files) == count and not files.mismatches(place, block.files):
        return True
    shutil.rmtree(place, ignore_errors=True)
    return False


def _sample_block(place: Path, block: Sequence[tuple[str, int]], *, sampler: Sampler) -> None:
    images = sampler([prompt for prompt, _ in block], [seed for _, seed in block])
    with (place.parent / "made.log").open("a", encoding="utf-8") as log:
        # Written before the block is kept: the log counts what was made, kept or lost.
        log.write(f"{place.name} {len(images)}\n")
    with files.atomic_dir(place) as aside:
        for index, image in enumerate(images):
            image.save(aside / _image_name(index), format="PNG", optimize=False)
        ImageBlock(files=files.tree_hashes(aside)).write(aside)


def images_made(root: Path) -> int:
    """How many images were sampled below a store's root, over all attempts, kept or lost."""
    logs = (root / "images").glob("*/made.log")
    return sum(int(line.split()[1]) for log in logs for line in log.read_text().splitlines())
