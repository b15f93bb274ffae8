"""Where `dreambooth app` listens, and when it needs a password."""

from __future__ import annotations

from collections.abc import Mapping

from dreambooth_core.environment import LOOPBACK
from dreambooth_core.errors import SettingsError

PASSWORD = "DREAMBOOTH_APP_PASSWORD"
"""The environment variable with the password of the app."""

_MIN_LENGTH = 8


def check_password(host: str, env: Mapping[str, str]) -> None:
    """Raise SettingsError for a host that others reach, without a password; or for a short one."""
    password = env.get(PASSWORD, "")
    if password and len(password) < _MIN_LENGTH:
        raise SettingsError(
            f"the password in {PASSWORD} is too short",
            got=f"{len(password)} characters",
            allowed=f"at least {_MIN_LENGTH}",
        )
    if not password and host not in LOOPBACK:
        raise SettingsError(
            "others can reach this address, so the app needs a password",
            got=f"--host {host}",
            allowed=f"{', '.join(LOOPBACK)} without a password",
            hint=f"export {PASSWORD}=..., or leave out --host",
        )


def url_of(host: str, port: int) -> str:
    """The address to open in a browser on this machine."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/"
