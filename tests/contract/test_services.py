"""infra/compose.yaml, infra/Dockerfile and the passwords, by their real validators."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests import services
from tests.paths import ROOT

_PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
_SECRETS = ROOT / "infra" / "services" / "secrets.sh"
#: Services that run once, as root with one capability, to give a volume to its user.
_OWNERS = {"objects-owner": ["CHOWN"]}


def tool(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.skip(f"needs the extra `infra` ({name})")
    return found


def test_secrets_are_private_distinct_and_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    secrets = services.make_secrets(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(set(secrets.values())) == len(secrets)
    assert {len(value.removeprefix("pipeline:")) for value in secrets.values()} == {48}
    before = file.read_bytes()
    again = subprocess.run(["sh", _SECRETS, file], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert file.read_bytes() == before


def test_compose_file_is_valid_and_needs_no_other_variable(tmp_path: Path) -> None:
    secrets = services.make_secrets(tmp_path / ".env")
    command = [tool("docker-compose"), "-f", str(services.COMPOSE), "--env-file"]
    done = subprocess.run(
        [*command, str(tmp_path / ".env"), "config", "--format", "json"],
        capture_output=True, text=True, check=False, env={"PATH": _PATH, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    rendered = json.dumps(json.loads(done.stdout)["services"])
    assert [name for name, value in secrets.items() if value not in rendered] == []


def test_compose_file_without_secrets_says_how_to_make_them(tmp_path: Path) -> None:
    command = [tool("docker-compose"), "-f", str(services.COMPOSE), "--env-file", os.devnull]
    done = subprocess.run(
        [*command, "config"],
        capture_output=True, text=True, check=False, env={"PATH": _PATH, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode != 0
    assert "make secrets" in done.stderr


def test_services_run_with_least_rights(tmp_path: Path) -> None:
    for name, service in services.compose(services.make_secrets(tmp_path / ".env")).items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("cap_add", []) == _OWNERS.get(name, []), name
        assert (service.get("user") == "root") == (name in _OWNERS), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert "healthcheck" in service or service["restart"] == "no", name


def test_images_are_built_here_or_pinned(tmp_path: Path) -> None:
    for service in services.compose(services.make_secrets(tmp_path / ".env")).values():
        tag = service["image"].partition(":")[2]
        assert "build" in service or service["image"] == "dreambooth-server" or tag[0].isdigit()


def test_dockerfile_passes_hadolint_and_ends_without_root() -> None:
    dockerfile = ROOT / "infra" / "Dockerfile"
    done = subprocess.run(
        [tool("hadolint"), dockerfile], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    for stage in dockerfile.read_text().split("\nFROM ")[1:]:
        users = [line for line in stage.splitlines() if line.startswith("USER ")]
        assert users[-1] == "USER 10001:10001"
