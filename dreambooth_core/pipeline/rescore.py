"""Scores registered versions on the present suite, seeds, scorers and photos."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dreambooth_core.errors import DreamBoothError, Stopped, UnknownModelError
from dreambooth_core.pipeline.common import StageContext, table_of
from dreambooth_core.pipeline.registered import tracking_of
from dreambooth_core.records import REAL, STEP_0, CheckpointScore, Evaluation, ScoreRow
from dreambooth_core.registry import rescores, versions
from dreambooth_core.registry.versions import VersionInfo

if TYPE_CHECKING:
    from dreambooth_core.models.families import Pipeline


@dataclass(frozen=True)
class Rescored:
    """A version after `run`: its scores, or why it has none."""

    version: VersionInfo
    state: Literal["scored", "recorded before", "failed"]
    row: ScoreRow | None = None
    why: str = ""


def run(context: StageContext) -> list[Rescored]:
    """Score every registered version of a subject; record the scores next to its earlier ones.

    Versions that the registry has with the present harness are not scored again. One that fails
    does not keep the others from being scored. Raises Stopped.
    """
    try:
        found = versions.list_versions(tracking_of(context), name=context.settings.model_name)
    except UnknownModelError:
        return []  # none is registered yet
    return [_bring_up_to_date(context, info) for info in found]


def label_of(context: StageContext) -> str:
    """The name of the present harness in the registry."""
    from dreambooth_core.pipeline import evaluate

    return rescores.label(evaluate.open_resident(context).evaluators["confirm"].harness)


def _bring_up_to_date(context: StageContext, info: VersionInfo) -> Rescored:
    from dreambooth_core.pipeline import evaluate

    harness = evaluate.open_resident(context).evaluators["confirm"].harness
    known = rescores.recorded(info, harness)
    if known is not None:
        return Rescored(info, "recorded before", known)
    try:
        row = score_version(context, info)
        base, real = (evaluate.score_row(context, n, role="confirm") for n in (STEP_0, REAL))
        evaluation = Evaluation(
            harness=harness, text_range=base.text_range or 0.0, rows=(row, base, real)
        )
        rescores.record(tracking_of(context), info, table_of(evaluation))
    except Stopped:
        raise
    except DreamBoothError as error:
        return Rescored(info, "failed", why=str(error))
    return Rescored(info, "scored", row)


def score_version(context: StageContext, info: VersionInfo) -> CheckpointScore:
    """The row of a registered version on the present suite, seeds, scorers and photos.

    The store has its images if the same base model made them on a machine like this one. If it
    lacks some, the version is downloaded from the registry and sampled.
    """
    from dreambooth_core.models import weights  # torch, for scoring alone
    from dreambooth_core.pipeline import evaluate

    resident, version = evaluate.open_resident(context), info.version

    @functools.cache
    def pipeline() -> Pipeline:
        return weights.load_exported(
            versions.fetch(tracking_of(context), info.uri),
            context.places.root,
            device=resident.device,
            hash_cache=context.places.hash_cache,
        )

    model = resident.model(
        version.checkpoint,
        step=int(version.checkpoint.rsplit("-", 1)[-1]),
        checkpoint_sha256=version.sha256,
        base_sha256=info.tags.get("base_model_sha256"),
    )
    return resident.score(
        context, model, role="confirm", borrow=lambda: contextlib.nullcontext(pipeline())
    )
