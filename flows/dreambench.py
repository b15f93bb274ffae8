"""The flow `dreambench`: many subjects, scored as in the DreamBooth paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from dreambooth_core import environment
from dreambooth_core.workspace import find_workspace
from tasks import dreambench as bench_tasks
from tasks import pipeline


@flow(name="dreambench", persist_result=False, task_runner=pipeline.ROW_RUNNER)
def dreambench(
    subjects_root: str,
    out: str = "dreambench",
    subjects: list[str] | None = None,
    ablations: int = 0,
    workspace: str | None = None,
) -> dict[str, Any]:
    """Train and score many subjects, and write tables like those of the DreamBooth paper.

    Args:
        subjects_root: Folder laid out like the paper's data set, relative to the project folder.
        out: Folder of the results, relative to the project folder.
        subjects: Names of the subjects; by default all of the folder.
        ablations: Number of subjects that also train without prior preservation, without a class
            noun and with a wrong one.
        workspace: Project folder; by default the one that the worker runs in.
    """
    root = find_workspace(Path(workspace or "."))
    env = environment.set_defaults(root)
    with bench_tasks.bench_run(
        root, root.joinpath(subjects_root), root.joinpath(out), names=subjects or [],
        num_ablated=ablations,
    ) as bench:  # fmt: skip
        bench_tasks.run_cases(bench, env)
        return bench_tasks.write_tables(bench)
