"""Commits the results of finished runs to a branch that no one has checked out.

Git's plumbing writes the commit, so neither the index nor the files of the checkout change. A
commit has the stages of one subject in `dvc.lock`, the `.dvc` file of its photos and its scores in
`results/SUBJECT.json`. Commits of several workers follow one another: whoever comes second puts its
own on top of the other's.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from dreambooth_core.errors import StageError
from dreambooth_core.masking import scrubbed

BRANCH = "dreambooth-results"

_REF = f"refs/heads/{BRANCH}"
_REMOTE = "origin"
_LOCK_FILE = "dvc.lock"
_EMPTY_LOCK = "schema: '2.0'\nstages:\n"
_ENTRY = re.compile(r"^  (?=\S)", re.MULTILINE)
_SUBJECT = "Subject: "
_ATTEMPTS = 30
_TIMEOUT_S = 300.0
_TAKEN = ("[rejected]", "cannot lock ref", "failed to update ref")
"""What git says of a push if another worker was first."""


class Git:
    """Git in a project's folder, which may be a subfolder of the checkout."""

    def __init__(self, root: Path, env: Mapping[str, str]) -> None:
        self._root = root
        kept = {key: value for key, value in env.items() if not key.startswith("GIT_INDEX")}
        self._env = {**kept, "GIT_TERMINAL_PROMPT": "0"}
        self.prefix = self.ask("rev-parse", "--show-prefix") or ""
        if self.ask("var", "GIT_AUTHOR_IDENT") is None:  # a fresh container has no name
            for role in ("AUTHOR", "COMMITTER"):
                self._env |= {
                    f"GIT_{role}_NAME": "dreambooth",
                    f"GIT_{role}_EMAIL": "dreambooth@localhost",
                }

    def run(
        self, *arguments: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> bytes:
        """The output of a command. Raises StageError."""
        done = self._done(arguments, stdin, env or {})
        if done.returncode != 0:
            raise StageError(
                f"`git {' '.join(arguments[:2])}` failed",
                got=self.masked(done.stderr.decode(errors="replace").strip()),
            )
        return done.stdout

    def line(
        self, *arguments: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> str:
        """The output of a command, without white space around it. Raises StageError."""
        return self.run(*arguments, stdin=stdin, env=env).decode().strip()

    def ask(self, *arguments: str) -> str | None:
        """The output of a command as one line, or None if it fails."""
        done = self._done(arguments, None, {})
        return done.stdout.decode().strip() if done.returncode == 0 else None

    def masked(self, text: str) -> str:
        """A message without the password that the address of the remote may have."""
        return scrubbed(text, self.ask("remote", "get-url", _REMOTE) or "")

    def _done(
        self, arguments: tuple[str, ...], stdin: bytes | None, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["git", *arguments], cwd=self._root, env={**self._env, **env}, input=stdin,
            capture_output=True, check=False, timeout=_TIMEOUT_S,
        )  # fmt: skip


def open_branch(root: Path, env: Mapping[str, str], *, push: bool) -> Git:
    """Git, after a check that results can be committed. Raises StageError."""
    hint = "set runtime.commit_results to null, or "
    try:
        git = Git(root, env)
    except OSError:
        raise StageError("git is not installed", hint=f"{hint}install git") from None
    if git.ask("rev-parse", "--verify", "-q", "HEAD") is None:
        raise StageError("the project has no git commit", hint=f"{hint}`git init`, then commit")
    if f"branch {_REF}" in (git.ask("worktree", "list", "--porcelain") or "").splitlines():
        raise StageError(
            f"the branch {BRANCH}, to which runs commit their results, is checked out",
            hint="git switch to another branch, and merge it there",
        )
    if push and git.ask("remote", "get-url", _REMOTE) is None:
        raise StageError(f"git has no remote {_REMOTE}", hint=f"{hint}`git remote add {_REMOTE}`")
    return git


def commit(git: Git, subject: str, contents: Mapping[str, str]) -> bool:
    """Commit the files of a subject to the local branch; False if it has them already.

    `contents` has the text of each file by its path in the project. Raises StageError.
    """
    for _ in _attempts():
        tip = _tip(git, _REF)
        base = tip or git.ask("rev-parse", "--verify", "-q", "@{upstream}") or "HEAD"
        made = _commit_onto(git, base, subject, contents)
        if made is None and tip is not None:
            return False
        new = made or git.line("rev-parse", base)
        if git.ask("update-ref", _REF, new, tip or "0" * len(new)) is not None:
            return made is not None
    raise StageError(f"the branch {BRANCH} could not be updated", hint="run the subject again")


def push(git: Git) -> None:
    """Push the local branch, with its new commits on top of those of other workers.

    Raises StageError; the local branch then keeps them for the next push.
    """
    refused = ""
    for _ in _attempts():
        there = _fetched(git)
        tip = git.line("rev-parse", _REF)
        new = tip if there is None else _replayed(git, tip, there)
        if git.ask("update-ref", _REF, new, tip) is None:
            continue
        try:
            git.run("push", "--quiet", _REMOTE, f"{new}:{_REF}")
        except StageError as error:
            refused = str(error)
            if not any(sign in refused for sign in _TAKEN):
                raise
        else:
            return
    raise StageError(f"the branch {BRANCH} could not be pushed", got=refused)


def merged_lock(there: str, own: str, subject: str) -> str:
    """The dvc.lock `there` with the stages of a subject as in `own`."""
    kept = {name: entry for name, entry in _entries(there).items() if not _is_of(name, subject)}
    mine = {name: entry for name, entry in _entries(own).items() if _is_of(name, subject)}
    return _EMPTY_LOCK + "".join((kept | mine)[name] for name in sorted(kept | mine))


def _entries(lock: str) -> dict[str, str]:
    """The stages of a dvc.lock, each with its text."""
    _, _, stages = lock.partition("\nstages:\n")
    texts = [f"  {text.rstrip()}\n" for text in _ENTRY.split(stages)[1:]]
    return {text.split(":", 1)[0].strip(): text for text in texts}


def _is_of(stage: str, subject: str) -> bool:
    return stage.rpartition("@")[2] == subject


def _commit_onto(git: Git, base: str, subject: str, contents: Mapping[str, str]) -> str | None:
    """A commit on top of `base` with a subject's files; None if `base` has them."""
    with _scratch_index(git, base) as index:
        for path, own in contents.items():
            full = git.prefix + path
            there = git.ask("show", f"{base}:{full}") or ""
            text = merged_lock(there, own, subject) if path == _LOCK_FILE else own
            blob = git.line("hash-object", "-w", "--stdin", stdin=text.encode())
            git.run("update-index", "--add", "--cacheinfo", f"100644,{blob},{full}", env=index)
        tree = git.line("write-tree", env=index)
    if tree == git.line("rev-parse", f"{base}^{{tree}}"):
        return None
    message = f"Record a run of {subject}\n\n{_SUBJECT}{subject}\n"
    return git.line("commit-tree", tree, "-p", base, stdin=message.encode())


@contextlib.contextmanager
def _scratch_index(git: Git, base: str) -> Iterator[dict[str, str]]:
    """A temporary index with the files of `base`: that of the checkout stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": os.path.join(folder, "index")}  # noqa: PTH118 - a variable
        git.run("read-tree", base, env=index)
        yield index


def _tip(git: Git, ref: str) -> str | None:
    return git.ask("rev-parse", "--verify", "-q", ref)


def _fetched(git: Git) -> str | None:
    """The tip of the remote's branch, with its objects; None without one. Raises StageError.

    No ref of this repository changes: another worker may fetch at the same time.
    """
    found = git.line("ls-remote", _REMOTE, _REF)
    if not found:
        return None
    git.run("fetch", "--quiet", "--no-write-fetch-head", "--refmap=", _REMOTE, _REF)
    return found.split()[0]


def _replayed(git: Git, tip: str, there: str) -> str:
    """The results of the local branch that the remote's lacks, on top of the remote's."""
    new = there
    for commit_id in git.line("rev-list", "--reverse", tip, f"^{there}").split():
        message = git.line("show", "-s", "--format=%B", commit_id)
        if _SUBJECT not in message:
            continue  # a commit of the checkout, on which the branch began
        subject = message.rpartition(_SUBJECT)[2].strip()
        changed = git.line("diff-tree", "--no-commit-id", "--name-only", "-r", commit_id)
        contents = {
            path.removeprefix(git.prefix): git.run("show", f"{commit_id}:{path}").decode()
            for path in changed.splitlines()
        }
        new = _commit_onto(git, new, subject, contents) or new
    return new


def _attempts() -> Iterator[None]:
    for number in range(_ATTEMPTS):
        yield
        time.sleep(random.uniform(0, 0.1 * (number + 1)))
