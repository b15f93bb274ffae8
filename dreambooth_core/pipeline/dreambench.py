"""DreamBench: the stages of many subjects under several conditions, scored as in the paper.

    OUT/plan.json                            the subjects, conditions and settings (`BenchPlan`)
    OUT/runs/SUBJECT/CONDITION/STAGE/        outputs of the stages
    OUT/runs/SUBJECT/CONDITION/scores/       the scores of the finished case (`CaseScores`)
    OUT/store/                               everything that survives a kill
    OUT/results.json, OUT/results.md         the tables, once every case has finished

The first condition trains and selects as `dreambooth run` does. The others train to the step that
it has selected for the same subject, so all are scored after equally many steps, on images of the
same prompts and seeds, none of which has selected a checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dreambooth_core import files, locks
from dreambooth_core.config import Settings, SubjectView, load_settings, with_strategy
from dreambooth_core.data import gate
from dreambooth_core.data.subject_folders import SubjectFolder, read_subjects
from dreambooth_core.errors import DataError, SettingsError, StageError
from dreambooth_core.evaluation import paper_tables
from dreambooth_core.evaluation.paper_tables import (
    ABLATIONS,
    NO_NOUN,
    NO_PRIOR,
    SHIPPED,
    WRONG_NOUN,
    CaseScores,
)
from dreambooth_core.evaluation.suites import load_suite
from dreambooth_core.numerics.seeding import derive_seed
from dreambooth_core.pipeline import run_stage
from dreambooth_core.pipeline.common import StageContext
from dreambooth_core.ports import Progress, StopSignal, never_stop, no_progress
from dreambooth_core.records import (
    REAL,
    STEP_0,
    Evaluation,
    GateReport,
    Record,
    Selection,
    TrainingRun,
)
from dreambooth_core.workspace import Places, Workspace

IMAGES = 100
"""Images per subject and checkpoint: 25 prompts with 4 seeds in the paper."""

IDENTIFIER = "sks"
LIVE_CLASSES = ("cat", "dog")
"""The classes that have the prompts of live subjects in the paper."""
_PAPER_SUITES = ("objects", "live")
_PLAN = "plan.json"
RESULTS, PAGE = "results.json", "results.md"
_UNCOMPARED = ("runtime", "registry")
_TRAINING_TIMEOUT_S = 96 * 3600.0


class BenchSubject(Record):
    """A subject: its photos with their sha256, its words, its prompts, and its conditions."""

    name: str
    folder: str
    photos: dict[str, str]
    class_noun: str
    wrong_noun: str
    suite: str
    num_prompts: int
    images_per_prompt: int
    conditions: tuple[str, ...]


class BenchPlan(Record):
    """Everything that the scores depend on: the subjects and the settings."""

    subjects: tuple[BenchSubject, ...]
    settings: dict[str, Any]

    def subject(self, name: str) -> BenchSubject:
        """The subject called `name`."""
        return next(subject for subject in self.subjects if subject.name == name)

    def cases(self) -> list[tuple[str, str]]:
        """(subject, condition) of every case: first the first condition of all subjects."""
        return [(s.name, SHIPPED) for s in self.subjects] + [
            (s.name, condition) for s in self.subjects for condition in s.conditions[1:]
        ]

    @property
    def num_images(self) -> int:
        """Images of subjects that the benchmark scores, without those of classes and selection."""
        counts = [len(s.conditions) * s.num_prompts * s.images_per_prompt for s in self.subjects]
        return sum(counts)


def plan_for(
    root: Path,
    subjects_root: Path,
    *,
    scratch: Path,
    names: Sequence[str] = (),
    num_ablated: int = 0,
) -> tuple[BenchPlan, list[GateReport]]:
    """The plan for a folder of subjects with the settings of `root`, and the gate's reports.

    `names` are the subjects, by default all; the first `num_ablated` of them have the ablations
    too. Raises DataError for unusable folders and photos, and SettingsError for unknown names.
    """
    settings = load_settings(Workspace(root).params)
    folders = read_subjects(subjects_root)
    nouns = sorted({folder.class_noun for folder in folders})
    chosen = _named(folders, names)
    reports = [_inspect(folder, settings, scratch) for folder in chosen]
    return make_plan(
        settings, chosen, reports, nouns=nouns, root=root, num_ablated=num_ablated
    ), reports


def _named(folders: Sequence[SubjectFolder], names: Sequence[str]) -> list[SubjectFolder]:
    unknown = sorted(set(names) - {folder.name for folder in folders})
    if unknown:
        raise SettingsError(
            f"no subject has the name {', '.join(unknown)}",
            allowed=", ".join(folder.name for folder in folders),
        )
    return [folder for folder in folders if not names or folder.name in names]


def _inspect(subject: SubjectFolder, settings: Settings, scratch: Path) -> GateReport:
    """The data gate's verdict on a subject's photos. Raises DataError if none is usable."""
    with files.scratch_dir(scratch, subject.name) as copies:
        report = gate.inspect_folder(
            subject.folder, settings.data, subject=subject.name, scratch=copies
        ).report
    gate.require_usable(report)
    return report


def make_plan(
    settings: Settings,
    folders: Sequence[SubjectFolder],
    reports: Sequence[GateReport],
    *,
    nouns: Sequence[str],
    root: Path,
    num_ablated: int = 0,
) -> BenchPlan:
    """The plan for subjects and their gate reports; `nouns` are those of all known classes.

    Raises SettingsError for ablations without a wrong noun to use.
    """
    if num_ablated and len(nouns) < 2:
        raise SettingsError(
            "the ablation of the class noun needs subjects of two classes", got=", ".join(nouns)
        )
    subjects: list[BenchSubject] = []
    for index, (folder, report) in enumerate(zip(folders, reports, strict=True)):
        suite = _suite_of(settings, folder)
        num_prompts = len(load_suite(suite, root=root).templates)
        subjects.append(
            BenchSubject(
                name=folder.name,
                folder=str(folder.folder),
                photos={image.name: image.sha256 for image in report.accepted},
                class_noun=folder.class_noun,
                wrong_noun=_wrong_noun(folder, nouns),
                suite=suite,
                num_prompts=num_prompts,
                images_per_prompt=max(1, round(IMAGES / num_prompts)),
                conditions=(SHIPPED, *(ABLATIONS if index < num_ablated else ())),
            )
        )
    dumped = settings.model_dump(mode="json", by_alias=True, exclude={"subjects"})
    return BenchPlan(subjects=tuple(subjects), settings=dumped)


def _wrong_noun(folder: SubjectFolder, nouns: Sequence[str]) -> str:
    """The noun of another class, chosen at random by the subject's name."""
    others = [noun for noun in nouns if noun != folder.class_noun]
    return others[derive_seed(0, f"wrong-noun-{folder.name}") % len(others)] if others else ""


