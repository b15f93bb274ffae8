"""The study: Optuna's record of all trials, shared by every worker that opens it."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from dreambooth_core import locks
from dreambooth_core.errors import SettingsError, StageError
from dreambooth_core.masking import scrubbed, without_secrets
from dreambooth_core.numerics.seeding import derive_seed
from dreambooth_core.search.space import Candidates, Choices, Space
from dreambooth_core.waiting import wait_until

HEARTBEAT_S = 5
GRACE_S = 30
"""A trial whose worker has been silent for this long is repeated."""

_STARTUP_TRIALS = 5
"""Random trials before the sampler learns from them, and before the pruner compares."""
_LOCK_TIMEOUT_S = 120.0
_CHANGES, _ERROR = "changes", "error"
"""Attributes of a trial: of one that has begun, and of one that failed on its settings."""
_UNCHANGED, _INSIDE, _OUTSIDE = "unchanged", "inside the space", "outside the space"
"""Attribute of the trial of the unchanged settings: whether the sampler may learn from it."""
_DIGITS = 3

Pruner = Literal["median", "none"]
State = Literal["complete", "pruned", "failed", "running", "waiting"]

_STATES: Mapping[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class Trial:
    """One trial as the study records it."""

    number: int
    state: State
    is_unchanged: bool
    merit: float | None
    notes: Mapping[str, Any]


class Attempt:
    """A running trial, for the code that does its work."""

    def __init__(self, trial: optuna.Trial, space: Space) -> None:
        self._trial = trial
        self.number = trial.number
        self.is_unchanged = _UNCHANGED in trial.user_attrs
        self.is_pruned = False
        self.changes: Mapping[str, Any] = self._suggested(space)

    def _suggested(self, space: Space) -> dict[str, Any]:
        """The changed settings of this trial; none of the unchanged settings."""
        if self._trial.user_attrs.get(_UNCHANGED) == _OUTSIDE:
            return {}
        found = {key: _suggest(self._trial, key, space[key]) for key in space}
        return {} if self.is_unchanged else found

    def note(self, **values: Any) -> None:
        """Record facts about the trial."""
        for name, value in values.items():
            self._trial.set_user_attr(name, value)

    def report(self, merit: float, *, step: int) -> None:
        """Record a checkpoint's merit; ends the trial if it cannot win. Raises TrialPruned.

        The unchanged settings always train to their end: every trial is compared with them.
        """
        self._trial.report(merit, step)
        if not self.is_unchanged and self._trial.should_prune():
            self.is_pruned = True
            raise optuna.TrialPruned(f"at step {step}")


class Study:
    """A study in a database."""

    def __init__(
        self,
        uri: str,
        name: str,
        *,
        space: Space,
        unchanged: Mapping[str, Any],
        pruner: Pruner,
        lock: Path,
    ) -> None:
        self.name, self._uri, self._space, self._unchanged = name, uri, space, unchanged
        self._pruner: Pruner = pruner
        self._lock = lock
        self._retry = RetryHeartbeatStaleTrialCallback()

    @classmethod
    def open(
        cls,
        uri: str,
        name: str,
        *,
        space: Space,
        unchanged: Mapping[str, Any],
        pruner: Pruner,
        lock: Path,
    ) -> Study:
        """Open or create a study, with the unchanged settings as its first trial.

        Raises SettingsError if the database cannot be used.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with _without_warnings(), _database_errors(uri):
            study = cls(uri, name, space=space, unchanged=unchanged, pruner=pruner, lock=lock)
            with study._alone():
                study._open()
        return study

    def _alone(self) -> contextlib.AbstractContextManager[int]:
        """Keep the other workers of this workspace away for a moment."""
        return locks.hold(self._lock, timeout_s=_LOCK_TIMEOUT_S)

    def _open(self) -> None:
        is_file = make_url(self._uri).get_backend_name() == "sqlite"
        self._storage = RDBStorage(
            self._uri,
            engine_kwargs={"connect_args": {"timeout": 60}} if is_file else None,
            heartbeat_interval=HEARTBEAT_S,
            grace_period=GRACE_S,
            heartbeat_stale_trial_callback=self._retry,
        )
        self._study = optuna.create_study(
            study_name=self.name,
            storage=self._storage,
            direction="maximize",
            load_if_exists=True,
            pruner=_make_pruner(self._pruner),
        )
        if not any(trial.is_unchanged for trial in self.trials()):
            fits = all(self._unchanged[key] in self._space[key] for key in self._space)
            params = dict(self._unchanged) if fits else {}
            place = _INSIDE if fits else _OUTSIDE
            self._study.enqueue_trial(params, user_attrs={_UNCHANGED: place})

    def trials(self) -> list[Trial]:
        """All trials, without those that were repeated."""
        return [_trial_of(trial) for trial in self._unrepeated()]

    def _unrepeated(self) -> list[FrozenTrial]:
        found = self._study.get_trials(deepcopy=False)
        with _without_warnings():
            history = map(RetryHeartbeatStaleTrialCallback.retry_history, found)
            repeated = {number for numbers in history for number in numbers}
        return [trial for trial in found if trial.number not in repeated]

    def has_next(self, total: int) -> bool:
        """Whether a trial is to be run, of `total` with all workers.

        If other workers run the last ones, wait until a dead one would be noticed.
        """
        if self._is_due(total):
            return True
        wait_until(
            lambda: self._is_due(total) or not self._is_running(),
            timeout_s=GRACE_S + 2 * HEARTBEAT_S,
            every_s=1.0,
        )
        return self._is_due(total)

    def _is_due(self, total: int) -> bool:
        with _without_warnings():
            optuna.storages.fail_stale_trials(self._study)
        if any(map(_is_lost, self._unrepeated())):
            self._repeat_lost()
        trials = self.trials()
        return any(trial.state == "waiting" for trial in trials) or len(trials) < total

    def _repeat_lost(self) -> None:
        """Repeat trials whose worker died at a moment that Optuna does not notice."""
        with self._alone():
            for trial in filter(_is_lost, self._unrepeated()):
                if trial.state == TrialState.RUNNING:
                    self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                self._repeat(trial.number)

    def _is_running(self) -> bool:
        return any(trial.state == "running" for trial in self.trials())

    def run_next(self, objective: Callable[[Attempt], float], *, seed: int) -> Trial:
        """Run the next trial and return it. Repeat it on the next call if this raises.

        A trial that fails on its settings counts as one: with others the next may succeed. Raises
        what a trial of the unchanged settings raises, and every other error.
        """
        number: int | None = None

        def run(trial: optuna.Trial) -> float:
            nonlocal number
            number = trial.number
            with _without_warnings():
                # So that a trial with changes has a heartbeat, whenever its worker dies.
                self._storage.record_heartbeat(trial._trial_id)
                self._study.sampler = self._sampler(seed, trial.number)
                attempt = Attempt(trial, self._space)
            attempt.note(**{_CHANGES: dict(attempt.changes)})
            try:
                return objective(attempt)
            except (StageError, SettingsError) as error:
                if attempt.is_unchanged:
                    raise _Fatal(error) from error
                attempt.note(**{_ERROR: str(error)})
                raise

        try:
            self._study.optimize(run, n_trials=1, catch=(StageError, SettingsError))
        except BaseException as error:
            if number is not None and _is_unexplained(self._frozen(number)):
                self._repeat(number)
            raise (error.error if isinstance(error, _Fatal) else error) from None
        assert number is not None  # noqa: S101
        return _trial_of(self._frozen(number))

    def _sampler(self, seed: int, number: int) -> optuna.samplers.TPESampler:
        """A sampler for one trial: different at the same moment, equal in a repeated trial."""
        origins = {trial.number: _origin(trial) for trial in self._study.get_trials(deepcopy=False)}
        place = sum(origin < origins[number] for origin in set(origins.values()))
        return optuna.samplers.TPESampler(
            seed=derive_seed(seed, "sweep", place) % 2**32,
            n_startup_trials=_STARTUP_TRIALS,
            multivariate=False,
        )

    def _repeat(self, number: int) -> None:
        self._retry(self._study, self._frozen(number))

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]


