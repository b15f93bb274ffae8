"""What a run ends with, as plain JSON: scores, choice, version, verdict, times, places."""

from __future__ import annotations

from typing import Any

from dreambooth_core.records import Scores, Selection, Verdict
from tasks import products
from tasks.run import SubjectRun


def of(run: SubjectRun, verdict: Verdict | None) -> dict[str, Any]:
    """The summary of a run that has come to its end."""
    scores = Scores.read(run.places.stage_dir("evaluate"), "scores.json")
    selection = Selection.read(run.places.stage_dir("select"))
    version = products.registered_version(run)
    return {
        "subject": run.subject,
        "scores": scores.to_json(),
        "selection": selection.to_json(),
        "version": version.to_json() if version else None,
        "verdict": verdict.to_json() if verdict else None,
        "report": str(run.places.report_page),
        "tracking_uri": run.env.get("MLFLOW_TRACKING_URI"),
        "stages": [
            {"stage": time.stage, "seconds": round(time.seconds, 2), "skipped": time.skipped}
            for time in run.times
        ],
    }
