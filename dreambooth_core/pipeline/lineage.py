"""Lineage: the hashes of everything behind a version."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dreambooth_core import config
from dreambooth_core.pipeline.validate import images_digest
from dreambooth_core.records import Manifest, TrainingRun
from dreambooth_core.workspace import STAGES, Places


def data_sha256(places: Places) -> str:
    """One sha256 for the accepted photos."""
    return images_digest(Manifest.read(places.stage_dir("validate")))


def dvc_hashes(root: Path, subject: str) -> dict[str, str]:
    """The hash of each published folder in `dvc.lock`, without stages that are not committed."""
    path = root / "dvc.lock"
    if not path.is_file():
        return {}
    locked = (config.read_yaml(path) or {}).get("stages", {})
    found: dict[str, str] = {}
    for stage in STAGES:
        for out in locked.get(f"{stage}@{subject}", {}).get("outs", ()):
            if out.get("path") == f"work/{subject}/{stage}" and "md5" in out:
                found[stage] = out["md5"]
    return found


def git_commit(root: Path) -> str | None:
    """The commit of the checkout, with a suffix if files differ from it; None outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        described = subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def lineage_names(places: Places, training: TrainingRun) -> dict[str, str]:
    """Lineage as names with hashes, in order, for the page and the model card."""
    base = training.base_model
    names = {
        f"base model {base.name}": base.sha256,
        "photos": data_sha256(places),
        "training": training.fingerprint,
    }
    if training.init_from:
        names[f"initial weights {training.init_from.name}"] = training.init_from.sha256
    if base.revision:
        names["base model commit"] = base.revision
    commit = git_commit(places.root)
    return names | ({"code (git)": commit} if commit else {})