class _Fatal(Exception):
    """The unchanged settings fail, so that no other trial has anything to be compared with."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _is_unexplained(trial: FrozenTrial) -> bool:
    """Whether a trial failed for another reason than its settings."""
    return trial.state == TrialState.FAIL and _ERROR not in trial.user_attrs


def _is_lost(trial: FrozenTrial) -> bool:
    """Whether the worker died before the first heartbeat, or before it had a trial repeated."""
    if trial.state == TrialState.RUNNING and _CHANGES not in trial.user_attrs:
        since = trial.datetime_start
    elif _is_unexplained(trial):
        since = trial.datetime_complete
    else:
        return False
    return since is not None and time.time() - since.timestamp() > GRACE_S


def _origin(trial: FrozenTrial) -> int:
    """The number of the trial, or of the first one that it repeats."""
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if first is None else first


def _trial_of(trial: FrozenTrial) -> Trial:
    notes = {name: value for name, value in trial.user_attrs.items() if name != _UNCHANGED}
    return Trial(
        number=trial.number,
        # One that is to be repeated has not ended.
        state="running" if _is_unexplained(trial) else _STATES[trial.state],
        is_unchanged=_UNCHANGED in trial.user_attrs,
        merit=trial.value if trial.state == TrialState.COMPLETE else None,
        notes=notes,
    )


def _suggest(trial: optuna.Trial, key: str, candidates: Candidates) -> Any:
    if isinstance(candidates, Choices):
        return trial.suggest_categorical(key, candidates.values)
    if candidates.step is not None:
        low, high = int(candidates.low), int(candidates.high)
        return trial.suggest_int(key, low, high, step=candidates.step)
    log = candidates.by_magnitude
    value = trial.suggest_float(key, candidates.low, candidates.high, log=log)
    return float(f"{value:.{_DIGITS}g}")  # to be read and copied


def _make_pruner(name: Pruner) -> optuna.pruners.BasePruner:
    """The pruner: `median` ends a trial that is worse than half of the others at the same step."""
    if name == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS, n_min_trials=3)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence Optuna's notes that heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _database_errors(uri: str) -> Iterator[None]:
    """Turn the errors of a database that cannot be opened into a SettingsError."""
    shown, hint = without_secrets(uri), "leave --storage out to use a file in .state"
    try:
        yield
    except (ImportError, NoSuchModuleError) as error:
        cause = error.__cause__ or error  # Optuna's own ImportError names no package
        missing = getattr(cause, "name", None) or str(cause)
        raise SettingsError(
            f"the storage {shown} needs a driver that is not installed",
            got=f"no package {missing}",
            hint='pip install "dreambooth-pipeline[postgres]"'
            if "psycopg2" in missing
            else f"install the package that provides {missing}",
        ) from None
    except ArgumentError:
        raise SettingsError(
            "--storage is not the address of a database",
            got=shown,
            allowed="postgresql://USER:PASSWORD@HOST/NAME, sqlite:///PATH",
            hint=hint,
        ) from None
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        text = scrubbed(str(error), uri).splitlines()[0][:300]
        raise SettingsError(f"the storage {shown} cannot be opened", got=text, hint=hint) from None
