"""Where things are: the only place that spells the paths of a workspace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.errors import SettingsError

STAGES = ("validate", "class-images", "cache", "train", "evaluate", "select", "register")
"""The stages that publish into `work/<subject>/`, in order."""


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

    def subject_dir(self, subject: str) -> Path:
        """`work/<subject>`."""
        return self.root / "work" / subject

    def stage_dir(self, subject: str, stage: str) -> Path:
        """`work/<subject>/<stage>`: the published, DVC-tracked output of a stage."""
        return self.subject_dir(subject) / stage

    def report_page(self, subject: str) -> Path:
        """The HTML report of a subject."""
        return self.stage_dir(subject, "report") / "index.html"

    @property
    def accelerate_configs(self) -> Path:
        """The folder of launch configurations that `train.accelerate_config` names."""
        return self.root / "infra" / "accelerate"

    @property
    def state(self) -> Path:
        """The store: outside DVC and git, survives everything but `dreambooth clean`."""
        return self.root / ".state"

    def store_dir(self, stage: str, fingerprint: str) -> Path:
        """`.state/<stage>/<fingerprint>`, where a stage works (created by the stage)."""
        return self.state / stage / fingerprint

    def log_file(self, subject: str, stage: str) -> Path:
        """The log of a subject's stage: times, hosts and rates go here, never into outputs."""
        return self.state / "logs" / subject / f"{stage}.log"

    def subject_lock(self, subject: str) -> Path:
        """Held for the whole run of a subject's stages."""
        return self.state / "locks" / f"subject-{subject}.lock"

    @property
    def workspace_lock(self) -> Path:
        """Held for seconds, around DVC status, publish and DVC commit."""
        return self.state / "locks" / "workspace.lock"

    def verdict_dir(self, subject: str) -> Path:
        """Where the flow leaves the last verdict for the report (not a DVC output)."""
        return self.state / "verdicts" / subject


def find_workspace(start: Path) -> Path:
    """The nearest folder at or above `start` that has a params.yaml. Raises SettingsError."""
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / "params.yaml").is_file():
            return folder
    raise SettingsError(
        f"no params.yaml in {start} or any folder above it",
        hint="change to the project folder, or pass it with --workspace",
    )
