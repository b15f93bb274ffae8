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
        progress: Progress = no_progress,
        should_stop: StopSignal = never_stop,
    ) -> RowImages:
        """The images of the plan's first rounds from a model; samples only missing blocks.

        Subjects with the same words and base model share images. Raises Stopped between blocks.
        """
        key = plan.sampling_key(model_sha256)
        suite: list[Path] = []
        class_prompt: list[Path] = []
        for number in range(rounds):
            paths = self._round(plan, number, key=key, sampler=sampler, should_stop=should_stop)
            suite += paths[: len(plan.prompts)]
            class_prompt += paths[len(plan.prompts) :]
            progress(number + 1, rounds, "rounds of evaluation images")
        return RowImages(suite=tuple(suite), class_prompt=tuple(class_prompt))

    def _round(
        self,
        plan: EvaluationPlan,
        number: int,
        *,
        key: str,
        sampler: Sampler,
        should_stop: StopSignal,
    ) -> list[Path]:
        """The images of one round. Its blocks hold no other round's images."""
        first, requests = plan.round(number)

        def sample(indices: Sequence[int]) -> Sequence[Image.Image]:
            block = [requests[index - first] for index in indices]
            return sampler([prompt for prompt, _ in block], [seed for _, seed in block])

        paths: list[Path] = []
        end = first + len(requests)
        for start in range(first, end, plan.batch_size):
            indices = range(start, min(start + plan.batch_size, end))
            block = blocks.complete_block(
                self.root / "images" / key, key, indices, sampler=sample, should_stop=should_stop
            )
            paths += [image.path for image in block]
        return paths
