"""The confirm stage: score the selected checkpoint on seeds that selected nothing.

The score that selects a checkpoint favours it, as the highest of several noisy numbers. Versions
are registered and compared with the scores of this stage.
"""

from __future__ import annotations

from dreambooth_core import files
from dreambooth_core.pipeline import evaluate
from dreambooth_core.pipeline.common import StageContext, evaluation_of, publishing
from dreambooth_core.records import Evaluation, Selection


def run(context: StageContext) -> Evaluation:
    """Publish the row of the selected checkpoint, and its means for `dvc metrics`."""
    best = Selection.read(context.places.stage_dir("select")).best
    rows = () if best is None else (evaluate.score_row(context, best, role="confirm"),)
    confirmed = Evaluation(
        harness=evaluate.open_resident(context).evaluators["confirm"].harness,
        text_range=evaluation_of(context).text_range,
        rows=rows,
    )
    with publishing(context.places, "confirm") as out:
        files.write_json(out / "metrics.json", rows[0].means() if rows else {})
        confirmed.write(out)
    return confirmed
