"""The evaluate stage: a row of scores for the base model, every checkpoint and the real photos.

The flow calls `score_row` once per row, mapped; the stage itself gathers the rows, which it then
finds in the score store, and publishes.
"""

from __future__ import annotations

import csv
import functools
import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from dreambooth_core import files
from dreambooth_core.config import SubjectView
from dreambooth_core.evaluation import extractors, scores, suites
from dreambooth_core.evaluation.scores import Evaluator, ScoredModel
from dreambooth_core.evaluation.store import RowImages, ScoreStore
from dreambooth_core.evaluation.suites import EvaluationPlan
from dreambooth_core.models import load, sampling, weights
from dreambooth_core.models.families import Pipeline
from dreambooth_core.pipeline.common import (
    StageContext,
    picture_name,
    publishing,
    row_pictures,
    table_of,
)
from dreambooth_core.pipeline.validate import images_digest
from dreambooth_core.ports import StopSignal, never_stop
from dreambooth_core.records import (
    REAL,
    SCORES,
    STEP_0,
    BaseModelIdentity,
    Checkpoint,
    CheckpointScore,
    Evaluation,
    Manifest,
    TrainingRun,
)
from dreambooth_core.report import grid
from dreambooth_core.workspace import Places


def rows_to_score(context: StageContext) -> tuple[str, ...]:
    """Names of the rows: `step 0`, every checkpoint in order of steps, `real`."""
    run = _training_run(context)
    return (STEP_0, *(checkpoint.name for checkpoint in run.checkpoints), REAL)


def score_row(context: StageContext, name: str) -> CheckpointScore:
    """Score one row, or find it in the store. Raises Stopped between sampling blocks."""
    session = open_session(context)
    if name == REAL:
        return scores.score_real(session.evaluator)
    checkpoint = None if name == STEP_0 else _checkpoint(context, name)
    folder = context.places.stage_dir("train") / name
    return session.score(context, name=name, checkpoint=checkpoint, folder=folder)


def run(context: StageContext) -> Evaluation:
    """Score all rows, then publish samples, scores, curves and the grid."""
    names = rows_to_score(context)
    rows = [score_row(context, name) for name in names]
    session = open_session(context)
    text_range = next(row.text_range for row in rows if row.name == STEP_0)
    assert text_range is not None  # noqa: S101 - step 0 always has prompts
    evaluation = Evaluation(
        harness=session.evaluator.harness, text_range=text_range, rows=tuple(rows)
    )
    with publishing(context.places, "evaluate") as out:
        _write_pictures(session, evaluation, out)
        table_of(evaluation).write(out, "scores.json")
        files.write_text(out / "curves.csv", _curves(rows))
        evaluation.write(out)
    return evaluation


def draw(
    pipe: Pipeline,
    plan: EvaluationPlan,
    *,
    prompts: Sequence[str],
    seeds: Sequence[int],
    should_stop: StopSignal = never_stop,
) -> list[Image.Image]:
    """Pictures as the plan says they are drawn, whichever model `pipe` is."""
    return sampling.sample(
        pipe,
        prompts=prompts,
        seeds=seeds,
        steps=plan.steps,
        guidance=plan.guidance,
        resolution=plan.resolution,
        batch_size=plan.batch_size,
        should_stop=should_stop,
    )