def _suite_of(settings: Settings, folder: SubjectFolder) -> str:
    """The paper's prompts for the kind of subject, unless the settings name other prompts."""
    if settings.evaluate.suite not in _PAPER_SUITES:
        return settings.evaluate.suite
    return "live" if folder.class_noun in LIVE_CLASSES else "objects"


def store_plan(out: Path, plan: BenchPlan) -> None:
    """Write the plan, which may have other subjects and conditions than the known one.

    Raises SettingsError if settings or photos differ from those of results in `out`.
    """
    known = BenchPlan.read_if_there(out, _PLAN)
    changed = _changes(known, plan) if known is not None else []
    if changed:
        raise SettingsError(
            f"{out} has the results of another benchmark",
            got=f"other values of {', '.join(changed)}",
            hint="choose another folder with --out, or restore the settings and photos",
        )
    plan.write(out, _PLAN)


def _changes(known: BenchPlan, plan: BenchPlan) -> list[str]:
    """The sections and the subjects that differ between two plans and count for the scores."""
    old, new = known.settings, plan.settings
    keys = [key for key in {**old, **new} if key not in _UNCOMPARED]
    free: Mapping[str, Any] = {"conditions": ()}
    subjects = {subject.name: subject.model_copy(update=free) for subject in known.subjects}
    return [key for key in keys if old.get(key) != new.get(key)] + [
        subject.name
        for subject in plan.subjects
        if subjects.get(subject.name) not in (None, subject.model_copy(update=free))
    ]


