"""The evaluate stage: a row of scores for the base model, every checkpoint and the real photos.

The flow maps `score_row` over the rows; the stage then loads them from the score store and
publishes them.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import io
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from PIL import Image

from dreambooth_core import files
from dreambooth_core.blocks import once
from dreambooth_core.config import SubjectView
from dreambooth_core.evaluation import extractors, scores, selection, suites
from dreambooth_core.evaluation.scores import Evaluator, ScoredModel
from dreambooth_core.evaluation.store import RowImages, ScoreStore
from dreambooth_core.evaluation.suites import EvaluationPlan, SeedRole
from dreambooth_core.models import load, prompts, sampling, weights
from dreambooth_core.models.families import Pipeline
from dreambooth_core.pipeline import retention
from dreambooth_core.pipeline.common import (
    StageContext,
    base_identity,
    picture_name,
    publishing,
    row_pictures,
    table_of,
)
from dreambooth_core.ports import StopSignal, never_stop
from dreambooth_core.records import (
    REAL,
    SCORES,
    STEP_0,
    Checkpoint,
    CheckpointScore,
    Evaluation,
    Manifest,
    TrainingRun,
)
from dreambooth_core.report import grid

Prepare = Callable[[Sequence[str], int], None]
"""(names, rounds) -> None. Scores rows into the store, for example in parallel."""


def race(context: StageContext, prepare: Prepare | None = None) -> list[CheckpointScore]:
    """Score `step 0`, every checkpoint in order of steps, and `real`.

    The base model gets all rounds of images, every checkpoint the first; then rounds go to the
    checkpoints that can still be selected. `prepare` may score the rows of a round beforehand.
    Raises Stopped between sampling blocks.
    """
    plan = open_resident(context).evaluators["evaluate"].plan

    def score(names: Sequence[str], rounds: int) -> list[CheckpointScore]:
        if prepare is not None:
            prepare(names, rounds)
        return [score_row(_naming(context, name), name, rounds=rounds) for name in names]

    (base,) = score([STEP_0], plan.rounds)
    real = score_row(context, REAL)
    limits = limits_from(context, base, real)
    checkpoints = _training_run(context).checkpoints
    if not context.settings.evaluate.racing:
        return [base, *score([checkpoint.name for checkpoint in checkpoints], plan.rounds), real]
    rows: dict[str, CheckpointScore] = {}
    names = [checkpoint.name for checkpoint in checkpoints]
    for rounds in range(1, plan.rounds + 1):
        scored = score(names, rounds)
        rows |= {row.name: row for row in scored}
        names = [row.name for row in selection.next_round(scored, limits)]
        if not names:
            break
    return [base, *rows.values(), real]


def limits_from(
    context: StageContext, base: CheckpointScore, real: CheckpointScore
) -> selection.Limits:
    """The limits of a qualified checkpoint, from the rows of the base model and the photos."""
    assert base.text_range is not None  # noqa: S101 - step 0 always has prompts
    return selection.limits_of([base, real], context.settings.select, text_range=base.text_range)


def score_row(
    context: StageContext, name: str, *, rounds: int | None = None, role: SeedRole = "evaluate"
) -> CheckpointScore:
    """Score the first rounds of a row (by default all), or load them from the store.

    Raises Stopped between sampling blocks.
    """
    if name == REAL:
        return scores.score_real(open_resident(context).evaluators[role])
    checkpoint = None if name == STEP_0 else _checkpoint(context, name)

    def weights_dir() -> Path:
        return retention.weights_dir(context.places, _training_run(context), name)

    return score_checkpoint(context, checkpoint, find=weights_dir, rounds=rounds, role=role)


def score_checkpoint(
    context: StageContext,
    checkpoint: Checkpoint | None,
    *,
    find: Callable[[], Path],
    rounds: int | None = None,
    role: SeedRole = "evaluate",
) -> CheckpointScore:
    """Score a checkpoint, or the base model for None; otherwise like `score_row`.

    `find` returns the folder of the weights, for images that the store lacks.
    """
    resident = open_resident(context)
    model = resident.model(
        checkpoint.name if checkpoint else STEP_0,
        step=checkpoint.step if checkpoint else 0,
        checkpoint_sha256=checkpoint.sha256 if checkpoint else None,
    )
    return resident.score(
        context,
        model,
        rounds=rounds,
        role=role,
        borrow=lambda: _applied(resident, find, checkpoint),
    )


def _applied(
    resident: ResidentEvaluator, find: Callable[[], Path], checkpoint: Checkpoint | None
) -> AbstractContextManager[Pipeline]:
    folder = find() if checkpoint else Path()
    return weights.applied(resident.pipeline, folder, checkpoint)


def _naming(context: StageContext, row: str) -> StageContext:
    """The context of one row among several: its lines of progress name the row."""

    def show(done: int, total: int, text: str = "") -> None:
        context.progress(done, total, f"{row} {text}".rstrip())

    return dataclasses.replace(context, progress=show)


def run(context: StageContext) -> Evaluation:
    """Score the rows, then publish samples, scores, curves and the grid."""
    rows = race(context)
    resident = open_resident(context)
    text_range = next(row.text_range for row in rows if row.name == STEP_0)
    assert text_range is not None  # noqa: S101 - step 0 always has prompts
    evaluation = Evaluation(
        harness=resident.evaluators["evaluate"].harness, text_range=text_range, rows=tuple(rows)
    )
    with publishing(context.places, "evaluate") as out:
        _write_samples(resident, evaluation, out)
        table_of(evaluation).write(out, "scores.json")
        files.write_text(out / "curves.csv", _curves(rows))
        evaluation.write(out)
    return evaluation


def sample(
    pipe: Pipeline,
    plan: EvaluationPlan,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    should_stop: StopSignal = never_stop,
) -> list[Image.Image]:
    """Sample evaluation images with the plan's settings."""
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


