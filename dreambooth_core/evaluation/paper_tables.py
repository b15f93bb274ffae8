"""The tables of a benchmark over subjects, as in the DreamBooth paper: means with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dreambooth_core.numerics.similarity import mean_estimate
from dreambooth_core.records import (
    REAL,
    SCORES,
    STEP_0,
    BaseModelIdentity,
    Evaluation,
    Interval,
    Record,
    ScorerIdentity,
    ScoreRow,
)

SHIPPED, NO_PRIOR, NO_NOUN, WRONG_NOUN = "shipped", "no-prior", "no-noun", "wrong-noun"
"""The conditions of a benchmark: the settings as they are, and the paper's ablations."""

ABLATIONS = (NO_PRIOR, NO_NOUN, WRONG_NOUN)

_TITLES = {
    SHIPPED: "this run",
    NO_PRIOR: "without prior preservation",
    NO_NOUN: "no class noun",
    WRONG_NOUN: "wrong class noun",
}
_NOUN_SCORES = ("dino", "clip_i")


class CaseScores(Record):
    """The scores of one subject under one condition.

    The first row of the evaluation is that of the scored checkpoint.
    """

    subject: str
    condition: str
    identifier: str
    class_noun: str
    step: int
    qualified: bool | None
    base_model: BaseModelIdentity
    evaluation: Evaluation


class TableRow(Record):
    """A row of a table: means over n subjects with bootstrap 95 % intervals over subjects."""

    name: str
    n: int
    scores: dict[str, Interval]


class PaperTable(Record):
    """One of the paper's tables, with the scores that it shows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


class SubjectRow(Record):
    """The scores of one subject under one condition, on images of its checkpoint."""

    subject: str
    condition: str
    class_noun: str
    step: int
    n: int
    qualified: bool | None
    checkpoint_sha256: str | None
    instance_sha256: str
    scores: dict[str, Interval]


class SuiteFacts(Record):
    """The prompts and seeds of the images; a prompt's seeds come round by round."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    class_seeds: tuple[int, ...]


class BenchResults(Record):
    """`results.json`: tables, subjects, and everything that the numbers depend on."""

    tables: tuple[PaperTable, ...]
    subjects: tuple[SubjectRow, ...]
    base_model: BaseModelIdentity
    scorers: dict[str, ScorerIdentity]
    suites: dict[str, SuiteFacts]
    sampling: dict[str, str | int | float]
    settings: dict[str, object]


@dataclass(frozen=True)
class Resampling:
    """The bootstrap over subjects."""

    samples: int
    seed: int


Cases = Mapping[tuple[str, str], CaseScores]
"""The finished cases by subject and condition."""


def results_of(cases: Cases, settings: dict[str, object], resampling: Resampling) -> BenchResults:
    """The results of finished cases, at least one of them with the settings as they are."""
    first = next(iter(cases.values()))
    harness = first.evaluation.harness
    return BenchResults(
        tables=tuple(_tables(cases, resampling)),
        subjects=tuple(_subject_row(case) for case in cases.values()),
        base_model=first.base_model,
        scorers=harness.scorers,
        suites={
            case.evaluation.harness.suite: SuiteFacts(
                prompts=tuple(_blank(case, prompt) for prompt in case.evaluation.harness.prompts),
                seeds=case.evaluation.harness.seeds,
                class_seeds=case.evaluation.harness.class_seeds,
            )
            for case in cases.values()
            if case.condition == SHIPPED
        },
        sampling={
            "sampler": harness.sampler,
            "steps": harness.steps,
            "guidance": harness.guidance,
            "resolution": harness.resolution,
            "batch_size": harness.batch_size,
        },
        settings=settings,
    )


def _blank(case: CaseScores, prompt: str) -> str:
    """The prompt with a blank for the subject's words."""
    return prompt.replace(f"{case.identifier} {case.class_noun}", "[V] [class]")


def _subject_row(case: CaseScores) -> SubjectRow:
    row = case.evaluation.rows[0]
    return SubjectRow(
        subject=case.subject,
        condition=case.condition,
        class_noun=case.class_noun,
        step=case.step,
        n=row.n,
        qualified=case.qualified,
        checkpoint_sha256=row.checkpoint_sha256,
        instance_sha256=case.evaluation.harness.instance_sha256,
        scores=row.intervals(),
    )


