"""Each stage reads only the dependencies that dvc.yaml names, and writes only its output and the
store.

Python's audit hook sees every file that Python code opens, in the stage's children too; what a
library opens from compiled code (weights) it does not see.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dreambooth_core import config
from dreambooth_core.workspace import STAGES, Workspace
from tasks.inputs import dependencies
from tests.flow import workspaces

SUBJECT = workspaces.SUBJECT
ALWAYS_READ = ("params.yaml", ".state")
ALSO_READ = {"register": ("dvc.lock", ".git")}
ALWAYS_WRITTEN = (".state",)
TRACKER = ("mlartifacts", "mlruns")
TRACKER_FILES = ("mlflow.db", ".aside-mlflow.db")  # with the journals that SQLite puts beside
NO_FILES = ("__editable__",)  # a path hook of editable installs that only looks like a file
ALSO_WRITTEN = {"train": TRACKER, "register": TRACKER}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[str, set[str]]]:
    """A workspace whose stages have run, and what each opened: `r path` and `w path`."""
    root = tmp_path_factory.mktemp("audited")
    workspace = workspaces.build(root / "w")
    seen: dict[str, set[str]] = {}
    for stage in STAGES[:-1]:
        log = root / f"{stage}.log"
        code = (
            "import os, subprocess, sys;"
            f"os.environ['DREAMBOOTH_AUDIT'] = {str(log)!r};"
            f"os.environ['PYTHONPATH'] += ':' + {str(Path(__file__).parent / 'audit')!r};"
            f"sys.exit(subprocess.call([sys.executable, '-m', 'dreambooth_core', {stage!r},"
            f" '--subject', {SUBJECT!r}]))"
        )
        workspaces.run_in(workspace.root, sys.executable, "-c", code)
        seen[stage] = set(log.read_text().splitlines())
    return workspace, seen


def _outside(workspace: Workspace, lines: set[str], mode: str, allowed: list[Path]) -> list[str]:
    """Paths inside the workspace that were opened in `mode` and are below none of `allowed`."""
    paths = {Path(line[2:]) for line in lines if line.startswith(mode)}
    inside = {path for path in paths if path.is_relative_to(workspace.root)}
    inside = {path for path in inside if not path.name.startswith((*TRACKER_FILES, *NO_FILES))}
    strangers = {p for p in inside if not any(p.is_relative_to(a) for a in allowed)}
    return sorted(str(p.relative_to(workspace.root)) for p in strangers if not p.is_dir())


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_a_stage_reads_only_what_dvc_yaml_names(
    opened: tuple[Workspace, dict[str, set[str]]], stage: str
) -> None:
    workspace, seen = opened
    own = workspace.places(SUBJECT).outputs
    names = (*ALWAYS_READ, *ALSO_READ.get(stage, ()), *ALSO_WRITTEN.get(stage, ()))
    allowed = [workspace.root / name for name in names]
    allowed += dependencies(workspace, config.load_view(workspace, SUBJECT), stage)
    allowed += [own / stage, *own.glob(f".aside-{stage}*")]
    strangers = _outside(workspace, seen[stage], "r", allowed)
    assert [s for s in strangers if f"/.aside-{stage}-" not in s] == [], "\n".join(strangers)
    assert seen[stage], "the hook has seen nothing"


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_a_stage_writes_only_its_output_and_the_store(
    opened: tuple[Workspace, dict[str, set[str]]], stage: str
) -> None:
    workspace, seen = opened
    names = (*ALWAYS_WRITTEN, *ALSO_WRITTEN.get(stage, ()))
    allowed = [workspace.root / name for name in names]
    allowed.append(workspace.stage_dir(SUBJECT, stage))
    strangers = _outside(workspace, seen[stage], "w", allowed)
    assert [s for s in strangers if f"/.aside-{stage}-" not in s] == [], "\n".join(strangers)
    assert any(line.startswith("w") for line in seen[stage])
