"""infra/compose.yaml as the tests read it: with passwords filled in, as plain dictionaries."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.paths import ROOT

INFRA = ROOT / "infra"
COMPOSE = INFRA / "compose.yaml"
_VARIABLE = re.compile(r"\$\{(\w+)(?::[?-]([^}]*))?\}")


def make_secrets(file: Path) -> dict[str, str]:
    subprocess.run(
        ["sh", INFRA / "services" / "secrets.sh", file], check=True, stdout=subprocess.DEVNULL
    )
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def compose(secrets: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The services by name."""
    text = _VARIABLE.sub(lambda found: secrets.get(found[1], found[2]), COMPOSE.read_text())
    return YAML(typ="safe").load(text)["services"]
