"""The flow on tiny models in Prefect's test harness, mixed with DVC in both directions."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from cli.flow_runs import FlowRunLog
from dreambooth_core import config, files
from dreambooth_core.errors import StageError
from dreambooth_core.records import TrainingRun
from dreambooth_core.waiting import wait_until
from dreambooth_core.workspace import STAGES, Workspace
from flows.train_subject import train_subject
from tasks import run_progress
from tasks.run import subject_run
from tasks.stage_guard import bring_up_to_date
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT, dvc

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore"),  # dozens, all from libraries
]


@pytest.fixture(scope="module")
def harness() -> Iterator[None]:
    """A Prefect server for the tests."""
    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One workspace for the module; its tests run in order."""
    return workspaces.build(tmp_path_factory.mktemp("workspace") / "checkout")


def test_a_run_knows_its_page_on_a_server_that_stays(harness: None, prepared: Workspace) -> None:
    def page(env: dict[str, str]) -> str | None:
        with subject_run(SUBJECT, prepared.root, env) as run:
            return run.context("register").flow_run

    @flow
    def pages() -> tuple[str | None, str | None]:
        env = workspaces.environment(prepared.root)
        env.pop("PREFECT_API_URL", None)
        api = PREFECT_API_URL.value()
        return page(env), page({**env, "PREFECT_API_URL": str(api)})

    of_a_run, of_a_server = pages()
    assert of_a_run is None
    assert of_a_server is not None
    assert "/flow-run/" in of_a_server


