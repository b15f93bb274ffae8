from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from PIL import Image

from dreambooth_core.errors import RegistryError, SettingsError
from dreambooth_core.registry import logged_models, runs, sink, store_opening
from dreambooth_core.registry.sink import MlflowSink, RunSpec
from dreambooth_core.registry.tracking import Tracking, resolve_tracking
from dreambooth_core.workspace import Workspace
from tests.unit.registry import examples
from tests.unit.registry.examples import MODEL

SPEC = RunSpec(experiment=MODEL, fingerprint="a" * 64, name="full")


def history(tracking: Tracking, run_id: str, key: str) -> list[tuple[int, float]]:
    client = MlflowClient(tracking.uri)
    return [(entry.step, entry.value) for entry in client.get_metric_history(run_id, key)]


def run_of(tracking: Tracking):
    found = runs.find_run(tracking, experiment=MODEL, fingerprint="a" * 64)
    assert found is not None
    return MlflowClient(tracking.uri).get_run(found.run_id)


# ---- where MLflow is ----------------------------------------------------------------------------


def test_without_a_uri_the_store_is_in_the_workspace(tmp_path) -> None:
    there = resolve_tracking(Workspace(tmp_path))
    assert there.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert there.artifact_root == tmp_path / "mlartifacts"


def test_a_relative_sqlite_path_is_relative_to_the_workspace(tmp_path) -> None:
    there = resolve_tracking(Workspace(tmp_path), uri="sqlite:///runs/mlflow.db")
    assert there.uri == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_a_server_keeps_the_files_itself(tmp_path) -> None:
    there = resolve_tracking(Workspace(tmp_path), uri="http://127.0.0.1:5000/")
    assert (there.uri, there.artifact_root) == ("http://127.0.0.1:5000", None)


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "databricks"])
def test_unsupported_store_raises_with_the_fix(tmp_path, uri) -> None:
    with pytest.raises(SettingsError, match="unset it to use"):
        resolve_tracking(Workspace(tmp_path), uri=uri)


