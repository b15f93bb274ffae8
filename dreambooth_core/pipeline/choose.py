"""The choice of a checkpoint by hand, in the subject's entry of params.yaml (docs/adr/0020).

It is a setting that the select stage depends on: the next run registers the chosen checkpoint, and
every later run of the same training keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core import config, files, locks
from dreambooth_core.config import WEIGHTS_LETTERS, Choice
from dreambooth_core.errors import SettingsError, StageError
from dreambooth_core.pipeline import decisions, retention
from dreambooth_core.records import (
    Checkpoint,
    CheckpointScore,
    Evaluation,
    RankedCheckpoint,
    Selection,
    TrainingRun,
)
from dreambooth_core.workspace import Workspace

_LOCK_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Options:
    """The scored checkpoints of a subject's last run, and the selected one."""

    training: TrainingRun
    evaluation: Evaluation
    selection: Selection

    @property
    def steps(self) -> list[int]:
        """The steps to choose from."""
        return [row.step for row in self.evaluation.rows if row.step]

    def row(self, step: int) -> CheckpointScore:
        """The scores of the checkpoint at `step`. Raises SettingsError for another step."""
        row = next((row for row in self.evaluation.rows if step and row.step == step), None)
        if row is None:
            raise SettingsError(
                "no checkpoint was scored at this step",
                got=str(step),
                allowed=", ".join(map(str, self.steps)),
            )
        return row

    def checkpoint(self, row: CheckpointScore) -> Checkpoint:
        """The weights of a scored row. Raises StageError if they are another training's."""
        found = next((c for c in self.training.checkpoints if c.name == row.name), None)
        if found is None or found.sha256 != row.checkpoint_sha256:
            raise StageError(
                f"the scores of {row.name} are those of another training",
                hint="run the subject again: it scores the present checkpoints",
            )
        return found


def options(workspace: Workspace, subject: str) -> Options:
    """What there is to choose from. Raises StageError before the first run."""
    config.load_view(workspace, subject)
    places = workspace.places(subject)
    training = TrainingRun.read_if_there(places.stage_dir("train"))
    evaluation = Evaluation.read_if_there(places.stage_dir("evaluate"))
    selection = Selection.read_if_there(places.stage_dir("select"))
    if training is None or evaluation is None or selection is None:
        raise StageError(
            f"{subject} has no scored checkpoints yet", hint=f"dreambooth run {subject}"
        )
    return Options(training, evaluation, selection)


def choose(
    workspace: Workspace, subject: str, step: int, *, why: str, weights: str = ""
) -> RankedCheckpoint:
    """Choose the checkpoint at `step` for the next run of the subject; returns its scores.

    Raises SettingsError for an empty reason or an unknown step, and StageError before the first
    run, if the weights are gone, or if their sha256 does not begin with `weights`.
    """
    try:
        reason = config.check_reason(why)
    except ValueError as error:
        raise SettingsError(str(error), got=repr(why), hint='--why "the handle is right"') from None
    there = options(workspace, subject)
    row = there.row(step)
    checkpoint = there.checkpoint(row)
    if not checkpoint.sha256.startswith(weights):
        raise StageError(
            f"another training has replaced {row.name} meanwhile, so nothing was chosen",
            got=f"weights {checkpoint.sha256[:WEIGHTS_LETTERS]}, not {weights}",
            hint="look at the pictures of the present one first",
        )
    retention.weights_dir(workspace.places(subject), there.training, row.name)
    choice = Choice(
        step=step,
        weights=checkpoint.sha256[:WEIGHTS_LETTERS],
        why=reason,
        who=decisions.account(),
        when=decisions.now(),
    )
    _write(workspace, subject, choice)
    return next(one for one in there.selection.ranked if one.name == row.name)


def choose_by_rule(workspace: Workspace, subject: str) -> Choice:
    """Take back a choice; returns it. Raises SettingsError if there is none."""
    before = config.load_view(workspace, subject).subject.choice
    if before is None:
        raise SettingsError(
            f"no checkpoint of {subject} is chosen by hand, so the rule selects already"
        )
    _write(workspace, subject, None)
    return before


def _write(workspace: Workspace, subject: str, choice: Choice | None) -> None:
    with locks.hold(workspace.workspace_lock, timeout_s=_LOCK_TIMEOUT_S):
        text = config.read_text(workspace.params)
        value = None if choice is None else choice.model_dump(mode="json")
        changed = config.set_value(text, ("subjects", subject, "choice"), value)
        config.check_settings(config.parse_yaml(changed), file=workspace.params.name)
        files.write_bytes(workspace.params, changed.encode())
