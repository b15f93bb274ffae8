"""Scoring a registered version again, on the present suite, seeds, scorers and photos."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from PIL import Image

from dreambooth_core.evaluation import scores
from dreambooth_core.evaluation.scores import ScoredModel
from dreambooth_core.models import weights
from dreambooth_core.models.families import Pipeline
from dreambooth_core.pipeline import evaluate
from dreambooth_core.pipeline.common import StageContext
from dreambooth_core.pipeline.registered import tracking_of
from dreambooth_core.records import CheckpointScore
from dreambooth_core.registry import versions
from dreambooth_core.registry.versions import VersionInfo


def score_version(context: StageContext, info: VersionInfo) -> CheckpointScore:
    """A registered version's row under the present harness: found in the store, or made.

    Its images are found when it was trained on the present base model on a machine like this one;
    otherwise the version is fetched from the registry and sampled.
    """
    session, version = evaluate.open_session(context), info.version

    @functools.cache
    def pipeline() -> Pipeline:
        return weights.load_exported(
            versions.fetch(tracking_of(context), info.uri),
            context.places.root,
            device=session.device,
            hash_cache=context.places.hash_cache,
        )

    def sampler(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return session.draw(context, pipeline(), prompts=prompts, seeds=seeds)

    return scores.score_checkpoint(
        session.evaluator,
        model=ScoredModel(
            name=version.checkpoint,
            step=int(version.checkpoint.rsplit("-", 1)[-1]),
            sha256=session.model_sha256(
                version.sha256, base_sha256=info.tags.get("base_model_sha256")
            ),
        ),
        sampler=sampler,
        progress=context.progress,
        should_stop=context.should_stop,
    )