class Bench:
    """A benchmark in its folder, and what its caller provides for every stage.

    Not a dataclass: Prefect walks through those (and copies them) in search of futures.
    """

    def __init__(
        self,
        root: Path,
        out: Path,
        plan: BenchPlan,
        *,
        should_stop: StopSignal = never_stop,
        shares_cores: bool = False,
    ) -> None:
        self.root, self.out, self.plan = root, out, plan
        self._should_stop, self._shares_cores = should_stop, shares_cores

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
        """The context of a case's stages. Raises StageError for an ablation without its step."""
        return StageContext(
            self._view(subject, condition),
            self.places(subject, condition),
            progress=progress,
            should_stop=self._should_stop,
            shares_cores=self._shares_cores,
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


def run_case(bench: Bench, subject: str, condition: str, progress: Progress = no_progress) -> None:
    """Train and score a case, unless it has finished. Other processes may run other cases."""
    if bench.finished(subject, condition) is not None:
        return
    context = bench.context(subject, condition, progress)
    with _trained(context):
        if condition == SHIPPED:
            select(context)
        finish(bench, subject, condition, progress)
        remove_weights(context.places)


def train(context: StageContext) -> None:
    """Run the stages up to the training. Each resumes from the store."""
    with _trained(context):
        pass


@contextlib.contextmanager
def _trained(context: StageContext) -> Iterator[None]:
    """Run the stages up to the training, and keep others away from it during the block.

    Cases with equal photos and words have the same training, and the trainer of a killed process
    still saves.
    """
    from dreambooth_core.pipeline.train import make_job  # loads the trainer's libraries

    for stage in ("validate", "class-images", "cache"):
        run_stage(context, stage)
    lock = context.places.store / "locks" / f"train-{make_job(context).fingerprint[:16]}.lock"
    with locks.hold(lock, timeout_s=_TRAINING_TIMEOUT_S, inheritable=True) as fd:
        run_stage(dataclasses.replace(context, lock_fd=fd), "train")
        yield


def select(context: StageContext) -> None:
    """Publish the scores of all checkpoints, and select one."""
    for stage in ("evaluate", "select"):
        run_stage(context, stage)


def finish(bench: Bench, subject: str, condition: str, progress: Progress = no_progress) -> None:
    """Score the checkpoint of a case on fresh seeds."""
    from dreambooth_core.pipeline import evaluate  # loads the scorers' libraries

    context = bench.context(subject, condition, progress)
    view, places = context.settings, context.places
    run = TrainingRun.read(places.stage_dir("train"))
    selection = Selection.read(places.stage_dir("select")) if condition == SHIPPED else None
    name = selection.best if selection else run.checkpoints[-1].name
    checkpoint = next((c for c in run.checkpoints if c.name == name), None)
    if checkpoint is None:
        raise DataError(f"no checkpoint of {subject} was selected")
    scoring = _with_images(context, bench.plan.subject(subject).images_per_prompt)
    others = (STEP_0, REAL) if condition == SHIPPED else ()
    rows = [evaluate.score_row(scoring, row, role="confirm") for row in (checkpoint.name, *others)]
    CaseScores(
        subject=subject,
        condition=condition,
        identifier=view.subject.identifier,
        class_noun=view.subject.class_noun,
        step=checkpoint.step,
        qualified=selection.qualified if selection else None,
        base_model=run.base_model,
        evaluation=Evaluation(
            harness=evaluate.open_resident(scoring).evaluators["confirm"].harness,
            text_range=rows[0].text_range or 0.0,
            rows=tuple(rows),
        ),
    ).write(places.stage_dir("scores"))


def _with_images(context: StageContext, images_per_prompt: int) -> StageContext:
    view = context.settings
    more = view.evaluate.model_copy(update={"images_per_prompt": images_per_prompt})
    return dataclasses.replace(context, settings=view.model_copy(update={"evaluate": more}))


def remove_weights(places: Places) -> None:
    """Remove the checkpoints of a finished case: those of all cases would fill a disk."""
    run = TrainingRun.read_if_there(places.stage_dir("train"))
    if run is not None:
        shutil.rmtree(places.store_dir("train", run.fingerprint), ignore_errors=True)
        shutil.rmtree(places.stage_dir("train"))


def write_results(bench: Bench) -> paper_tables.BenchResults:
    """Write the tables, each file completely or not at all. Raises StageError before the end."""
    found = {case: bench.finished(*case) for case in bench.plan.cases()}
    cases = {case: scores for case, scores in found.items() if scores is not None}
    if len(cases) < len(found):
        raise StageError(f"{len(found) - len(cases)} of {len(found)} cases have not finished")
    evaluate = bench.plan.settings["evaluate"]
    results = paper_tables.results_of(
        cases,
        bench.plan.settings,
        paper_tables.Resampling(evaluate["bootstrap_samples"], evaluate["seed"]),
    )
    results.write(bench.out, RESULTS)
    files.write_text(bench.out / PAGE, paper_tables.markdown(results))
    return results