class ResidentEvaluator:
    """Scorers, photos and the base model's pipeline, loaded once for all rows of a process."""

    def __init__(self, context: StageContext) -> None:
        self._settings, self._places = context.settings, context.places
        self._photos = _photos(context)
        self._identity = base_identity(context)
        self.device = load.pick_device(context.settings.compute)
        folder = context.places.stage_dir("validate")
        evaluator = make_evaluator(
            context.settings,
            context.places.root,
            photos=[folder / image.file for image in self._photos.images],
            store=context.places.store / "evaluate",
            device=self.device,
        )
        confirm = make_plan(context.settings, context.places.root, role="confirm")
        self.evaluators: dict[SeedRole, Evaluator] = {
            "evaluate": evaluator,
            "confirm": dataclasses.replace(evaluator, plan=confirm),
        }

    def is_for(self, context: StageContext) -> bool:
        """Whether settings, folders and photos are those of the context."""
        own = self._settings, self._places, self._photos
        return own == (context.settings, context.places, _photos(context))

    @functools.cached_property
    def pipeline(self) -> Pipeline:
        """The base model's pipeline; the first image that the store lacks loads it."""
        return load.load_pipeline(self._settings.base_model, self._places.root, device=self.device)

    def model(
        self, name: str, *, step: int, checkpoint_sha256: str | None, base_sha256: str | None = None
    ) -> ScoredModel:
        """A model to score; `base_sha256` identifies its base if the settings' is another."""
        sha256 = self._model_sha256(checkpoint_sha256, base_sha256)
        return ScoredModel(name=name, step=step, sha256=sha256, checkpoint_sha256=checkpoint_sha256)

    def score(
        self,
        context: StageContext,
        model: ScoredModel,
        *,
        borrow: Callable[[], AbstractContextManager[Pipeline]],
        rounds: int | None = None,
        role: SeedRole = "evaluate",
    ) -> CheckpointScore:
        """The row of a model over the first rounds, by default all.

        `borrow` lends the model's pipeline for images that the store lacks.
        """
        evaluator = self.evaluators[role]

        with contextlib.ExitStack() as stack:
            borrowed = once(lambda: stack.enter_context(borrow()))

            def sample_block(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
                pipe, plan = borrowed(), evaluator.plan
                return sample(pipe, plan, prompts, seeds, should_stop=context.should_stop)

            return scores.score_checkpoint(
                evaluator,
                model=model,
                rounds=rounds or evaluator.plan.rounds,
                sampler=sample_block,
                lanes=context.sampling_lanes(self.device.type),
                progress=context.progress,
                should_stop=context.should_stop,
            )

    def images(
        self, row: CheckpointScore, *, role: SeedRole = "evaluate", base_sha256: str | None = None
    ) -> RowImages:
        """The stored images of a scored row."""
        evaluator = self.evaluators[role]
        rounds = row.n // len(evaluator.plan.prompts)
        sha256 = self._model_sha256(row.checkpoint_sha256, base_sha256)
        return scores.row_images(evaluator, sha256, rounds=rounds)

    def _model_sha256(self, checkpoint_sha256: str | None, base_sha256: str | None = None) -> str:
        """Hash everything in the model and the machine that images depend on."""
        base, threads = base_sha256 or self._identity.sha256, self._settings.compute.num_threads
        return files.digest_of([base, checkpoint_sha256, self.device.type, threads])


_resident: list[ResidentEvaluator] = []
"""At most one: two pipelines may not fit on a GPU."""


def open_resident(context: StageContext) -> ResidentEvaluator:
    """The evaluator of this process for the context's settings, folders and photos."""
    load.configure_torch(context.settings.compute)
    if not (_resident and _resident[0].is_for(context)):
        _resident.clear()
        _resident.append(ResidentEvaluator(context))
    return _resident[0]


def _photos(context: StageContext) -> Manifest:
    return Manifest.read(context.places.stage_dir("validate"))


def make_evaluator(
    view: SubjectView, root: Path, *, photos: Sequence[Path], store: Path, device: torch.device
) -> Evaluator:
    """Load the scorers and the photos' features; images and scores go to `store`."""
    clip = extractors.load_clip(view.evaluate.clip, root=root, device=device)
    dino = extractors.load_dino(view.evaluate.dino, root=root, device=device)
    plan = make_plan(view, root, role="evaluate")
    positions = clip.model.config.text_config.max_position_embeddings
    named = {f"the text {text!r}, for CLIP-T,": text for text in plan.scored_texts}
    prompts.check_prompts(named, [prompts.limited(clip.tokenizer, positions)])
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


def make_plan(view: SubjectView, root: Path, *, role: SeedRole) -> EvaluationPlan:
    """The images of a row, for a subject's settings."""
    return suites.make_plan(
        view.evaluate,
        suite=suites.load_suite(view.subject.prompts or view.evaluate.suite, root=root),
        subject=view.subject,
        sampler=load.sampler_name(view.base_model, root),
        resolution=view.data.resolution,
        role=role,
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


def _write_samples(resident: ResidentEvaluator, evaluation: Evaluation, out: Path) -> None:
    """Copy every row's samples, and draw the grid of prompts and rows."""
    run_rows = [row for row in evaluation.rows if row.name != REAL]
    columns: dict[str, list[Path]] = {}
    for row in run_rows:
        paths = resident.images(row)
        folder = row_pictures(out, row.name)
        folder.mkdir(parents=True)
        for index, path in enumerate((*paths.suite, *paths.class_prompt)):
            shutil.copyfile(path, folder / picture_name(index))
        columns[row.name] = list(paths.suite)
    grid.write_grid(
        out / "grid.png", plan_prompts=resident.evaluators["evaluate"].plan.prompts, columns=columns
    )
