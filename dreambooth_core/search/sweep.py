"""A search for better settings of one subject: trials, the winner, its confirmation.

Every trial runs the stages up to the selection in a folder of its own, with the store of the
workspace: class images, latents and scores that are equal are made once. The merit of a trial is
that of its selected checkpoint by the rule of the selection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dreambooth_core import files, locks
from dreambooth_core.config import SubjectView, settings_of
from dreambooth_core.config.changes import changed_view
from dreambooth_core.errors import StageError
from dreambooth_core.evaluation import comparison, selection
from dreambooth_core.evaluation.comparison import Contender, Noise
from dreambooth_core.evaluation.selection import Limits
from dreambooth_core.pipeline import StageContext, run_stage, train
from dreambooth_core.pipeline.common import confirmation_of, run_name
from dreambooth_core.pipeline.registered import tracking_of
from dreambooth_core.ports import Progress, StopSignal
from dreambooth_core.records import CheckpointScore, Manifest, Selection, TrainingRun, Verdict
from dreambooth_core.registry import sweeps
from dreambooth_core.registry.runs import RunRef
from dreambooth_core.registry.store_uri import sqlite_uri
from dreambooth_core.search import space as spaces
from dreambooth_core.search.study import Attempt, Pruner, Study, Trial
from dreambooth_core.workspace import STAGES, Places, Workspace

Progresses = Callable[[str], Progress]
"""The Progress of a stage, by its name."""

_PREPARE = ("validate", "class-images", "cache")
_JUDGE = ("evaluate", "select")
_LARGE = ("class-images", "cache", "train", "evaluate/images")
"""Outputs of a trial that the store can give again."""
_SCORES = ("dino", "clip_t", "pres")
_TRAINING_TIMEOUT_S = 96 * 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """What to search: how many trials, which candidates, whether to prune, in which database."""

    trials: int
    params: tuple[str, ...] = ()
    pruner: Pruner = "median"
    storage: str | None = None


class Sweep:
    """The search of one subject, for one worker. The caller holds the subject's lock, shared."""

    def __init__(
        self,
        workspace: Workspace,
        view: SubjectView,
        order: Order,
        *,
        env: Mapping[str, str],
        should_stop: StopSignal,
        progress: Progresses,
    ) -> None:
        self.subject, self.order, self.workspace = view.name, order, workspace
        self.view, self.env, self._should_stop = view, env, should_stop
        self._progress = progress
        self._folder = workspace.state / "sweep" / view.name
        self.space = spaces.make_space(workspace, view, order.params)
        self._study = self._open_study()

    def _open_study(self) -> Study:
        """Open the study of these settings, these photos and this space."""
        photos = run_stage(self.context, "validate")
        assert isinstance(photos, Manifest)  # noqa: S101
        before_register = STAGES[: STAGES.index("register")]
        settings = {stage: settings_of(self.view, stage) for stage in before_register}
        steps = self.view.train.max_train_steps, self.view.train.checkpointing_steps
        space = spaces.to_json(self.space)
        own = files.digest_of([settings, steps, space, photos.fingerprint])
        self._folder.mkdir(parents=True, exist_ok=True)
        return Study.open(
            self.order.storage or sqlite_uri(self._folder / "study.db"),
            f"sweep-{self.subject}-{own[:8]}",
            space=self.space,
            unchanged={key: spaces.value_of(self.view, key) for key in self.space},
            pruner=self.order.pruner,
            lock=self.workspace.state / "locks" / f"sweep-{self.subject}.lock",
        )

    @property
    def name(self) -> str:
        """The name of the study."""
        return self._study.name

    @functools.cached_property
    def _parent(self) -> RunRef:
        """The MLflow run of the search."""
        return sweeps.open_sweep(
            tracking_of(self.context),
            experiment=self.view.model_name,
            study=self.name,
            params={"space": spaces.to_json(self.space), "pruner": self.order.pruner},
        )

    def has_next(self) -> bool:
        """Whether a trial is to be run."""
        return self._study.has_next(self.order.trials)

    @property
    def context(self) -> StageContext:
        """The context of the photos, which all trials share."""
        return self._context("photos", self.view)

    @property
    def num_left(self) -> int:
        """The number of trials that no worker has begun."""
        trials = self.trials()
        waiting = sum(trial.state == "waiting" for trial in trials)
        return max(waiting, self.order.trials - len(trials) + waiting)

    def trials(self) -> list[Trial]:
        """All trials of the study."""
        return self._study.trials()

    def run_next(self) -> Trial:
        """Run the next trial. Raises Stopped, and what a trial of the unchanged settings raises."""
        trial = self._study.run_next(self._try, seed=self.view.train.seed)
        self._drop_trainings()
        return trial

    def _try(self, attempt: Attempt) -> float:
        """Do the work of a trial and return the merit of its checkpoint."""
        name = _folder_of(attempt.number)
        view = changed_view(self.workspace, self.subject, attempt.changes, source="trial")

        def report(row: CheckpointScore, limits: Limits) -> None:
            attempt.report(selection.merit_so_far(row, limits), step=row.step or 0)

        context = self._context(name, view, on_score=report)
        with self._dropping_outputs(context), self._in_mlflow(attempt, context) as numbers:
            self._run(context, "evaluate", attempt.number)
            selected = self._run(context, "select", attempt.number)
            assert isinstance(selected, Selection)  # noqa: S101
            best = selected.ranked[0]
            attempt.note(**best.model_dump(include={"name", "step", "qualified", *_SCORES}))
            numbers |= {f"trial/{score}": getattr(best, score) for score in ("step", *_SCORES)}
            return selection.merit(best)

    @contextlib.contextmanager
    def _in_mlflow(self, attempt: Attempt, context: StageContext) -> Iterator[dict[str, float]]:
        """Train, nested in the run of the search; log the numbers that the block adds."""
        for stage in _PREPARE:
            self._run(context, stage, attempt.number)
        fingerprint = train.make_job(context).fingerprint
        attempt.note(training=fingerprint)
        tracking, numbers = tracking_of(context), dict[str, float]()
        run = sweeps.nest_trial(
            tracking,
            self._parent,
            experiment=self.view.model_name,
            fingerprint=fingerprint,
            name=run_name(context.settings.train.method, fingerprint),
            tags={sweeps.SWEEP: self.name, sweeps.TRIAL: str(attempt.number)},
            params=attempt.changes,
        )
        state = "stopped"
        try:
            self._train(context, fingerprint, attempt.number)
            yield numbers
            state = "complete"
        except StageError:
            state = "failed"
            raise
        finally:
            ended = "pruned" if attempt.is_pruned else state
            sweeps.end_trial(tracking, run, state=ended, numbers=numbers)

    def _train(self, context: StageContext, fingerprint: str, number: int) -> None:
        """Train under a lock: trials that differ in their length only share a training."""
        with locks.hold(
            self._training_lock(fingerprint), timeout_s=_TRAINING_TIMEOUT_S, inheritable=True
        ) as fd:
            self._run(dataclasses.replace(context, lock_fd=fd), "train", number)

    def _training_lock(self, fingerprint: str) -> Path:
        return self.workspace.state / "locks" / f"train-{fingerprint[:16]}.lock"

    def _run(self, context: StageContext, stage: str, number: int) -> object:
        progress = self._progress(f"trial {number} {stage}")
        return run_stage(dataclasses.replace(context, progress=progress), stage)

    def _context(self, name: str, view: SubjectView, **more: Any) -> StageContext:
        """The context of a folder of the search: its own outputs, the store of the workspace."""
        root, state = self.workspace.root, self.workspace.state
        places = Places(root, self._folder / self._name_of_folder(name), state, self.subject)
        return StageContext(view, places, should_stop=self._should_stop, env=self.env, **more)

    def _name_of_folder(self, name: str) -> str:
        return name if name == "photos" else f"{self.name}/{name}"

    @contextlib.contextmanager
    def _dropping_outputs(self, context: StageContext) -> Iterator[None]:
        """Remove what the store can give again, however the block ends."""
        try:
            yield
        finally:
            for name in _LARGE:
                shutil.rmtree(context.places.stage_dir(name), ignore_errors=True)

    def _drop_trainings(self) -> None:
        """Remove trainings from the store that can no longer win; their trials are recorded."""
        trials = self.trials()
        best, unchanged = best_of(trials), _unchanged_of(trials)
        published = TrainingRun.read_if_there(self.workspace.stage_dir(self.subject, "train"))
        kept = {trial.notes.get("training") for trial in (best, unchanged) if trial}
        kept |= {trial.notes.get("training") for trial in trials if trial.state == "running"}
        kept |= {published.fingerprint} if published else set()
        ended = {str(trial.notes["training"]) for trial in trials if "training" in trial.notes}
        for fingerprint in ended - kept:
            folder = self.workspace.state / "train" / fingerprint
            if folder.is_dir():
                with locks.hold(self._training_lock(fingerprint), timeout_s=_TRAINING_TIMEOUT_S):
                    shutil.rmtree(folder)

    # ---- The winner -----------------------------------------------------------------------------

    def decide(self) -> dict[str, Any]:
        """The outcome of the search as plain JSON.

        The trial with the highest merit is one of many noisy numbers. So it replaces the unchanged
        settings only if it beats them on seeds that chose nothing, as a challenger must.
        """
        trials = self.trials()
        outcome: dict[str, Any] = {
            "subject": self.subject,
            "study": self.name,
            "space": spaces.to_json(self.space),
            "trials": [_row_of(trial) for trial in trials],
        }
        running = sum(trial.state in ("running", "waiting") for trial in trials)
        best, unchanged = best_of(trials), _unchanged_of(trials)
        if running or best is None or unchanged is None:
            why = f"{running} trials still run with other workers; the last one to end decides."
            return {**outcome, "running": running, "winner": None, "why": why, "changes": {}}
        winner, why, confirmed = self._confirm(best, unchanged)
        self._log_winner(winner)
        return {
            **outcome,
            "running": 0,
            "winner": winner and winner.number,
            "why": why,
            "changes": dict(winner.notes["changes"]) if winner else {},
            **confirmed,
        }

    def _confirm(self, best: Trial, unchanged: Trial) -> tuple[Trial | None, str, dict[str, Any]]:
        """The winner, the reason, and the scores on fresh seeds."""
        rival = self._contender(unchanged)
        scores = {"unchanged": rival.row.means()}
        if not best.notes["qualified"]:
            return None, "No trial has a checkpoint that qualifies.", {"confirmed": scores}
        if best.number == unchanged.number:
            why = "The unchanged settings have the best checkpoint of all trials."
            return unchanged, why, {"confirmed": scores}
        challenger = self._contender(best)
        measured = confirmation_of(self._context(_folder_of(unchanged.number), self.view))
        verdict = self._compare(challenger, rival, text_range=measured.text_range)
        confirmed = {
            "confirmed": {**scores, "best": challenger.row.means()},
            "difference": {name: gap.to_json() for name, gap in verdict.difference.items()},
            "best": best.number,
        }
        if verdict.promote:
            return best, verdict.why, confirmed
        if not rival.qualified:
            why = f"{challenger.name} has a checkpoint that qualifies, unlike {rival.name}."
            return best, why, confirmed
        return unchanged, verdict.why, confirmed

    def _contender(self, trial: Trial) -> Contender:
        """A trial's checkpoint on fresh seeds; what its stages need comes from the store."""
        view = changed_view(self.workspace, self.subject, trial.notes["changes"], source="trial")
        context = self._context(_folder_of(trial.number), view)
        with self._dropping_outputs(context):
            for stage in _PREPARE:
                self._run(context, stage, trial.number)
            self._train(context, train.make_job(context).fingerprint, trial.number)
            for stage in (*_JUDGE, "confirm"):
                self._run(context, stage, trial.number)
        evaluation = confirmation_of(context)
        return Contender(
            name="the unchanged settings" if trial.is_unchanged else f"trial {trial.number}",
            qualified=bool(trial.notes["qualified"]),
            row=evaluation.rows[0],
            harness=evaluation.harness,
        )

    def _compare(self, challenger: Contender, rival: Contender, *, text_range: float) -> Verdict:
        settings = self.view.evaluate
        noise = Noise(samples=settings.bootstrap_samples, seed=settings.seed, text_range=text_range)
        return comparison.compare(challenger, rival, settings=self.view.select, noise=noise)

    def _log_winner(self, winner: Trial | None) -> None:
        tracking = tracking_of(self.context)
        number = "none" if winner is None else str(winner.number)
        sweeps.end_sweep(tracking, self._parent, winner=number)


def _folder_of(number: int) -> str:
    """The name of a trial's folder."""
    return f"trial-{number:03d}"


def best_of(trials: list[Trial]) -> Trial | None:
    """The finished trial with the highest merit; of equal ones the first."""
    ended = [trial for trial in trials if trial.merit is not None]
    return max(ended, key=lambda trial: (trial.merit, -trial.number)) if ended else None


def _unchanged_of(trials: list[Trial]) -> Trial | None:
    return next((t for t in trials if t.is_unchanged and t.merit is not None), None)


def _row_of(trial: Trial) -> dict[str, Any]:
    """A trial as plain JSON."""
    facts = {name: value for name, value in trial.notes.items() if name != "training"}
    return {
        "number": trial.number,
        "state": trial.state,
        "unchanged": trial.is_unchanged,
        "changes": {},
        **facts,
    }
