"""The published JSON Schemas say what the records say."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from dreambooth_core.evaluation.selection import select_best
from dreambooth_core.pipeline.common import table_of
from dreambooth_core.records import Record, Scores, Selection, Verdict
from tests.unit.evaluation.made_up import SELECT, interval, real_row, score_row, scores

SCHEMAS = Path(__file__).parents[3] / "docs" / "schemas"
PUBLISHED: dict[str, type[Record]] = {
    "scores": Scores,
    "selection": Selection,
    "verdict": Verdict,
}
REWRITE = (
    "write it again with json.dumps(schema_of(record), indent=2, sort_keys=True), and note the "
    "change in CHANGELOG.md: readers outside depend on it"
)


def schema_of(record: type[Record]) -> dict[str, object]:
    """A record's JSON Schema, marked with its draft."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **record.model_json_schema(mode="serialization"),
    }


def published(name: str) -> dict[str, object]:
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_schema_equals_its_records(name: str) -> None:
    assert published(name) == schema_of(PUBLISHED[name]), REWRITE


def examples() -> dict[str, Record]:
    table = scores(
        [
            score_row("step 0", 0, clip_t=0.3, dino=0.5, pres=0.4),
            score_row("checkpoint-100", 100, clip_t=0.3, dino=0.6, pres=0.4),
            real_row(),
        ]
    )
    verdict = Verdict(
        challenger="version 2",
        champion=None,
        promote=True,
        why="first",
        difference={"dino": interval(0.1)},
    )
    return {"scores": table_of(table), "selection": select_best(table, SELECT), "verdict": verdict}


@pytest.mark.parametrize("name", PUBLISHED)
def test_schema_accepts_a_record_and_rejects_a_missing_key(name: str) -> None:
    validator = jsonschema.Draft202012Validator(published(name))
    value = examples()[name].to_json()
    validator.validate(value)
    value.popitem()
    assert list(validator.iter_errors(value))
