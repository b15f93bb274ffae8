"""Paths in the checkout."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
PARAMS = ROOT / "params.yaml"
