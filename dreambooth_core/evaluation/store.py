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
    """The images of one row: those of the suite, prompt by prompt, and of the class prompt."""

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
        sampler: Sampler,
        progress: Progress = no_progress,
        should_stop: StopSignal = never_stop,
    ) -> RowImages:
        """The plan's images from the model with that hash; samples only missing blocks.

        Subjects with the same words and base model share images. Raises Stopped between blocks.
        """
        key = plan.sampling_key(model_sha256)
        requests, size = plan.requests, plan.batch_size

        def sample(indices: Sequence[int]) -> Sequence[Image.Image]:
            block = [requests[index] for index in indices]
            return sampler([prompt for prompt, _ in block], [seed for _, seed in block])

        paths: list[Path] = []
        for first in range(0, len(requests), size):
            indices = range(first, min(first + size, len(requests)))
            block = blocks.complete_block(
                self.root / "images" / key, key, indices, sampler=sample, should_stop=should_stop
            )
            paths += [image.path for image in block]
            progress(indices.stop, len(requests), "evaluation images")
        return RowImages(
            suite=tuple(paths[: plan.num_images]), class_prompt=tuple(paths[plan.num_images :])
        )
