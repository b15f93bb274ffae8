"""A page shows one version, from that version's records; promotions change all pages."""

import re
import sys
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from dreambooth_core.registry import tracking
from flows.train_subject import train_subject
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT, dvc

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore"),  # dozens, all from libraries
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Version 1, promoted by hand and committed to git; the tests run in order."""
    made = workspaces.build(tmp_path_factory.mktemp("workspace") / "checkout")
    with prefect_test_harness(server_startup_timeout=300):
        run_flow(made)
    command(made, "promote", SUBJECT, "1", "--why", "the handle is right")
    git(made, "add", "-A", "-f", "dvc.lock", "params.yaml")
    git(made, "commit", "--quiet", "-m", "version 1")
    return made


def run_flow(workspace):
    with pytest.MonkeyPatch.context() as patch:
        workspaces.use_environment(workspace.root, patch)
        return train_subject(SUBJECT, str(workspace.root))


def git(workspace, *arguments):
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return workspaces.run_in(workspace.root, "git", *who, *arguments)


def command(workspace, *arguments):
    return workspaces.run_in(workspace.root, sys.executable, "-m", "cli", *arguments)


def text_of(page):
    return " ".join(
        re.sub(r"<(style|script)>.*?</\1>|<[^>]+>", " ", page.read_text(), flags=re.S).split()
    )


def present(workspace):
    return text_of(workspace.places(SUBJECT).report_page)


def kept(workspace, version):
    return text_of(workspace.places(SUBJECT).version_pages / f"{version}.html")


def test_promotion_by_hand_changes_the_page(workspace):
    for text in (present(workspace), kept(workspace, 1)):
        assert "version 1 . Champion Promoted by" in text
        assert "the handle is right" in text


def test_page_of_a_new_version_shows_no_verdict_of_another(workspace):
    workspaces.change(workspace.root, "select.max_pres_gain", 1.0)
    dvc(workspace.root, "repro", f"report@{SUBJECT}")
    text = present(workspace)
    assert "version 2 . Not compared yet" in text
    assert "This version has not been compared yet" in text
    assert f"{SUBJECT}/1" not in text
    assert "version 1 . Champion" in kept(workspace, 1)


def test_comparison_reaches_the_page_of_its_version_alone(workspace):
    with prefect_test_harness(server_startup_timeout=300):
        run_flow(workspace)
    assert f"dreambooth-{SUBJECT}/2 stays a challenger to dreambooth-{SUBJECT}/1" in present(
        workspace
    )
    assert f"{SUBJECT}/2" not in kept(workspace, 1)


def test_page_shows_both_sides_of_its_comparison_alone(workspace):
    assert f"dreambooth-{SUBJECT}/1 champion dreambooth-{SUBJECT}/2 this version" in present(
        workspace
    )
    assert f"{SUBJECT}/1 champion" not in kept(workspace, 1)


def test_page_says_when_its_version_was_trained(workspace):
    assert re.search(r"Trained \d+ \w+ \d{4}, \d\d:\d\d UTC MLflow run full-", present(workspace))


def test_page_of_restored_outputs_shows_their_version(workspace):
    git(workspace, "checkout", "--quiet", "params.yaml", "dvc.lock")
    dvc(workspace.root, "checkout")
    command(workspace, "report", SUBJECT)
    assert present(workspace) == kept(workspace, 1)
    assert "version 1 . Champion Promoted by" in present(workspace)
    assert f"{SUBJECT}/2" not in present(workspace)


def test_promotion_changes_the_pages_of_both_versions(workspace):
    command(workspace, "promote", SUBJECT, "2", "--why", "sharper")
    assert "version 1 . Former champion" in present(workspace)
    assert "version 2 . Champion Promoted by" in kept(workspace, 2)
    assert "sharper" in kept(workspace, 2)
    command(workspace, "rollback", SUBJECT)
    assert "version 1 . Champion Restored by" in present(workspace)
    assert "version 2 . Former champion Rolled back by" in kept(workspace, 2)


def test_page_shows_the_settings_of_its_version_not_the_present_ones(workspace):
    before = present(workspace)
    workspaces.change(workspace.root, "train.learning_rate", 0.123)
    command(workspace, "report", SUBJECT)
    assert present(workspace) == before
    git(workspace, "checkout", "--quiet", "params.yaml")


def test_selection_that_is_not_registered_is_no_version(workspace):
    workspaces.change(workspace.root, "select.max_pres_gain", 0.8)
    dvc(workspace.root, "repro", f"select@{SUBJECT}")
    command(workspace, "report", SUBJECT)
    assert "Not registered" in present(workspace)
    assert f"dreambooth-{SUBJECT}" not in present(workspace)
    assert "version 1 . Champion" in kept(workspace, 1)


def test_run_of_each_version_has_its_page_as_artifact(workspace):
    from mlflow import MlflowClient

    client = MlflowClient(tracking.resolve_tracking(workspace).uri)
    for version in (1, 2):
        run = client.get_model_version(f"dreambooth-{SUBJECT}", str(version)).run_id
        assert run is not None
        file = client.download_artifacts(run, f"versions/{version}/report.html")
        page = workspace.places(SUBJECT).version_pages / f"{version}.html"
        assert Path(file).read_bytes() == page.read_bytes()
