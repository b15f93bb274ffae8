"""A checkpoint chosen by hand is registered like any other, and later runs keep it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness

from cli.main import run as command
from dreambooth_core import config
from dreambooth_core.pipeline import StageContext, compare
from dreambooth_core.records import Selection, TrainingRun
from dreambooth_core.workspace import Workspace
from flows.train_subject import train_subject
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT, dvc

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore"),  # dozens, all from libraries
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace after one run; its tests run in order."""
    root = tmp_path_factory.mktemp("workspace") / "checkout"
    with prefect_test_harness(server_startup_timeout=300), pytest.MonkeyPatch.context() as patch:
        workspaces.use_environment(root, patch)
        built = workspaces.build(root)
        yield built


def _dreambooth(workspace: Workspace, *words: str) -> int:
    return command(["--workspace", str(workspace.root), *words])


def _error(workspace: Workspace, capfd: pytest.CaptureFixture[str], *words: str) -> str:
    capfd.readouterr()
    assert _dreambooth(workspace, *words) != 0
    return capfd.readouterr().err


def _run(workspace: Workspace) -> dict:
    return train_subject(SUBJECT, str(workspace.root))


def _versions(workspace: Workspace) -> list:
    env = workspaces.environment(workspace.root)
    view = config.load_view(workspace, SUBJECT)
    return compare.side_by_side(StageContext(view, workspace.places(SUBJECT), env=env))


def test_choice_before_the_first_run_is_refused(workspace: Workspace, capfd) -> None:
    said = _error(workspace, capfd, "choose", SUBJECT, "2", "--why", "nicer")
    assert "mug has no scored checkpoints yet; what to do: dreambooth run mug" in said


def test_wrong_choices_are_refused_and_change_nothing(workspace: Workspace, capfd) -> None:
    _run(workspace)
    before = workspace.params.read_bytes()
    refused = {
        (
            "choose",
            SUBJECT,
            "3",
            "--why",
            "x",
        ): "no checkpoint was scored at this step; found: 3; allowed: 2, 4",
        (
            "choose",
            SUBJECT,
            "0",
            "--why",
            "x",
        ): "no checkpoint was scored at this step; found: 0; allowed: 2, 4",
        ("choose", SUBJECT, "2", "--why", "  "): "the reason is empty",
        ("choose", SUBJECT, "2", "--why", "a\nb"): "a reason is one line of at most 500",
        ("choose", "cup", "2", "--why", "x"): "cup",
        (
            "choose",
            SUBJECT,
            "2",
            "--why",
            "x",
            "--if-weights",
            "0123",
        ): "another training has replaced checkpoint-2 meanwhile, so nothing was chosen",
        ("choose", SUBJECT): "choose takes a step or --by-rule; allowed: 2, 4, or --by-rule",
        ("choose", SUBJECT, "--by-rule"): "so the rule selects already",
    }
    for words, sentence in refused.items():
        assert sentence in _error(workspace, capfd, *words)
    assert workspace.params.read_bytes() == before


def test_chosen_checkpoint_becomes_a_version_with_the_reason(workspace: Workspace) -> None:
    by_rule = Selection.read(workspace.stage_dir(SUBJECT, "select"))
    step = next(one.step for one in by_rule.ranked if one.name != by_rule.best)
    training = TrainingRun.read(workspace.stage_dir(SUBJECT, "train"))
    seen = next(c.sha256 for c in training.checkpoints if c.name == f"checkpoint-{step}")
    words = ("choose", SUBJECT, str(step), "--why", "the handle: right", "--if-weights", seen)
    assert _dreambooth(workspace, *words) == 0
    summary = _run(workspace)
    ran = {stage["stage"] for stage in summary["stages"] if not stage["skipped"]}
    assert ran == {"select", "confirm", "register", "compare", "report"}
    assert summary["selection"]["best"] == f"checkpoint-{step}"
    assert "by hand: the handle: right." in summary["selection"]["rule"]
    version = _versions(workspace)[-1]
    assert (version.version.version, version.version.checkpoint) == (2, f"checkpoint-{step}")
    assert version.tags["chosen.why"] == "the handle: right"
    assert {"chosen.who", "chosen.when"} <= version.tags.keys()
    assert "choice" not in version.settings["subject"]
    page = workspace.places(SUBJECT).report_page.read_text()
    assert "by hand: the handle: right" in page
    train = workspace.stage_dir(SUBJECT, "train")
    assert [path.name for path in sorted(train.glob("checkpoint-*"))] == [f"checkpoint-{step}"]


def test_rerun_keeps_the_choice(workspace: Workspace) -> None:
    chosen = Selection.read(workspace.stage_dir(SUBJECT, "select"))
    assert all(s["skipped"] for s in _run(workspace)["stages"] if s["stage"] != "compare")
    dvc(workspace.root, "repro", "--force", "--single-item", f"select@{SUBJECT}")
    assert Selection.read(workspace.stage_dir(SUBJECT, "select")) == chosen
    assert dvc(workspace.root, "status", "--json").stdout.strip() == "{}"


def test_choice_taken_back_returns_to_the_first_version(workspace: Workspace) -> None:
    assert _dreambooth(workspace, "choose", SUBJECT, "--by-rule") == 0
    assert "choice: null" in workspace.params.read_text()
    summary = _run(workspace)
    assert summary["version"]["version"] == 1
    assert len(_versions(workspace)) == 2


def test_choice_of_other_weights_has_lapsed(workspace: Workspace) -> None:
    step = Selection.read(workspace.stage_dir(SUBJECT, "select")).ranked[-1].step
    assert _dreambooth(workspace, "choose", SUBJECT, str(step), "--why", "nicer") == 0
    workspaces.change(workspace.root, "train.seed", 43)
    selection = _run(workspace)["selection"]
    assert "by hand was made for other weights; it has lapsed." in selection["rule"]
    assert "chosen.who" not in _versions(workspace)[-1].tags
