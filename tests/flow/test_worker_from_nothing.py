"""Workers that start from a clone, run a subject each at once, and leave only pushed results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core import files
from tasks.results_branch import BRANCH
from tests.flow import workspaces

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(1800)]

SUBJECTS = ("mug", "dog")


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return workspaces.run_in(root, "git", *who, *arguments).stdout


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A bare repository with a project of two subjects, and its DVC remote with their photos."""
    bare = tmp_path / "bare.git"
    git(tmp_path, "init", "--quiet", "--bare", "-b", "main", str(bare))
    start = workspaces.build(tmp_path / "start", subjects=SUBJECTS).root
    workspaces.dvc(start, "remote", "modify", "local", "url", str(tmp_path / "dvc-remote"))
    workspaces.change(start, "runtime.commit_results", "push")
    git(start, "add", "-A")
    git(start, "commit", "--quiet", "-m", "settings and models")
    workspaces.dvc(start, "push", "--quiet")
    git(start, "push", "--quiet", str(bare), "HEAD:main")
    return bare


def clone(bare: Path, name: str) -> Path:
    root = bare.parent / name
    git(bare.parent, "clone", "--quiet", str(bare), str(root))
    return root


def start(root: Path, subject: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli", "run", subject], cwd=root,
        env=workspaces.environment(root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def test_two_workers_at_once_leave_all_results_for_a_third(bare: Path) -> None:
    roots = {subject: clone(bare, f"worker-{subject}") for subject in SUBJECTS}
    for root in roots.values():
        workspaces.dvc(root, "pull", "--quiet", "--allow-missing")
    heads = {subject: git(root, "rev-parse", "HEAD") for subject, root in roots.items()}
    runs = {subject: start(root, subject) for subject, root in roots.items()}
    for run in runs.values():
        text, _ = run.communicate()
        assert run.returncode == 0, text
    for subject, root in roots.items():
        assert git(root, "rev-parse", "HEAD") == heads[subject]
        assert git(root, "diff", "--cached", "--name-only") == ""
        scores = json.loads(git(bare, "show", f"{BRANCH}:results/{subject}.json"))
        assert scores["name"] == f"dreambooth-{subject}"
        assert set(scores["scores"]) >= {"dino", "clip_t"}
    assert git(bare, "log", "--format=%s", f"main..{BRANCH}").count("Record a run of") == 2

    third = clone(bare, "third")
    git(third, "merge", "--quiet", f"origin/{BRANCH}")
    workspaces.dvc(third, "pull", "--quiet", "--allow-missing")
    for subject, root in roots.items():
        for stage in ("validate", "select", "confirm"):
            folder = f"work/{subject}/{stage}"
            assert files.tree_hashes(third / folder) == files.tree_hashes(root / folder), folder
        done = workspaces.run_in(
            third, sys.executable, "-m", "cli", "run", subject, "--stage", "confirm", "--json"
        )
        assert all(stage["skipped"] for stage in json.loads(done.stdout)["stages"])
    before = git(bare, "rev-parse", BRANCH)
    again = start(roots["mug"], "mug")
    assert again.communicate()[0] is not None
    assert again.returncode == 0
    assert git(bare, "rev-parse", BRANCH) == before  # nothing new, no empty commit
