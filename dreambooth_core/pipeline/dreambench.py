"""DreamBench: the stages of many subjects under several conditions, scored as in the paper.

    OUT/plan.json                            the subjects, conditions and settings (`BenchPlan`)
    OUT/runs/SUBJECT/CONDITION/STAGE/        outputs of the stages
    OUT/runs/SUBJECT/CONDITION/scores/       the scores of the finished case (`CaseScores`)
    OUT/store/                               everything that survives a kill

The first condition trains and selects as `dreambooth run` does. The others train to the step that
it has selected for the same subject, so all are scored after equally many steps, on images of the
same prompts and seeds, none of which has selected a checkpoint.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreambooth_core.config import Settings, SubjectView, with_strategy
from dreambooth_core.data.subject_folders import SubjectFolder
from dreambooth_core.errors import SettingsError, StageError
from dreambooth_core.evaluation.dreambench import CaseScores
from dreambooth_core.evaluation.suites import load_suite
from dreambooth_core.numerics.seeding import derive_seed
from dreambooth_core.pipeline import run_stage
from dreambooth_core.pipeline.common import StageContext
from dreambooth_core.ports import Progress, StopSignal, never_stop, no_progress
from dreambooth_core.records import REAL, STEP_0, Evaluation, Record, Selection, TrainingRun
from dreambooth_core.training.checkpoints.published import checkpoint_name
from dreambooth_core.workspace import Places, Workspace

SHIPPED, NO_PRIOR, NO_NOUN, WRONG_NOUN = "shipped", "no-prior", "no-noun", "wrong-noun"
ABLATIONS = (NO_PRIOR, NO_NOUN, WRONG_NOUN)
"""The paper's ablations: without prior preservation, without a class noun, with a wrong one."""

IMAGES = 100
"""Images per subject and checkpoint: 25 prompts with 4 seeds in the paper."""

IDENTIFIER = "sks"
LIVE_CLASSES = ("cat", "dog")
"""The classes that have the prompts of live subjects in the paper."""
_PAPER_SUITES = ("objects", "live")
_PLAN = "plan.json"
_UNCOMPARED = ("runtime", "registry")


class BenchSubject(Record):
    """A subject: its photos, its words, the prompts of its images, and its conditions."""

    name: str
    folder: str
    photos: dict[str, str]
    class_noun: str
    wrong_noun: str
    suite: str
    images_per_prompt: int
    conditions: tuple[str, ...]


class BenchPlan(Record):
    """Everything that the scores depend on: subjects with the sha256 of their photos, settings."""

    subjects: tuple[BenchSubject, ...]
    settings: dict[str, Any]

    def subject(self, name: str) -> BenchSubject:
        """The subject called `name`."""
        return next(subject for subject in self.subjects if subject.name == name)

    def cases(self) -> list[tuple[str, str]]:
        """(subject, condition) of every case: the first condition of all subjects comes first."""
        return [(s.name, SHIPPED) for s in self.subjects] + [
            (s.name, condition) for s in self.subjects for condition in s.conditions[1:]
        ]


def make_plan(
    settings: Settings,
    folders: Sequence[SubjectFolder],
    *,
    root: Path,
    photos: dict[str, dict[str, str]],
    num_ablated: int = 0,
) -> BenchPlan:
    """The plan for subjects whose photos have these sha256; the first `num_ablated` are ablated.

    Raises SettingsError if there is no other class for a wrong noun.
    """
    nouns = sorted({folder.class_noun for folder in folders})
    if num_ablated and len(nouns) < 2:
        raise SettingsError(
            "the ablation of the class noun needs subjects of two classes", got=", ".join(nouns)
        )
    subjects: list[BenchSubject] = []
    for index, folder in enumerate(folders):
        others = [noun for noun in nouns if noun != folder.class_noun]
        wrong = others[derive_seed(0, "wrong-noun", index) % len(others)] if others else ""
        suite = _suite_of(settings, folder)
        num_prompts = len(load_suite(suite, root=root).templates)
        subjects.append(
            BenchSubject(
                name=folder.name,
                folder=str(folder.folder),
                photos=photos[folder.name],
                class_noun=folder.class_noun,
                wrong_noun=wrong,
                suite=suite,
                images_per_prompt=max(1, round(IMAGES / num_prompts)),
                conditions=(SHIPPED, *(ABLATIONS if index < num_ablated else ())),
            )
        )
    dumped = settings.model_dump(mode="json", by_alias=True, exclude={"subjects"})
    return BenchPlan(subjects=tuple(subjects), settings=dumped)


def _suite_of(settings: Settings, folder: SubjectFolder) -> str:
    """The paper's prompts for the kind of subject, unless the settings name other prompts."""
    if settings.evaluate.suite not in _PAPER_SUITES:
        return settings.evaluate.suite
    return "live" if folder.class_noun in LIVE_CLASSES else "objects"


def store_plan(out: Path, plan: BenchPlan) -> None:
    """Write the plan, which may add conditions to the known one.

    Raises SettingsError if `out` has the results of other subjects or settings.
    """
    known = read_plan(out)
    if known is not None and _compared(known) != _compared(plan):
        old, new = _compared(known), _compared(plan)
        what = [key for key in new["settings"] if new["settings"][key] != old["settings"].get(key)]
        what += ["the subjects"] if old["subjects"] != new["subjects"] else []
        raise SettingsError(
            f"{out} has the results of another benchmark",
            got=f"other values of {', '.join(what)}",
            hint="choose another folder with --out, or restore the settings and photos",
        )
    plan.write(out, _PLAN)


