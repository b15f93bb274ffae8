"""What every room needs: the workspace, its environment, and the address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.app_address import PASSWORD, check_password
from dreambooth_core import environment
from dreambooth_core.workspace import Workspace


@dataclass(frozen=True)
class Site:
    """The workspace that the app shows, and where it listens."""

    workspace: Workspace
    env: Mapping[str, str]
    """The environment of the commands that the app starts; without the password."""
    host: str
    port: int
    password: str | None

    @property
    def files(self) -> Path:
        """The folder of the app's own files: uploads, views of photos, logs of runs."""
        return self.workspace.state / "app"


def open_site(root: Path, host: str, port: int) -> Site:
    """The site of a workspace. Raises SettingsError for a host that needs a password."""
    env = environment.set_defaults(root)
    check_password(host, env)
    password = env.pop(PASSWORD, None) or None
    return Site(Workspace(root), env, host, port, password)
