"""Later scores of a version: per harness, beside those of its registration, once."""

from __future__ import annotations

import json
from pathlib import Path

from mlflow import MlflowClient

from dreambooth_core.records import Scores
from dreambooth_core.registry import attachments, logged_models, rescores, versions
from dreambooth_core.registry.runs import RunRef
from dreambooth_core.registry.tracking import Tracking
from dreambooth_core.registry.versions import VersionInfo
from tests.unit.registry import examples
from tests.unit.registry.examples import MODEL


def registered(tracking: Tracking, run: RunRef, export: Path, tmp_path: Path) -> VersionInfo:
    candidate = examples.candidate(export)
    logged_models.record_scores(
        tracking, run, checkpoints=[candidate.checkpoint], scores=candidate.scores
    )
    version = versions.register_version(tracking, run, candidate, scratch=tmp_path / "scratch")
    attachments.attach(tracking, version, candidate)
    return versions.get_version(tracking, name=MODEL, version=1)


def later(suite: str, value: float) -> Scores:
    rows = examples.scores(100, suite=suite)
    own = examples.row("checkpoint-100", 100, value)
    return Scores(harness=rows.harness, text_range=0.2, rows=(own, *rows.rows[:2]))


def model_scores(info: VersionInfo, tracking: Tracking) -> dict[str, float]:
    """DINO of the version's logged model by suite."""
    client = MlflowClient(tracking.uri)
    version = client.get_model_version(MODEL, str(info.version.version))
    metrics = client.get_logged_model(versions.model_id_of(version)).metrics
    return {str(m.dataset_name): m.value for m in metrics or () if m.key == "score/dino"}


def test_later_scores_stand_beside_those_of_the_registration(
    tracking, run, tiny_sd, tmp_path
) -> None:
    info = registered(tracking, run, tiny_sd, tmp_path)
    scores = later("live", 0.7)
    assert rescores.recorded(info, scores.harness) is None
    for _ in range(2):  # a kill may repeat it
        rescores.record(tracking, info, scores)
    after = versions.get_version(tracking, name=MODEL, version=1)
    assert rescores.recorded(after, scores.harness) == scores.rows[0]
    assert after.scores == info.scores
    assert after.intervals == info.intervals
    assert after.tags.items() >= info.tags.items()
    assert model_scores(after, tracking) == {"pocket": 0.4, "live": 0.7}
    files = MlflowClient(tracking.uri).list_artifacts(run.run_id, after.artifact_folder)
    label = rescores.label(scores.harness)
    assert f"versions/1/scores-{label}.json" in [file.path for file in files]
    assert "versions/1/scores.json" in [file.path for file in files]


def test_every_harness_has_its_own_scores(tracking, run, tiny_sd, tmp_path) -> None:
    info = registered(tracking, run, tiny_sd, tmp_path)
    for suite, value in (("live", 0.7), ("objects", 0.6)):
        rescores.record(tracking, info, later(suite, value))
    after = versions.get_version(tracking, name=MODEL, version=1)
    for suite, value in (("live", 0.7), ("objects", 0.6)):
        row = rescores.recorded(after, later(suite, value).harness)
        assert row is not None
        assert row.means()["dino"] == value
    tags = [tag for tag in after.tags if tag.startswith("scores.")]
    assert len(tags) == 2
    assert all(json.loads(after.tags[tag])["name"] == "checkpoint-100" for tag in tags)