def read_plan(out: Path) -> BenchPlan | None:
    """The plan of a folder, or None."""
    return BenchPlan.read_if_there(out, _PLAN)


def _compared(plan: BenchPlan) -> dict[str, Any]:
    dumped: dict[str, Any] = plan.to_json()
    for section in _UNCOMPARED:
        dumped["settings"].pop(section, None)
    for subject in dumped["subjects"]:
        del subject["conditions"]
    return dumped


@dataclasses.dataclass(frozen=True)
class Bench:
    """A benchmark in its folder, and what its caller provides for every stage."""

    root: Path
    out: Path
    plan: BenchPlan
    should_stop: StopSignal = never_stop
    lock_fd: int | None = None

    def places(self, subject: str, condition: str) -> Places:
        """The folders of a case."""
        outputs = self.out / "runs" / subject / condition
        return Places(self.root, outputs, self.out / "store", f"{subject}-{condition}")

    def finished(self, subject: str, condition: str) -> CaseScores | None:
        """The scores of a case, or None if it has not finished."""
        return CaseScores.read_if_there(self.places(subject, condition).stage_dir("scores"))

    def context(
        self, subject: str, condition: str, progress: Progress = no_progress
    ) -> StageContext:
        """The context of a case's stages. Raises StageError for one that has no step yet."""
        return StageContext(
            self._view(subject, condition),
            self.places(subject, condition),
            progress=progress,
            should_stop=self.should_stop,
            lock_fd=self.lock_fd,
            env={"DVC_EXP_NAME": "dreambench"},  # registers nothing
        )

    def _view(self, name: str, condition: str) -> SubjectView:
        subject = self.plan.subject(name)
        words = {
            "instance_dir": subject.folder,
            "identifier": IDENTIFIER,
            "class_noun": subject.wrong_noun if condition == WRONG_NOUN else subject.class_noun,
            "prompts": subject.suite,
            "overrides": {},
        }
        raw = {**self.plan.settings, "name": f"{name}-{condition}", "subject": words}
        view = with_strategy(Workspace(self.root), SubjectView.model_validate(raw))
        if condition == NO_PRIOR:
            view = view.model_copy(update={"prior": None})
        if condition == NO_NOUN:
            bare = view.subject.model_copy(update={"class_noun": ""})
            view = view.model_copy(update={"subject": bare})
        return view if condition == SHIPPED else self._ending_like_shipped(view, name)

    def _ending_like_shipped(self, view: SubjectView, subject: str) -> SubjectView:
        """The settings that end the training where the shipped ones have selected a checkpoint."""
        shipped = self.finished(subject, SHIPPED)
        if shipped is None:
            raise StageError(f"{subject} has no scores yet that tell how long to train")
        train = view.train.model_copy(update={"max_train_steps": shipped.step})
        select = view.select.model_copy(update={"early_stopping_patience": None})
        return view.model_copy(update={"train": train, "select": select})


def train(context: StageContext) -> None:
    """Run the stages up to the training. Each resumes from the store."""
    for stage in ("validate", "class-images", "cache", "train"):
        run_stage(context, stage)


def finish(bench: Bench, subject: str, condition: str, progress: Progress = no_progress) -> None:
    """Score the case's checkpoint on fresh seeds, and remove its weights."""
    from dreambooth_core.pipeline import evaluate

    context = bench.context(subject, condition, progress)
    places = context.places
    selection = Selection.read_if_there(places.stage_dir("select"))
    run = TrainingRun.read(places.stage_dir("train"))
    name = (selection.best if selection else None) or checkpoint_name(run.checkpoints[-1].step)
    scoring = with_images(context, bench.plan.subject(subject).images_per_prompt)
    others = (STEP_0, REAL) if condition == SHIPPED else ()
    rows = tuple(evaluate.score_row(scoring, row, role="confirm") for row in (name, *others))
    assert rows[0].text_range is not None and rows[0].step is not None  # noqa: S101, PT018
    evaluation = Evaluation(
        harness=evaluate.open_resident(scoring).evaluators["confirm"].harness,
        text_range=rows[0].text_range,
        rows=rows,
    )
    CaseScores(
        subject=subject,
        condition=condition,
        identifier=context.settings.subject.identifier,
        class_noun=context.settings.subject.class_noun,
        step=rows[0].step,
        qualified=selection.qualified if selection else None,
        base_model=run.base_model,
        evaluation=evaluation,
    ).write(places.stage_dir("scores"))
    _remove_weights(places, run.fingerprint)


def with_images(context: StageContext, images_per_prompt: int) -> StageContext:
    """The context with another number of images per prompt."""
    view = context.settings
    more = view.evaluate.model_copy(update={"images_per_prompt": images_per_prompt})
    return dataclasses.replace(context, settings=view.model_copy(update={"evaluate": more}))


def _remove_weights(places: Places, fingerprint: str) -> None:
    """Remove the checkpoints of a finished case: those of all cases would fill a disk."""
    for folder in (places.stage_dir("train"), places.store_dir("train", fingerprint)):
        shutil.rmtree(folder, ignore_errors=True)
