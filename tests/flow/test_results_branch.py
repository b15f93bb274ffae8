"""The branch of results: no change of the checkout, no lost commit, and git's own repositories."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dreambooth_core.errors import StageError
from tasks import results_branch
from tasks.results_branch import BRANCH, Git, merged_lock, open_branch
from tests.flow import workspaces


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return workspaces.run_in(root, "git", *who, *arguments).stdout


def lock_of(*stages: str, text: str = "a") -> str:
    entries = "".join(f"  {stage}:\n    cmd: {text}\n    deps: []\n" for stage in stages)
    return f"schema: '2.0'\nstages:\n{entries}"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A bare repository with one commit of a project."""
    root = tmp_path / "bare.git"
    git(tmp_path, "init", "--quiet", "--bare", "-b", "main", str(root))
    start = clone(root, tmp_path / "start")
    (start / "params.yaml").write_text("a: 1\n")
    git(start, "add", ".")
    git(start, "commit", "--quiet", "-m", "start")
    git(start, "push", "--quiet", "origin", "HEAD:main")
    return root


def clone(bare: Path, target: Path) -> Path:
    git(bare.parent, "clone", "--quiet", str(bare), str(target))
    return target


def opened(root: Path, *, push: bool = False) -> Git:
    return open_branch(root, workspaces.environment(root), push=push)


def contents_of(subject: str, text: str = "a") -> dict[str, str]:
    return {
        "dvc.lock": lock_of(f"train@{subject}", f"select@{subject}", text=text),
        f"results/{subject}.json": f'{{"text": "{text}"}}\n',
    }


def test_subject_replaces_its_own_stages_alone() -> None:
    there = lock_of("train@dog", "train@mug", "validate@mug")
    merged = merged_lock(there, lock_of("train@mug", "train@dog", text="b"), "mug")
    assert merged == (
        "schema: '2.0'\nstages:\n"
        "  train@dog:\n    cmd: a\n    deps: []\n"
        "  train@mug:\n    cmd: b\n    deps: []\n"
    )
    assert merged_lock("", lock_of("train@mug"), "mug") == lock_of("train@mug")


def test_commit_leaves_index_files_and_branch_of_the_user(bare: Path, tmp_path: Path) -> None:
    root = clone(bare, tmp_path / "user")
    (root / "staged.txt").write_text("staged")
    git(root, "add", "staged.txt")
    (root / "params.yaml").write_text("a: 2\n")
    before = git(root, "status", "--porcelain", "--branch"), git(root, "diff", "--cached")
    assert results_branch.commit(opened(root), "mug", contents_of("mug"))
    assert not results_branch.commit(opened(root), "mug", contents_of("mug"))
    assert (git(root, "status", "--porcelain", "--branch"), git(root, "diff", "--cached")) == before
    assert git(root, "show", f"{BRANCH}:params.yaml") == "a: 1\n"
    assert git(root, "show", f"{BRANCH}:results/mug.json") == '{"text": "a"}\n'
    assert git(root, "log", "--format=%s", f"main..{BRANCH}") == "Record a run of mug\n"


def test_eight_workers_of_two_clones_lose_no_result(bare: Path, tmp_path: Path) -> None:
    roots = [clone(bare, tmp_path / name) for name in ("one", "two")]
    subjects = [f"subject-{letter}" for letter in "abcdefgh"]

    def work(number: int) -> None:
        subject = subjects[number]
        repository = opened(roots[number % 2], push=True)
        for text in ("old", "new"):
            results_branch.commit(repository, subject, contents_of(subject, text))
            results_branch.push(repository)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    whole = git(bare, "show", f"{BRANCH}:dvc.lock")
    assert whole == lock_of(
        *(f"{stage}@{subject}" for stage in ("select", "train") for subject in subjects),
        text="new",
    )
    assert git(bare, "log", "--format=%s", f"main..{BRANCH}").count("\n") == 16


def test_failed_push_keeps_the_commit_for_the_next(bare: Path, tmp_path: Path) -> None:
    root, other = clone(bare, tmp_path / "one"), clone(bare, tmp_path / "two")
    secret = "http://user:planted-secret@127.0.0.1:9/repository.git"
    git(root, "remote", "set-url", "origin", secret)
    repository = opened(root, push=True)
    results_branch.commit(repository, "mug", contents_of("mug"))
    with pytest.raises(StageError) as caught:
        results_branch.push(repository)
    assert "planted-secret" not in str(caught.value)
    results_branch.commit(opened(other, push=True), "dog", contents_of("dog"))
    results_branch.push(opened(other, push=True))
    git(root, "remote", "set-url", "origin", str(bare))
    results_branch.commit(repository, "cat", contents_of("cat"))
    results_branch.push(repository)
    assert git(bare, "ls-tree", "--name-only", BRANCH, "results/").split() == [
        "results/cat.json", "results/dog.json", "results/mug.json",
    ]  # fmt: skip


def test_branch_that_is_checked_out_is_refused(bare: Path, tmp_path: Path) -> None:
    root = clone(bare, tmp_path / "user")
    git(root, "switch", "--quiet", "-c", BRANCH)
    with pytest.raises(StageError, match="is checked out"):
        opened(root)
    git(root, "switch", "--quiet", "main")
    opened(root)


def test_folder_without_commit_or_remote_is_refused_with_the_setting(tmp_path: Path) -> None:
    root = tmp_path / "new"
    root.mkdir()
    with pytest.raises(StageError, match=r"has no git commit.*runtime\.commit_results"):
        opened(root)
    git(root, "init", "--quiet")
    (root / "a").write_text("a")
    git(root, "add", "a")
    git(root, "commit", "--quiet", "-m", "start")
    opened(root)
    with pytest.raises(StageError, match="has no remote origin"):
        opened(root, push=True)


def test_project_in_a_subfolder_commits_below_it(bare: Path, tmp_path: Path) -> None:
    root = clone(bare, tmp_path / "user") / "projects" / "photos"
    root.mkdir(parents=True)
    results_branch.commit(opened(root), "mug", contents_of("mug"))
    results_branch.commit(opened(root), "dog", contents_of("dog"))
    lock = git(root, "show", f"{BRANCH}:projects/photos/dvc.lock")
    assert lock.count("train@") == 2


def test_worker_without_a_name_commits(bare: Path, tmp_path: Path) -> None:
    root = clone(bare, tmp_path / "user")
    env = {**workspaces.environment(root), "HOME": str(tmp_path), "GIT_CONFIG_GLOBAL": "/dev/null"}
    git(root, "config", "user.useConfigOnly", "true")
    results_branch.commit(open_branch(root, env, push=False), "mug", contents_of("mug"))
    assert git(root, "log", "-1", "--format=%an", BRANCH) == "dreambooth\n"
