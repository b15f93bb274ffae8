"""The disk space that two runs of the example subject leave, each pushed to a remote.

python -m benchmarks.disk --workspace /tmp/disk
python -m benchmarks.disk --workspace /tmp/disk-all --keep all

Each call replaces its own part of the result file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.common import ROOT
from dreambooth_core import files

SUBJECT = "mug"
FOLDERS = ("work", ".state", ".dvc", ".dvc-remote", "mlartifacts")
SECOND_RATE = 1.9e-4
RESULT = ROOT / "benchmarks" / "results" / "disk.json"
_MIB = 2**20


def main() -> None:
    """Run twice, push each time, and write and print the sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True, help="folder of the new clone")
    parser.add_argument("--keep", choices=("selected", "all"), default="selected")
    arguments = parser.parse_args()
    measured = measure(arguments.workspace, keep=arguments.keep)
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    files.write_json(RESULT, known | {f"keep_checkpoints: {arguments.keep}": measured})
    print(_table(measured))


def measure(root: Path, *, keep: str) -> dict[str, dict[str, float]]:
    """MiB by folder, with each hard link counted once and at every name."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(root)], check=True)
    _set(root, "runtime", "keep_checkpoints", keep)
    _run_and_push(root)
    _set(root, "train", "learning_rate", SECOND_RATE)
    _run_and_push(root)
    sizes = {name: _mib(root / name) for name in FOLDERS}
    total = {kind: round(sum(s[kind] for s in sizes.values()), 1) for kind in ("once", "by_name")}
    return {**sizes, "total": total}


def _run_and_push(root: Path) -> None:
    _call(root, "cli", "run", SUBJECT)
    _call(root, "dvc", "push", "--quiet")


def _call(root: Path, module: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=root,
        env={k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)


def _set(root: Path, section: str, key: str, value: object) -> None:
    yaml, path = YAML(), root / "params.yaml"
    settings = yaml.load(path)
    settings[section][key] = value
    yaml.dump(settings, path)


def _mib(folder: Path) -> dict[str, float]:
    stats = [path.lstat() for path in folder.rglob("*")]
    by_inode = {(stat.st_dev, stat.st_ino): stat.st_blocks * 512 for stat in stats}
    return {
        "once": round(sum(by_inode.values()) / _MIB, 1),
        "by_name": round(sum(stat.st_blocks * 512 for stat in stats) / _MIB, 1),
    }


def _table(measured: dict[str, dict[str, float]]) -> str:
    rows = ["folder          MiB   with links at every name"]
    rows += [f"{n:<12} {s['once']:>7,.1f}   {s['by_name']:>7,.1f}" for n, s in measured.items()]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
