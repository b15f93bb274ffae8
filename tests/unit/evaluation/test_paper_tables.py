"""The tables of a benchmark: means over subjects, and ablations on the same subjects."""

from __future__ import annotations

import pytest

from dreambooth_core.evaluation import paper_tables
from dreambooth_core.evaluation.paper_tables import (
    NO_NOUN,
    NO_PRIOR,
    SHIPPED,
    WRONG_NOUN,
    BenchResults,
    CaseScores,
    Resampling,
)
from dreambooth_core.records import (
    REAL,
    STEP_0,
    BaseModelIdentity,
    CheckpointScore,
    Evaluation,
    Harness,
    Interval,
    ScorerIdentity,
)

HOW = Resampling(samples=200, seed=0)


def row(name: str, value: float, *, real: bool = False) -> CheckpointScore:
    interval = Interval(mean=value, low=value, high=value)
    own = None if real else interval
    return CheckpointScore(
        name=name,
        step=None,
        n=16,
        clip_t=own,
        clip_i=interval,
        dino=interval,
        pres=own,
        div=own,
        checkpoint_sha256="c",
        images=(),
        text_range=0.1,
    )


def case(subject: str, condition: str, value: float) -> CaseScores:
    noun = "" if condition == NO_NOUN else "mug"
    harness = Harness(
        suite="pocket",
        prompts=(f"a photo of sks {noun}".rstrip(), f"a sks {noun} at night"),
        class_prompt="a photo of mug",
        seeds=(1, 2, 3, 4),
        class_seeds=(5,),
        scorers={"dino": ScorerIdentity(name="tiny-dino", backbone="vit", sha256="d1")},
        sampler="PNDM",
        steps=2,
        guidance=3.0,
        resolution=64,
        batch_size=8,
        instance_sha256=subject,
    )
    rows = [row("checkpoint-4", value)]
    if condition == SHIPPED:
        rows += [row(STEP_0, 0.1), row(REAL, 0.9, real=True)]
    return CaseScores(
        subject=subject,
        condition=condition,
        identifier="sks",
        class_noun=noun,
        step=4,
        qualified=None,
        base_model=BaseModelIdentity(name="tiny-sd", revision=None, sha256="b0"),
        evaluation=Evaluation(harness=harness, text_range=0.1, rows=tuple(rows)),
    )


@pytest.fixture
def results() -> BenchResults:
    values = {
        ("a", SHIPPED): 0.5,
        ("b", SHIPPED): 0.7,
        ("a", NO_PRIOR): 0.8,
        ("a", NO_NOUN): 0.2,
        ("a", WRONG_NOUN): 0.3,
    }
    cases = {key: case(*key, value) for key, value in values.items()}
    return paper_tables.results_of(cases, {"train": {"seed": 1}}, HOW)


def test_first_table_averages_over_subjects(results: BenchResults) -> None:
    table = results.tables[0]
    means = {r.name: {k: v.mean for k, v in r.scores.items()} for r in table.rows}
    assert means["this run"]["dino"] == pytest.approx(0.6)
    assert means["real images"] == {"dino": pytest.approx(0.9), "clip_i": pytest.approx(0.9)}
    own = table.rows[2].scores["dino"]
    assert (own.low, own.high) == (pytest.approx(0.5), pytest.approx(0.7))
    assert [r.n for r in table.rows] == [2, 2, 2]


def test_ablations_compare_the_same_subjects(results: BenchResults) -> None:
    prior, noun = results.tables[1:]
    rows = {r.name: r for r in (*prior.rows, *noun.rows)}
    assert {r.n for r in rows.values()} == {1}
    assert rows["this run"].scores["dino"].mean == pytest.approx(0.5)
    difference = rows["difference: without prior preservation"].scores["pres"].mean
    assert difference == pytest.approx(0.3)
    assert rows["difference: no class noun"].scores["dino"].mean == pytest.approx(-0.3)
    assert set(rows["wrong class noun"].scores) == {"dino", "clip_i"}


def test_page_states_harness_and_every_subject(results: BenchResults) -> None:
    page = paper_tables.markdown(results)
    assert "sha256 `b0`" in page
    assert "tiny-dino, vit, sha256 `d1`" in page
    assert "2 prompts x 2 seeds per subject and checkpoint, 1 images of the class" in page
    assert "| real images | 2 | - | 0.900 (0.900 to 0.900)" in page
    assert "| a | no class noun | none | 4 | 16 | 0.200" in page
    assert results.suites["pocket"].prompts == ("a photo of [V] [class]", "a [V] [class] at night")
    assert results.suites["pocket"].seeds == (1, 2, 3, 4)


def test_without_ablations_there_is_one_table() -> None:
    cases = {("a", SHIPPED): case("a", SHIPPED, 0.5)}
    assert len(paper_tables.results_of(cases, {}, HOW).tables) == 1
