"""`dreambooth metrics`: what Prometheus reads, and the dashboard and alerts that use it."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cli import metrics
from dreambooth_core import locks
from dreambooth_core.config import read_yaml
from dreambooth_core.errors import SettingsError
from dreambooth_core.logs import log_fields, timed_line, with_fields
from dreambooth_core.supervision import free_port
from dreambooth_core.training.progress import numbers_in, read_log, start_line
from dreambooth_core.workspace import Workspace
from tasks.run_progress import noted, read
from tests.paths import ROOT

MONITORING = ROOT / "infra" / "monitoring"
LINE = "loss 0.1250  lr 2.00e-06  3.50 steps/s  1:20 left"


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Values by metric name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A project with the shipped settings, in which nothing has run."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    return Workspace(tmp_path)


def test_a_run_in_progress_shows_stage_loss_rate_and_memory(workspace: Workspace) -> None:
    with (
        locks.hold(workspace.subject_lock("mug"), timeout_s=0),
        noted(workspace, subject="mug", run="1f2c") as note,
    ):
        note.progress("train")(120, 600, LINE)
        found = samples(metrics.text_of(workspace, {}))
    assert found["dreambooth_run_active", "mug"] == 1
    assert found["dreambooth_stage_done", "train", "mug"] == 120
    assert found["dreambooth_stage_total", "train", "mug"] == 600
    assert found["dreambooth_training_loss", "mug"] == 0.125
    assert found["dreambooth_training_learning_rate", "mug"] == 2e-6
    assert found["dreambooth_training_steps_per_second", "mug"] == 3.5
    assert found["dreambooth_training_left_seconds", "mug"] == 80
    assert found["dreambooth_run_memory_bytes", "mug"] > 1e6
    assert found["dreambooth_progress_age_seconds", "mug"] < 60
    after = samples(metrics.text_of(workspace, {}))
    assert after["dreambooth_run_active", "mug"] == 0
    assert ("dreambooth_training_loss", "mug") not in after


def test_the_note_of_a_killed_run_counts_for_nothing(workspace: Workspace) -> None:
    with locks.hold(workspace.subject_lock("mug"), timeout_s=0):
        path = workspace.run_progress("mug")
        with noted(workspace, subject="mug", run="") as note:
            note.progress("cache")(1, 2)
            kept = path.read_bytes()
        path.write_bytes(kept)
        found = read(workspace, "mug")
        assert found is not None
        assert (found.stage, found.done, found.process) == ("cache", 1, os.getpid())
    assert read(workspace, "mug") is None
    path.write_text("{")
    with locks.hold(workspace.subject_lock("mug"), timeout_s=0):
        assert read(workspace, "mug") is None


def test_numbers_of_a_progress_line_are_read_back() -> None:
    assert numbers_in(LINE) == {
        "loss": 0.125,
        "learning_rate": 2e-6,
        "steps_per_second": 3.5,
        "seconds_left": 80,
    }
    assert numbers_in("cup.png") == {}


def test_log_gives_the_progress_since_the_last_start() -> None:
    def line(text: str, step: int | None = None) -> str:
        reached = {} if step is None else {"step": str(step)}
        with log_fields(subject="mug", stage="train", **reached):
            return timed_line(with_fields(text))

    log = [
        line(start_line("abc")),
        line(f"step 60/600  {LINE}", 60),
        line(start_line("abc")),
        line("training starts after step 60 of 600"),
        line(f"step 61/600  {LINE}", 61),
        line("checkpoint-120 is saved", 61),
    ]
    assert read_log("\n".join(log), "abc") == [(61, 600, LINE)]
    assert read_log("\n".join(log), "def") == []


def test_served_metrics_are_read_over_http(workspace: Workspace) -> None:
    env = {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}  # nobody listens there
    with (
        metrics.served(workspace, env, port=free_port()) as url,
        urllib.request.urlopen(url, timeout=60) as answer,
    ):
        found = samples(answer.read().decode())
    assert found["dreambooth_disk_free_bytes",] > 0
    assert found["dreambooth_prefect_up",] == 0


def test_taken_port_is_refused_with_advice(workspace: Workspace) -> None:
    port = free_port()
    with (
        metrics.served(workspace, {}, port=port),
        pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{port}") as caught,
        metrics.served(workspace, {}, port=port),
    ):
        pass
    assert "--port" in str(caught.value.hint)


def test_dashboard_and_alerts_use_only_metrics_that_exist(workspace: Workspace) -> None:
    env = {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}
    names = set(re.findall(r"^# TYPE (\S+) gauge", metrics.text_of(workspace, env), re.MULTILINE))
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    alerts = [rule["expr"] for rule in read_yaml(MONITORING / "alerts.yaml")["groups"][0]["rules"]]
    used = {word for text in [*shown, *alerts] for word in re.findall(r"dreambooth_\w+", text)}
    assert used <= names
    hidden = {"dreambooth_training_learning_rate"}
    assert names - used == hidden, "each metric is on the dashboard or in an alert"


def test_notes_are_written_at_most_once_a_second(workspace: Workspace) -> None:
    with noted(workspace, subject="mug", run="") as note:
        show = note.progress("train")
        for step in range(1, 1000):
            show(step, 1000)
        written = json.loads(workspace.run_progress("mug").read_text())
    assert written["done"] < 999
    assert not workspace.run_progress("mug").exists()