def _tables(cases: Cases, resampling: Resampling) -> list[PaperTable]:
    shipped = _of(cases, SHIPPED)
    rows = [
        ("real images", [case.evaluation.row(REAL) for case in shipped.values()]),
        ("base model", [case.evaluation.row(STEP_0) for case in shipped.values()]),
        (_TITLES[SHIPPED], [case.evaluation.rows[0] for case in shipped.values()]),
    ]
    tables = [
        PaperTable(
            title="Fidelity to subject and prompt (paper, table 1)",
            columns=tuple(SCORES),
            rows=tuple(_mean_row(name, found, SCORES, resampling) for name, found in rows),
        )
    ]
    if _of(cases, NO_PRIOR):
        title = "Prior preservation (paper, table 3)"
        tables.append(_ablation(cases, title, (NO_PRIOR,), tuple(SCORES), resampling))
    if _of(cases, NO_NOUN) and _of(cases, WRONG_NOUN):
        title = "Class noun (paper, table 4)"
        nouns = (NO_NOUN, WRONG_NOUN)
        tables.append(_ablation(cases, title, nouns, _NOUN_SCORES, resampling))
    return tables


def _of(cases: Cases, condition: str) -> dict[str, CaseScores]:
    return {subject: case for (subject, own), case in cases.items() if own == condition}


def _ablation(
    cases: Cases,
    title: str,
    ablations: Sequence[str],
    columns: tuple[str, ...],
    resampling: Resampling,
) -> PaperTable:
    """Means over the subjects that have all conditions, then differences paired by subject."""
    conditions = (SHIPPED, *ablations)
    found = {condition: _of(cases, condition) for condition in conditions}
    names = [name for name in found[SHIPPED] if all(name in own for own in found.values())]
    scores = {c: [found[c][name].evaluation.rows[0] for name in names] for c in conditions}
    rows = [_mean_row(_TITLES[c], scores[c], columns, resampling) for c in conditions]
    for c in ablations:
        values = {
            column: [
                other.means()[column] - own.means()[column]
                for own, other in zip(scores[SHIPPED], scores[c], strict=True)
            ]
            for column in columns
        }
        rows.append(_row(f"difference: {_TITLES[c]}", values, resampling))
    return PaperTable(title=title, columns=columns, rows=tuple(rows))


def _mean_row(
    name: str, rows: Sequence[ScoreRow], columns: Sequence[str] | Mapping[str, str], how: Resampling
) -> TableRow:
    means = [row.means() for row in rows]
    values = {c: [mean[c] for mean in means if c in mean] for c in columns}
    return _row(name, values, how, n=len(rows))


def _row(
    name: str, values: Mapping[str, Sequence[float]], how: Resampling, *, n: int | None = None
) -> TableRow:
    scores = {
        column: Interval(
            **mean_estimate(np.array(own), samples=how.samples, seed=how.seed)._asdict()
        )
        for column, own in values.items()
        if own
    }
    return TableRow(name=name, n=n or max(map(len, values.values())), scores=scores)


# ---- Markdown -----------------------------------------------------------------------------------


def markdown(results: BenchResults) -> str:
    """The tables, the subjects and the harness as a page of Markdown."""
    parts = [_table(table) for table in results.tables]
    parts += [_subject_table(results.subjects), _harness(results)]
    return "\n\n".join(["# DreamBench", *parts]) + "\n"


def _table(table: PaperTable) -> str:
    head = ["", "subjects", *(SCORES[column] for column in table.columns)]
    rows = [
        [row.name, str(row.n), *(_cell(row.scores.get(column)) for column in table.columns)]
        for row in table.rows
    ]
    return f"## {table.title}\n\n{_grid(head, rows)}"


def _subject_table(subjects: Sequence[SubjectRow]) -> str:
    head = ["subject", "condition", "class noun", "step", "n", *SCORES.values()]
    rows = [
        [
            *(row.subject, _TITLES[row.condition], row.class_noun or "none", str(row.step)),
            *(str(row.n), *(_cell(row.scores.get(score)) for score in SCORES)),
        ]
        for row in subjects
    ]
    return f"## Subjects\n\n{_grid(head, rows)}"


def _harness(results: BenchResults) -> str:
    scorers = [
        f"- {name}: {own.name}, {own.backbone}, sha256 `{own.sha256}`"
        for name, own in sorted(results.scorers.items())
    ]
    suites = [
        f"- suite {name}: {len(own.prompts)} prompts x {len(own.seeds) // len(own.prompts)} seeds "
        f"per subject and checkpoint, {len(own.class_seeds)} images of the class prompt"
        for name, own in results.suites.items()
    ]
    base = results.base_model
    sampling = ", ".join(f"{key} {value}" for key, value in results.sampling.items())
    lines = [f"- base model: {base.name}, sha256 `{base.sha256}`", *scorers, *suites]
    return "\n".join(
        [
            "## Harness\n\nIntervals are bootstrap 95 % intervals: over subjects in the first "
            "tables, over images in the table of subjects. results.json has all seeds and "
            "settings.\n",
            *lines,
            f"- sampling: {sampling}",
        ]
    )


def _cell(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
