"""The paths of a workspace, all defined here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.errors import SettingsError

STAGES = (
    *("validate", "class-images", "cache", "train"),
    *("evaluate", "select", "confirm", "register", "report"),
)
"""Every stage, in order; the last one writes a page instead of a record."""

# Paths below the store that a subject's places and the workspace share.
_HASH_CACHE = "hashes.json"
_WORKSPACE_LOCK = Path("locks", "workspace.lock")
_SUBJECT = "subject-"


@dataclass(frozen=True)
class Places:
    """The folders in which the stages of one subject work."""

    root: Path
    """The folder that relative paths of the settings start from."""
    outputs: Path
    """The folder of the stages' outputs."""
    store: Path
    """The folder of everything that survives a kill and is no output."""
    subject: str

    def resolve(self, path: str | Path) -> Path:
        """A path of the settings: absolute as it is, else relative to `root`."""
        return self.root / path

    def stage_dir(self, stage: str) -> Path:
        """The published output of a stage."""
        return self.outputs / stage

    def store_dir(self, stage: str, fingerprint: str) -> Path:
        """The folder in which a stage works; the stage creates it."""
        return self.store / stage / fingerprint

    def log_file(self, stage: str) -> Path:
        """The log of a stage: times, hosts and rates go here, never into outputs."""
        return self.store / "logs" / self.subject / f"{stage}.log"

    @property
    def trackers_dir(self) -> Path:
        """The files of TensorBoard and W&B (`runtime.report_to`), one folder per training."""
        return self.store / "trackers" / self.subject

    @property
    def report_page(self) -> Path:
        """The HTML report of the present outputs."""
        return self.stage_dir("report") / "index.html"

    @property
    def version_pages(self) -> Path:
        """The folder of the reports of all versions, `1.html` for version 1."""
        return self.stage_dir("report") / "versions"

    @property
    def duel(self) -> Path:
        """The pictures of the last comparison with a champion."""
        return self.stage_dir("report") / "comparison"

    @property
    def hash_cache(self) -> Path:
        """The file that caches the sha256 of large files by path, size and time."""
        return self.store / _HASH_CACHE

    @property
    def publish_lock(self) -> Path:
        """The lock held for seconds, around DVC status, publish and DVC commit."""
        return self.store / _WORKSPACE_LOCK


@dataclass(frozen=True)
class Workspace:
    """A checkout (or any folder with a params.yaml) and the paths inside it."""

    root: Path

    @property
    def params(self) -> Path:
        """The settings file."""
        return self.root / "params.yaml"

    def resolve(self, path: str | Path) -> Path:
        """A path of the settings file: absolute as it is, else relative to the workspace."""
        return self.root / path

    def places(self, subject: str) -> Places:
        """The folders of a subject: outputs in `work/<subject>`, the rest in the store."""
        _require_name(subject)
        return Places(self.root, self.root / "work" / subject, self.state, subject)

    def stage_dir(self, subject: str, stage: str) -> Path:
        """`work/<subject>/<stage>`: the published, DVC-tracked output of a stage."""
        return self.places(subject).stage_dir(stage)

    @property
    def accelerate_configs(self) -> Path:
        """The folder of launch configurations that `train.accelerate_config` names."""
        return self.root / "infra" / "accelerate"

    @property
    def state(self) -> Path:
        """The store: outside DVC and git; only `dreambooth clean` removes from it."""
        return self.root / ".state"

    @property
    def hash_cache(self) -> Path:
        """The file that caches the sha256 of large files by path, size and time."""
        return self.state / _HASH_CACHE

    def instance_dir(self, subject: str) -> str:
        """The folder that `subject add` gives a subject's photos, as params.yaml names it."""
        return f"data/instance/{subject}"

    @property
    def services_note(self) -> Path:
        """The file with the addresses of the running services of `dreambooth up`."""
        return self.state / "up.json"

    def service(self, name: str) -> str | None:
        """The address of a service of `dreambooth up`, such as "mlflow", while it runs."""
        try:
            return json.loads(self.services_note.read_text())[name]
        except (OSError, ValueError, KeyError):
            return None

    def subject_lock(self, subject: str) -> Path:
        """The lock held for the whole run of a subject's stages."""
        _require_name(subject)
        return self.state / "locks" / f"{_SUBJECT}{subject}.lock"

    def subject_locks(self) -> dict[str, Path]:
        """The locks of all subjects that ever had a run, by name."""
        paths = sorted((self.state / "locks").glob(f"{_SUBJECT}*.lock"))
        return {path.stem.removeprefix(_SUBJECT): path for path in paths}

    def run_progress(self, subject: str) -> Path:
        """The note of how far the run of a subject is; only a running one has it."""
        _require_name(subject)
        return self.state / "progress" / f"{subject}.json"

    def save_request(self, subject: str) -> Path:
        """The file that asks the training of a subject to save now; the answer is in `.json`."""
        _require_name(subject)
        return self.state / "saving" / subject

    def renaming(self, subject: str) -> Path:
        """The note of a rename of the subject that has not finished."""
        _require_name(subject)
        return self.state / "renaming" / f"{subject}.json"

    def run_log(self, subject: str) -> Path:
        """The log of all runs of a subject."""
        return self.places(subject).log_file("run")

    @property
    def workspace_lock(self) -> Path:
        """The lock held for seconds, around DVC status, publish, DVC commit and every edit of
        params.yaml and dvc.yaml."""
        return self.state / _WORKSPACE_LOCK


def _require_name(subject: str) -> None:
    """Raise SettingsError for a name that would lead out of its folder."""
    if subject in ("", "..") or Path(subject).name != subject:
        raise SettingsError("not a valid name for a subject", got=repr(subject))


def find_workspace(start: Path) -> Path:
    """The nearest folder at or above `start` that has a params.yaml. Raises SettingsError."""
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / "params.yaml").is_file():
            return folder
    raise SettingsError(
        f"no params.yaml in {start} or any folder above it",
        hint="change to the project folder, pass it with --workspace, or make a new one: "
        "`dreambooth init FOLDER`",
    )
