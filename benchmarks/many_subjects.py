"""How long the commands that look at a whole project take, by its number of subjects.

    python -m benchmarks.many_subjects [--workspace FOLDER]

Runs one subject on tiny models and copies it, so that every subject is up to date and has a
registered version. Wall-clock time depends on other work on the machine; CPU time hardly. A folder
that exists keeps its subjects, and the result file the numbers of other counts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from ruamel.yaml import YAML

from benchmarks.common import ROOT
from dreambooth_core import files
from tests.flow import workspaces
from tests.flow.workspaces import run_in

FIRST = "zeroth"
NUMBERS = (1, 200)
RESULT = ROOT / "benchmarks" / "results" / "many-subjects.json"

_RETRAIN_ALL = "from flows.retrain_all import retrain_all; assert not retrain_all()['changed']"


def commands(subject: str) -> dict[str, Sequence[str]]:
    """What is measured, in a project with nothing to do."""
    cli = (sys.executable, "-m", "cli")
    return {
        "dreambooth plan": (*cli, "plan", subject, "--json"),
        "dreambooth compare": (*cli, "compare", subject, "--json"),
        "dreambooth status": (*cli, "status", "--json"),
        "retrain-all": (sys.executable, "-c", _RETRAIN_ALL),
        "dvc status": (sys.executable, "-m", "dvc", "status"),
    }


def copy_subject(root: Path, names: Sequence[str]) -> None:
    """Give the project more subjects with the photos, outputs and version of the first."""
    photos = root / "data" / "instance"
    for name in names:
        shutil.copytree(photos / FIRST, photos / name)
        shutil.copytree(root / "work" / FIRST, root / "work" / name)
        pointer = (photos / f"{FIRST}.dvc").read_text()
        (photos / f"{name}.dvc").write_text(pointer.replace(FIRST, name))
    ignored = "".join(f"/{name}\n" for name in names)
    with (photos / ".gitignore").open("a") as stream:
        stream.write(ignored)
    _copy_entries(root / "params.yaml", "subjects", names)
    _copy_entries(root / "dvc.lock", "stages", names)
    _register(root, names)


def _copy_entries(path: Path, section: str, names: Sequence[str]) -> None:
    """Repeat the entries of the first subject in a section of a YAML file."""
    content = YAML(typ="safe").load(path.read_text())
    own = json.dumps({key: own for key, own in content[section].items() if FIRST in key})
    for name in names:
        content[section] |= json.loads(own.replace(FIRST, name))
    writer = YAML()
    writer.default_flow_style = False
    with path.open("w") as stream:
        writer.dump(content, stream)


def _register(root: Path, names: Sequence[str]) -> None:
    """Copy the first subject's version and its alias."""
    uri = f"sqlite:///{root / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    (model,) = client.search_registered_models(f"name LIKE '%{FIRST}'")
    (version,) = client.search_model_versions(f"name='{model.name}'")
    for name in names:
        own = model.name.replace(FIRST, name)
        client.create_registered_model(own, tags=model.tags)
        client.create_model_version(own, "file:///copied", tags=version.tags)
        client.set_registered_model_alias(own, "champion", "1")


def measure(root: Path, command: Sequence[str]) -> dict[str, float]:
    """Seconds of a command, on the clock and of CPU."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run_in(root, *command)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall, s": round(wall, 1), "cpu, s": round(cpu, 1)}


def build(root: Path) -> None:
    """A project whose one subject has run."""
    workspaces.build(root, subjects=(FIRST,))
    run_in(root, sys.executable, "-m", "cli", "run", FIRST)


def measure_all(root: Path, number: int) -> None:
    """Measure a project with this number of subjects, and write each result at once."""
    for name, command in commands(FIRST).items():
        found = measure(root, command) | {"load": round(os.getloadavg()[0], 1)}
        result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        result.setdefault(f"{number} subjects", {})[name] = found
        files.write_json(RESULT, result)
        print(number, name, found, flush=True)


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, help="by default a temporary folder")
    os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "600"
    with tempfile.TemporaryDirectory() as temporary:
        root = parser.parse_args().workspace or Path(temporary) / "project"
        if not root.exists():
            build(root)
        for number in NUMBERS:
            known = len(list((root / "work").iterdir()))
            if known <= number:
                copy_subject(root, [f"subject-{index:03d}" for index in range(known, number)])
                measure_all(root, number)


if __name__ == "__main__":
    main()
