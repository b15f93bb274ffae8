"""Which changes of photos ask for a run, and when: settled, not too often, not in quiet hours."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core import config
from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace
from tasks.photo_watch import PhotoChange, PhotoWatch
from tasks.photos import dvc_md5
from tests.flow import workspaces
from tests.paths import ROOT

NOON = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Two subjects with photos; dvc.lock records a run of the mug alone."""
    root = tmp_path / "project"
    root.mkdir()
    workspaces.write_settings(root, ("mug", "dog"))
    for subject in ("mug", "dog"):
        shutil.copytree(ROOT / "examples" / "mug-stripes", photos(root, subject))
    record(root)
    return Workspace(root)


def photos(root: Path, subject: str = "mug") -> Path:
    return root / "data" / "instance" / subject


def record(root: Path) -> None:
    """What DVC records of a run of the mug."""
    text = (
        "schema: '2.0'\nstages:\n  validate@mug:\n    deps:\n    - path: data/instance/mug\n"
        f"      hash: md5\n      md5: {dvc_md5(photos(root))}\n"
    )
    (root / "dvc.lock").write_text(text)


def change(root: Path, text: str, subject: str = "mug") -> PhotoChange:
    (photos(root, subject) / "note.txt").write_text(text)
    return PhotoChange(subject, dvc_md5(photos(root, subject)))


def watch_of(workspace: Workspace, said: list[str] | None = None) -> PhotoWatch:
    """A watch that has looked once."""
    watch = PhotoWatch(workspace, [].append if said is None else said.append)
    assert watch.due(NOON) == []
    return watch


def test_content_counts_and_times_of_files_do_not(workspace: Workspace) -> None:
    watch = watch_of(workspace)
    for path in photos(workspace.root).iterdir():
        os.utime(path, (1, 1))
    assert [watch.due(NOON) for _ in range(3)] == [[], [], []]
    found = change(workspace.root, "new")
    assert [watch.due(NOON) for _ in range(2)] == [[], [found]]


def test_growing_folder_waits_until_two_looks_agree(workspace: Workspace) -> None:
    watch = watch_of(workspace)
    for size in range(1, 4):
        change(workspace.root, "x" * size)
        assert watch.due(NOON) == []
    found = change(workspace.root, "xxx")
    assert watch.due(NOON) == [found]


def test_same_size_and_time_with_other_content_is_not_settled(workspace: Workspace) -> None:
    watch = watch_of(workspace)
    note = photos(workspace.root) / "note.txt"
    for text in ("aaa", "bbb"):  # a copy that sets its size and its time first
        note.write_text(text)
        os.utime(note, (1, 1))
        assert watch.due(NOON) == []
    assert watch.due(NOON) == [PhotoChange("mug", dvc_md5(photos(workspace.root)))]


def test_subject_that_never_ran_and_photos_of_the_last_run_ask_for_none(
    workspace: Workspace,
) -> None:
    watch = watch_of(workspace)
    change(workspace.root, "new", "dog")
    change(workspace.root, "new")
    record(workspace.root)
    assert [watch.due(NOON) for _ in range(3)] == [[], [], []]


def test_change_is_announced_once_and_the_next_after_the_interval(workspace: Workspace) -> None:
    workspaces.change(workspace.root, "runtime.retrain_every_h", 6)
    said: list[str] = []
    watch = watch_of(workspace, said)
    first = change(workspace.root, "first")
    watch.due(NOON)
    watch.note(watch.due(NOON)[0], NOON)
    assert watch.due(NOON + 48 * HOUR) == []  # its run failed: the same photos do not ask again
    second = change(workspace.root, "second")
    again = watch_of(workspace, said)  # also after a restart
    assert again.due(NOON + 5.9 * HOUR) == []
    assert again.due(NOON + 6 * HOUR) == [second]
    assert first.content != second.content
    assert said == [
        "mug: photos changed; a run was asked for",
        "mug: photos changed; the run waits: the last one began less than 6 h ago",
    ]


def test_change_in_quiet_hours_runs_after_them(workspace: Workspace) -> None:
    workspaces.change(workspace.root, "runtime.quiet_hours", "11:00-14:00 UTC")
    said: list[str] = []
    watch = watch_of(workspace, said)
    found = change(workspace.root, "new")
    assert [watch.due(NOON) for _ in range(3)] == [[], [], []]
    assert watch.due(NOON + 2 * HOUR) == [found]
    assert said == ["mug: photos changed; the run waits: quiet hours, 11:00-14:00 UTC"]


def test_null_turns_it_off_and_settings_count_from_the_next_look(workspace: Workspace) -> None:
    watch = watch_of(workspace)
    found = change(workspace.root, "new")
    workspaces.change(workspace.root, "runtime.retrain_every_h", None)
    assert [watch.due(NOON) for _ in range(3)] == [[], [], []]
    workspaces.change(workspace.root, "runtime.retrain_every_h", 1)
    assert [watch.due(NOON) for _ in range(2)] == [[], [found]]
    workspaces.change(workspace.root, "runtime.quiet_hours", "11:00")
    with pytest.raises(SettingsError, match=r"runtime\.quiet_hours: .*not a start and an end"):
        watch.due(NOON)


def test_missing_folder_half_written_lock_file_and_damaged_note_stop_nothing(
    workspace: Workspace,
) -> None:
    (workspace.state / "watch").mkdir(parents=True)
    (workspace.state / "watch" / "announced.json").write_text("{")
    watch = watch_of(workspace)
    shutil.move(photos(workspace.root), workspace.root / "away")
    assert watch.due(NOON) == []
    shutil.move(workspace.root / "away", photos(workspace.root))
    found = change(workspace.root, "new")
    whole = (workspace.root / "dvc.lock").read_text()
    (workspace.root / "dvc.lock").write_text(whole[:60])
    assert [watch.due(NOON) for _ in range(2)] == [[], []]
    (workspace.root / "dvc.lock").write_text(whole)
    assert watch.due(NOON) == [found]


def test_watch_without_a_prefect_server_says_how_to_start_one(workspace: Workspace) -> None:
    env = {**workspaces.environment(workspace.root), "PREFECT_API_URL": ""}
    done = subprocess.run(
        [sys.executable, "-m", "cli", "watch"], cwd=workspace.root, env=env,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no Prefect server runs" in done.stderr
    assert "dreambooth up" in done.stderr


def test_shipped_settings_retrain_and_older_ones_without_the_keys_do_not() -> None:
    assert config.load_settings(ROOT / "params.yaml").runtime.retrain_every_h == 12
    assert config.RuntimeSettings.model_fields["retrain_every_h"].default is None
