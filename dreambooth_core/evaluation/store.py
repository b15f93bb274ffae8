"""The score store: evaluation images and rows of scores that survive a kill.

    images/<sampling key>/    blocks of images (dreambooth_core.blocks)
    scores/<score key>/record.json

The sampling key covers the model and the sampling; the score key adds the scorers and the instance
photos. So new photos of a subject change the scores without sampling again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dreambooth_core import blocks
from dreambooth_core.evaluation.suites import EvaluationPlan
from dreambooth_core.ports import Progress, StopSignal, never_stop, no_progress
from dreambooth_core.records import CheckpointScore

Sampler = Callable[[Sequence[str], Sequence[int]], Sequence[Image.Image]]
"""(prompts, seeds) of one block -> its images; each image depends on its prompt and seed alone."""


@dataclass(frozen=True, kw_only=True)
class RowImages:
    """The images of one row: those of the suite, round by round, and of the class prompt."""

    suite: tuple[Path, ...]
    class_prompt: tuple[Path, ...]


@dataclass(frozen=True)
class ScoreStore:
    """Images by sampling key and scores by score key, below `root`."""

    root: Path

    def load_scores(self, key: str) -> CheckpointScore | None:
        """The row under a score key, or None."""
        return CheckpointScore.read_if_there(self.root / "scores" / key)

    def save_scores(self, key: str, row: CheckpointScore) -> None:
        """Write the row under its score key."""
        row.write(self.root / "scores" / key)

    def images(
        self,
        plan: EvaluationPlan,
        *,
        model_sha256: str,
        rounds: int,
        sampler: Sampler,
        lanes: int = 1,
        progress: Progress = no_progress,
        should_stop: StopSignal = never_stop,
    ) -> RowImages:
        """The images of the plan's first rounds from a model; samples only missing blocks.

        Subjects with the same words and base model share images. Raises Stopped between blocks.
        """
        key, requests = plan.sampling_key(model_sha256), dict[int, tuple[str, int]]()
        ranges: list[range] = []
        rounds_after: dict[int, int] = {}
        suite: set[int] = set()
        for number in range(rounds):
            first, own = plan.round(number)
            end = first + len(own)
            requests |= zip(range(first, end), own, strict=True)
            suite |= set(range(first, first + len(plan.prompts)))
            # No block holds images of two rounds.
            ranges += [
                range(start, min(start + plan.batch_size, end))
                for start in range(first, end, plan.batch_size)
            ]
            rounds_after[len(ranges)] = number + 1

        def sample(indices: Sequence[int]) -> Sequence[Image.Image]:
            block = [requests[index] for index in indices]
            return sampler([prompt for prompt, _ in block], [seed for _, seed in block])

        def show(done: int) -> None:
            if done in rounds_after:
                progress(rounds_after[done], rounds, "rounds of evaluation images")

        images = blocks.complete_blocks(
            self.root / "images" / key,
            key,
            ranges,
            sampler=sample,
            lanes=lanes,
            should_stop=should_stop,
            show=show,
        )
        paths = {index: image.path for index, image in zip(requests, images, strict=True)}
        return RowImages(
            suite=tuple(path for index, path in paths.items() if index in suite),
            class_prompt=tuple(path for index, path in paths.items() if index not in suite),
        )