def test_unreachable_server_raises_within_seconds_with_the_fix(tmp_path) -> None:
    nobody = resolve_tracking(Workspace(tmp_path), uri="http://ada:secret@127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(RegistryError, match=r"is unreachable.*dreambooth up") as caught:
        runs.find_run(nobody, experiment=MODEL, fingerprint="a")
    assert time.monotonic() - began < store_opening.TIMEOUT_S + 2
    assert "secret" not in str(caught.value)


# ---- runs ---------------------------------------------------------------------------------------


def test_a_run_is_found_again_by_its_fingerprint(tracking) -> None:
    first = runs.find_or_create_run(tracking, experiment=MODEL, fingerprint="a", name="x")
    again = runs.find_or_create_run(tracking, experiment=MODEL, fingerprint="a", name="y")
    other = runs.find_or_create_run(tracking, experiment=MODEL, fingerprint="b", name="z")
    assert (first.created, again.created) == (True, False)
    assert first.run_id == again.run_id != other.run_id
    assert first.experiment_id == other.experiment_id


def test_two_processes_share_one_run_in_a_new_store(tmp_path) -> None:
    program = f"""
import sys
from pathlib import Path
from dreambooth_core.registry import runs
from dreambooth_core.registry.tracking import resolve_tracking
from dreambooth_core.workspace import Workspace
tracking = resolve_tracking(Workspace(Path({str(tmp_path)!r})))
print("ready", flush=True)
sys.stdin.readline()
run = runs.find_or_create_run(tracking, experiment="{MODEL}", fingerprint="a", name="x")
sys.stdout.write(run.run_id)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(found) == 1
    assert len(found.pop()) == 32


def test_a_deleted_experiment_comes_back_instead_of_failing_the_run(tracking, run) -> None:
    MlflowClient(tracking.uri).delete_experiment(run.experiment_id)
    again = runs.find_or_create_run(tracking, experiment=MODEL, fingerprint="new", name="x")
    assert again.experiment_id == run.experiment_id


def test_params_are_written_once_and_changes_are_ignored(tracking, run) -> None:
    runs.log_params(tracking, run, {"train": {"learning_rate": 5e-6, "lora": {"rank": 4}}})
    runs.log_params(tracking, run, {"train": {"learning_rate": 1.0}, "data": {"resolution": 64}})
    params = MlflowClient(tracking.uri).get_run(run.run_id).data.params
    assert params == {
        "train.learning_rate": "5e-06",
        "train.lora.rank": "4",
        "data.resolution": "64",
    }


def test_data_set_recorded_twice_is_one_input(tracking, run, photos) -> None:
    for _ in range(2):
        runs.log_dataset(
            tracking, run, name="mug", folder=str(photos), sha256="d" * 64, context="instance"
        )
    found = MlflowClient(tracking.uri).get_run(run.run_id).inputs
    assert found is not None
    inputs = found.dataset_inputs
    assert [(i.dataset.name, i.dataset.digest) for i in inputs] == [("mug", "d" * 36)]
    assert inputs[0].tags[0].value == "instance"


# ---- scores -------------------------------------------------------------------------------------


def record(tracking, run, *, suite: str = "pocket", grid: Path | None = None) -> dict[str, str]:
    return logged_models.record_scores(
        tracking,
        run,
        checkpoints=[examples.checkpoint(step) for step in (50, 100)],
        scores=examples.scores(50, 100, suite=suite),
        grid=grid,
    )


def test_recording_scores_twice_adds_no_rows_and_no_numbers(tracking, run, tmp_path) -> None:
    grid = tmp_path / "grid.png"
    Image.new("RGB", (64, 64), "red").save(grid)
    first = record(tracking, run, grid=grid)
    assert record(tracking, run, grid=grid) == first
    client = MlflowClient(tracking.uri)
    rows = client.search_logged_models([run.experiment_id])
    assert sorted(row.name for row in rows) == ["checkpoint-100", "checkpoint-50"]
    for row in rows:
        keys = [metric.key for metric in row.metrics or ()]
        assert len(keys) == len(set(keys)) == 15
    assert history(tracking, run.run_id, "score/dino") == [(0, 0.3), (50, 0.35), (100, 0.4)]
    assert history(tracking, run.run_id, "real/dino") == [(0, 0.9)]
    pictures = [f.path for f in client.list_artifacts(run.run_id, "images")]
    assert len([path for path in pictures if path.endswith(".png")]) == 1


def test_scores_of_another_harness_do_not_replace_the_old_ones(tracking, run) -> None:
    record(tracking, run)
    models = record(tracking, run, suite="objects")
    model = MlflowClient(tracking.uri).get_logged_model(models["checkpoint-50"])
    dino = [metric for metric in model.metrics or () if metric.key == "score/dino"]
    assert {metric.dataset_name for metric in dino} == {"pocket", "objects"}


def test_half_created_row_is_completed_after_a_kill(tracking, run) -> None:
    client = MlflowClient(tracking.uri)
    half = logged_models._create(client, run, examples.checkpoint(50))
    assert half.status == LoggedModelStatus.PENDING
    models = record(tracking, run)
    assert models["checkpoint-50"] == half.model_id
    assert client.get_logged_model(half.model_id).status == LoggedModelStatus.READY


def test_run_names_its_user_and_its_source(tracking, run) -> None:
    tags = MlflowClient(tracking.uri).get_run(run.run_id).data.tags
    assert tags["mlflow.source.name"] == "dreambooth"
    assert tags["mlflow.user"]


def test_experiment_opens_in_the_view_of_training_runs(tracking) -> None:
    client = MlflowClient(tracking.uri)
    older = client.create_experiment("older")
    for name in ("older", "newer"):
        runs.experiment_id(tracking, name)
        found = client.get_experiment_by_name(name)
        assert found is not None
        kind = found.tags["mlflow.experimentKind"]
        assert kind == "custom_model_development"
    assert runs.experiment_id(tracking, "older") == older


def test_the_best_checkpoint_stands_in_the_run_with_the_rule(tracking, run) -> None:
    for _ in range(2):
        logged_models.record_selection(
            tracking, run, selection=examples.selection(50), scores=examples.scores(50, 100)
        )
    data = MlflowClient(tracking.uri).get_run(run.run_id).data
    assert data.metrics["best/step"] == 50
    assert data.metrics["best/dino"] == 0.35
    assert data.tags["dreambooth.best"] == "checkpoint-50"
    assert data.tags["dreambooth.rule"] == "highest DINO of those"
    assert len(history(tracking, run.run_id, "best/step")) == 1


# ---- the sink -----------------------------------------------------------------------------------


def test_sink_writes_every_number_and_ends_the_run(tracking) -> None:
    writer = MlflowSink(tracking, SPEC)
    for step in range(1, 21):
        writer.metrics({"loss": 1 / step}, step=step)
    writer.close(status="FINISHED")
    run = run_of(tracking)
    assert run.info.status == "FINISHED"
    written = history(tracking, run.info.run_id, "loss")
    assert written == [(step, 1 / step) for step in range(1, 21)]


def test_a_rerun_after_a_kill_continues_the_run_without_doubles(tracking) -> None:
    first = MlflowSink(tracking, SPEC)
    for step in (1, 2, 3):
        first.metrics({"loss": 0.5 / step}, step=step)
    first.close(status="KILLED")
    assert run_of(tracking).info.status == "KILLED"
    second = MlflowSink(tracking, SPEC)  # from the resume state of step 1
    for step in (2, 3, 4):
        second.metrics({"loss": 0.5 / step}, step=step)
    second.close(status="FINISHED")
    run = run_of(tracking)
    assert run.info.status == "FINISHED"
    written = history(tracking, run.info.run_id, "loss")
    assert written == [(step, 0.5 / step) for step in (1, 2, 3, 4)]


def test_a_sink_that_was_given_nothing_makes_no_run(tracking) -> None:
    MlflowSink(tracking, SPEC).close(status="FINISHED")
    assert runs.find_run(tracking, experiment=MODEL, fingerprint="a" * 64) is None


def test_unreachable_server_costs_one_warning_and_no_time(tmp_path, caplog) -> None:
    nobody = resolve_tracking(Workspace(tmp_path), uri="http://127.0.0.1:9")
    writer = MlflowSink(nobody, SPEC)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        for step in range(1000):
            writer.metrics({"loss": 1.0}, step=step)
        assert time.monotonic() - began < 1
        writer.close(status="FINISHED")
    warnings = [r for r in caplog.records if "wait until MLflow answers again" in r.getMessage()]
    assert len(warnings) == 1
    assert "is unreachable" in warnings[0].getMessage()


def test_run_of_this_workspace_that_nobody_trains_is_not_left_running(tracking, run) -> None:
    client = MlflowClient(tracking.uri)
    other = runs.find_or_create_run(tracking, experiment=MODEL, fingerprint="b", name="x")
    client.set_tag(other.run_id, runs.WORKSPACE, "other-machine:/home/ada/project")
    runs.end_abandoned(tracking, experiment=MODEL)
    assert client.get_run(run.run_id).info.status == "KILLED"
    assert client.get_run(other.run_id).info.status == "RUNNING"
    runs.end_abandoned(tracking, experiment="nothing-yet")


def test_missing_steps_of_a_curve_are_completed_once(tracking, run) -> None:
    first = MlflowSink(tracking, SPEC)
    first.metrics({"loss": 0.1 + 0.2}, step=10)
    first.close(status="FINISHED")
    for _ in range(2):
        runs.complete_curves(tracking, run, {10: {"loss": 0.3}, 20: {"loss": 0.2, "norm": 1.0}})
    assert history(tracking, run.run_id, "loss") == [(10, 0.1 + 0.2), (20, 0.2)]
    assert history(tracking, run.run_id, "norm") == [(20, 1.0)]


def test_a_sink_watches_the_machine_while_the_work_runs(tracking) -> None:
    spec = RunSpec(experiment=MODEL, fingerprint="a" * 64, name="x", system_metrics_every_s=1)
    writer = MlflowSink(tracking, spec)
    writer.metrics({"loss": 1.0}, step=1)
    time.sleep(sink.FLUSH_EVERY_S + 1)
    writer.close(status="FINISHED")
    metrics = run_of(tracking).data.metrics
    assert metrics["system/system_memory_usage_megabytes"] > 0