@dataclass(frozen=True, kw_only=True)
class Session:
    """What the rows of one evaluation share in a process: scorers, photos, a resident pipeline."""

    evaluator: Evaluator
    identity: BaseModelIdentity
    device: torch.device
    num_threads: int
    pipeline: Callable[[], Pipeline]

    def model_sha256(self, checkpoint_sha256: str | None, *, base_sha256: str | None = None) -> str:
        """Everything about a model and a machine that makes its images what they are."""
        base = base_sha256 or self.identity.sha256
        return files.digest_of([base, checkpoint_sha256, self.device.type, self.num_threads])

    def draw(
        self,
        context: StageContext,
        pipe: Pipeline,
        *,
        prompts: Sequence[str],
        seeds: Sequence[int],
    ) -> list[Image.Image]:
        """Pictures as the plan says they are drawn, whichever model `pipe` is."""
        return draw(
            pipe,
            self.evaluator.plan,
            prompts=prompts,
            seeds=seeds,
            should_stop=context.should_stop,
        )

    def score(
        self, context: StageContext, *, name: str, checkpoint: Checkpoint | None, folder: Path
    ) -> CheckpointScore:
        """The row of the base model, or of a checkpoint whose files are in `folder`."""
        own_sha256 = checkpoint.sha256 if checkpoint else None

        def sampler(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
            pipe = self.pipeline()
            with weights.applied(pipe, folder, checkpoint):
                return self.draw(context, pipe, prompts=prompts, seeds=seeds)

        row = scores.score_checkpoint(
            self.evaluator,
            model=ScoredModel(
                name=name,
                step=checkpoint.step if checkpoint else 0,
                sha256=self.model_sha256(own_sha256),
            ),
            sampler=sampler,
            progress=context.progress,
            should_stop=context.should_stop,
        )
        return row.model_copy(update={"checkpoint_sha256": own_sha256})

    def images(self, checkpoint_sha256: str | None) -> RowImages:
        """The stored images of a scored row."""
        return scores.row_images(self.evaluator, self.model_sha256(checkpoint_sha256))


def open_session(context: StageContext) -> Session:
    """The session of this process for the context's settings and photos."""
    view = context.settings
    load.configure_torch(view.compute)
    photos = context.places.stage_dir("validate")
    manifest = Manifest.read(photos)
    paths = tuple(photos / image.file for image in manifest.images)
    digest = images_digest(manifest)  # same names, other photos: another session
    return _session(context.places, view.model_dump_json(by_alias=True), paths, digest)


@functools.lru_cache(maxsize=1)  # one resident pipeline per process: a GPU may not hold two
def _session(
    places: Places, view_json: str, photos: tuple[Path, ...], _photos_sha256: str
) -> Session:
    view = SubjectView.model_validate_json(view_json)
    device = load.pick_device(view.compute)
    identity = load.resolve_base_model(view.base_model, places.root, hash_cache=places.hash_cache)
    return Session(
        evaluator=make_evaluator(
            view, places.root, photos=photos, store=places.store / "evaluate", device=device
        ),
        identity=identity,
        device=device,
        num_threads=view.compute.num_threads,
        pipeline=functools.cache(
            lambda: load.load_pipeline(view.base_model, places.root, device=device)
        ),
    )


def make_evaluator(
    view: SubjectView, root: Path, *, photos: Sequence[Path], store: Path, device: torch.device
) -> Evaluator:
    """What all rows of a subject are scored with; its images and scores are kept in `store`."""
    clip = extractors.load_clip(view.evaluate.clip, root=root, device=device)
    dino = extractors.load_dino(view.evaluate.dino, root=root, device=device)
    plan = suites.make_plan(
        view.evaluate,
        suite=suites.load_suite(view.subject.prompts or view.evaluate.suite, root=root),
        subject=view.subject,
        sampler=load.sampler_name(view.base_model, root),
        resolution=view.data.resolution,
    )
    return Evaluator(
        plan=plan,
        clip=clip,
        dino=dino,
        references=scores.make_references(photos, clip=clip, dino=dino),
        store=ScoreStore(store),
        bootstrap=scores.Bootstrap(
            samples=view.evaluate.bootstrap_samples, seed=view.evaluate.seed
        ),
    )


def _training_run(context: StageContext) -> TrainingRun:
    return TrainingRun.read(context.places.stage_dir("train"))


def _checkpoint(context: StageContext, name: str) -> Checkpoint:
    return next(c for c in _training_run(context).checkpoints if c.name == name)


def _curves(rows: Sequence[CheckpointScore]) -> str:
    """Scores over steps, for `dvc plots`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *SCORES])
    for row in rows:
        if row.step is not None:
            values = [getattr(row, name) for name in SCORES]
            writer.writerow([row.step, *(f"{v.mean:.6f}" if v else "" for v in values)])
    return text.getvalue()


def _write_pictures(session: Session, evaluation: Evaluation, out: Path) -> None:
    """Copy every row's samples, and draw the grid prompts x rows."""
    run_rows = [row for row in evaluation.rows if row.name != REAL]
    columns: dict[str, list[Path]] = {}
    for row in run_rows:
        paths = session.images(row.checkpoint_sha256)
        folder = row_pictures(out, row.name)
        folder.mkdir(parents=True)
        for index, path in enumerate((*paths.suite, *paths.class_prompt)):
            shutil.copyfile(path, folder / picture_name(index))
        columns[row.name] = list(paths.suite)
    grid.write_grid(out / "grid.png", plan_prompts=session.evaluator.plan.prompts, columns=columns)
