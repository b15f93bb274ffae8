"""The select stage: the best checkpoint of a run, by the rule of docs/scores.md or by hand."""

from __future__ import annotations

from dreambooth_core import files
from dreambooth_core.evaluation import by_hand, selection
from dreambooth_core.pipeline.common import StageContext, evaluation_of, publishing
from dreambooth_core.records import Selection


def run(context: StageContext) -> Selection:
    """Publish the selection and the numbers for `dvc metrics`."""
    scores = evaluation_of(context)
    selected = selection.select_best(scores, context.settings.select)
    if context.settings.subject.choice is not None:
        selected = by_hand.with_choice(selected, context.settings.subject.choice, scores)
    with publishing(context.places, "select") as out:
        files.write_json(out / "metrics.json", selection.flat_metrics(scores, selected))
        selected.write(out, "selection.json")
        selected.write(out)
    return selected