def _run(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    workspaces.use_environment(workspace.root, monkeypatch)
    return train_subject(SUBJECT, str(workspace.root))


@pytest.fixture(scope="module")
def first(harness: None, prepared: Workspace) -> dict[str, Any]:
    """The summary of the first run."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return _run(prepared, monkeypatch)


def test_first_run_runs_every_stage_and_registers_version_1(first: dict[str, Any]) -> None:
    assert [s["stage"] for s in first["stages"]] == [*STAGES[:-1], "compare", "report"]
    assert not any(s["skipped"] for s in first["stages"])
    assert first["version"]["version"] == 1
    assert [row["name"] for row in first["scores"]["rows"]] == [
        *("step 0", "checkpoint-2", "checkpoint-4", "real")
    ]


def test_artifacts_show_pictures_and_describe_themselves(first: dict[str, Any]) -> None:
    with get_client(sync_client=True) as client:
        shown = {a.key: a for a in client.read_artifacts() if a.key}
    names = ("gate-report", "scores", "grid", "verdict", "page")
    assert set(shown) == {f"{SUBJECT}-{name}" for name in names}
    assert all(artifact.description for artifact in shown.values())
    assert "](data:image/webp;base64," in str(shown[f"{SUBJECT}-grid"].data)
    assert not any("file://" in str(artifact.data) for artifact in shown.values())
    assert first["report"] in str(shown[f"{SUBJECT}-page"].data)


def test_every_line_of_the_log_names_run_subject_and_stage(
    first: dict[str, Any], prepared: Workspace
) -> None:
    lines = prepared.run_log(SUBJECT).read_text().splitlines()
    start = rf"\S+\+00:00 (INFO|WARNING) run=[0-9a-f-]{{36}} subject={SUBJECT} (stage=(\S+) )?"
    found = [re.match(start, line) for line in lines]
    assert all(found), lines
    assert {each[3] for each in found if each} == {None, *STAGES, "compare"}
    assert lines[-1].endswith("the run is complete")
    scored = re.search(r"stage=train step=(\d+) checkpoint-(\d+), ", "\n".join(lines))
    assert scored is not None
    assert scored[1] == scored[2]
    assert run_progress.read(prepared, SUBJECT) is None


def test_progress_is_an_artifact_until_the_server_is_gone(harness: None) -> None:
    @flow
    def report() -> None:
        show = run_progress.ProgressArtifact("a_mug").progress("train")
        show(1, 4, "loss 0.5")
        show(4, 4, "loss 0.4")

    report()
    with get_client(sync_client=True) as client:
        shown = {a.key: a for a in client.read_artifacts() if a.key}["a-mug-train-progress"]
    assert (shown.type, shown.data, shown.description) == ("progress", 100, "4 of 4 loss 0.4")
    gone: Any = {
        PREFECT_API_URL: "http://127.0.0.1:9/api",
        PREFECT_CLIENT_MAX_RETRIES: 0,
    }
    with temporary_settings(gone):
        show = run_progress.ProgressArtifact("a_mug").progress("train")
        show(1, 4)
        show(4, 4)


def test_one_line_is_printed_for_each_state_of_a_flow_run(harness: None) -> None:
    @flow(name="short", flow_run_name="short run")
    def short(*, fails: bool) -> None:
        time.sleep(1)
        if fails:
            raise ValueError("no such thing")

    lines: list[str] = []
    short(fails=False)
    log = FlowRunLog(str(PREFECT_API_URL.value()), "local", lines.append)
    with log:
        assert wait_until(lambda: log.is_following, timeout_s=60, every_s=0.1)
        with pytest.raises(ValueError, match="no such thing"):
            short(fails=True)
        assert wait_until(lambda: any("failed" in x for x in lines), timeout_s=60, every_s=0.1)
    assert lines[-1].startswith("short run: failed. ")
    assert "no such thing" in lines[-1]
    assert set(lines[:-1]) <= {"short run: running"}


def test_dvc_has_nothing_to_do_after_a_flow(first: dict[str, Any], prepared: Workspace) -> None:
    assert json.loads(dvc(prepared.root, "status", "--json").stdout) == {}
    assert "Running stage" not in dvc(prepared.root, "repro").stdout


def test_flow_keeps_the_weights_of_the_selected_checkpoint_alone(
    first: dict[str, Any], prepared: Workspace
) -> None:
    folder = prepared.stage_dir(SUBJECT, "train")
    assert [p.name for p in folder.glob("checkpoint-*")] == [first["selection"]["best"]]
    assert len(TrainingRun.read(folder).checkpoints) == 2


def test_second_flow_skips_everything_except_the_comparison(
    first: dict[str, Any], prepared: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = _run(prepared, monkeypatch)
    assert [s["stage"] for s in again["stages"] if not s["skipped"]] == ["compare"]
    assert again["version"] == first["version"]


def test_flow_accepts_outputs_of_another_command(
    first: dict[str, Any], prepared: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = prepared.root / "dvc.lock"
    now = lock.read_text()
    earlier = now.replace("cmd: sh infra/stage.sh", "cmd: python -m dreambooth_core")
    assert earlier.count("cmd: python -m dreambooth_core") == len(STAGES)
    lock.write_text(earlier)
    again = _run(prepared, monkeypatch)
    assert [s["stage"] for s in again["stages"] if not s["skipped"]] == ["compare"]
    assert lock.read_text() == now


def test_run_with_nothing_to_do_imports_no_torch(
    first: dict[str, Any], prepared: Workspace
) -> None:
    code = (
        f"import sys; from cli.main import run; assert run(['run', {SUBJECT!r}]) == 0;"
        "assert 'torch' not in sys.modules"
    )
    workspaces.run_in(prepared.root, sys.executable, "-c", code)


def test_flow_after_dvc_repro_skips_everything_except_the_comparison(
    first: dict[str, Any], prepared: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (prepared.root / "dvc.lock").unlink()
    ran = dvc(prepared.root, "repro", "--no-run-cache").stdout
    assert ran.count("Running stage") == len(STAGES)
    again = _run(prepared, monkeypatch)
    assert [s["stage"] for s in again["stages"] if not s["skipped"]] == ["compare"]
    assert again["version"] == first["version"]


def test_dvc_pull_restores_deleted_outputs_photos_and_cache(
    first: dict[str, Any], prepared: Workspace
) -> None:
    before = files.tree_hashes(prepared.root / "work"), files.tree_hashes(prepared.root / "data")
    dvc(prepared.root, "push")
    assert json.loads(dvc(prepared.root, "status", "--cloud", "--json").stdout) == {}
    for folder in ("work", ".dvc/cache", f"data/instance/{SUBJECT}"):
        shutil.rmtree(prepared.root / folder)
    dvc(prepared.root, "pull")
    assert json.loads(dvc(prepared.root, "status", "--json").stdout) == {}
    after = files.tree_hashes(prepared.root / "work"), files.tree_hashes(prepared.root / "data")
    assert {k: v for k, v in before[0].items() if "/report/" not in k} == after[0]
    assert after[1] == before[1]


@pytest.mark.slow
def test_changed_selection_rule_decides_again_without_training(
    first: dict[str, Any], prepared: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = prepared.places(SUBJECT).log_file("train")
    before = log.read_bytes()
    workspaces.change(prepared.root, "select.max_pres_gain", 1.0)
    again = _run(prepared, monkeypatch)
    ran = [s["stage"] for s in again["stages"] if not s["skipped"]]
    assert ran[0] == "train"  # the rule may end a training early
    assert "select" in ran
    assert log.read_bytes() == before


@pytest.mark.slow
def test_flow_compares_and_reports_a_version_registered_by_dvc_repro(
    first: dict[str, Any], prepared: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspaces.change(prepared.root, "select.max_pres_gain", 0.5)
    dvc(prepared.root, "repro")
    again = _run(prepared, monkeypatch)
    assert [s["stage"] for s in again["stages"] if not s["skipped"]] == ["compare", "report"]


def test_settings_changed_during_a_stage_are_never_recorded(
    first: dict[str, Any], prepared: Workspace
) -> None:
    before = (prepared.root / "dvc.lock").read_text()
    workspaces.change(prepared.root, "select.max_pres_gain", 0.7)

    def change_settings() -> None:
        workspaces.change(prepared.root, "select.max_pres_gain", 0.8)

    with (
        subject_run(SUBJECT, prepared.root, workspaces.environment(prepared.root)) as run,
        pytest.raises(StageError, match=r"select\.max_pres_gain was 0\.7, is 0\.8"),
    ):
        bring_up_to_date(run, "select", change_settings)
    assert (prepared.root / "dvc.lock").read_text() == before


def test_missing_photos_are_restored_from_dvc_cache(
    first: dict[str, Any], prepared: Workspace
) -> None:
    from tasks import photos
    from tasks.dvc import Dvc

    folder = Path(prepared.root / "data" / "instance" / SUBJECT)
    names = sorted(p.name for p in folder.iterdir())
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    client = Dvc(prepared, env=workspaces.environment(prepared.root))
    settings = config.load_view(prepared, SUBJECT)
    assert photos.restore(prepared, settings, client)
    assert sorted(p.name for p in folder.iterdir()) == names
