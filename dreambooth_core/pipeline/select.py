"""The select stage: choose the best checkpoint of a run by the rule of docs/scores.md."""

from __future__ import annotations

from dreambooth_core import files
from dreambooth_core.evaluation import selection
from dreambooth_core.pipeline.common import StageContext, publishing
from dreambooth_core.records import Scores, Selection


def run(context: StageContext) -> Selection:
    """Publish the selection and the numbers for `dvc metrics`."""
    scores = Scores.read(context.places.stage_dir("evaluate"), "scores.json")
    selected = selection.select_best(scores, context.settings.select)
    with publishing(context.places, "select") as out:
        files.write_json(out / "metrics.json", selection.flat_metrics(scores, selected))
        selected.write(out, "selection.json")
        selected.write(out)
    return selected
