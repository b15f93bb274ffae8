"""Fingerprints and published settings are fixed: a new setting must not move an old result."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core import config, files
from dreambooth_core.config import SubjectView
from dreambooth_core.pipeline.common import settings_that_count
from dreambooth_core.workspace import Workspace
from tests.presets import view_of
from tests.unit.base.test_config import ROOT, subject_of_shipped

STAGES = {
    "validate": "67a5e96ef03a229e",
    "class-images": "e801565864d63dad",
    "cache": "f9d2e53add95d342",
    "train": "e702a9c1e7ccd331",
    "evaluate": "9d01667ca835503c",
    "confirm": "31bcc6242f2c51fb",
    "select": "40cbd920b671db11",
    "register": "861e8d5e791d6f48",
    "report": "76e0430b90cada25",
}
"""The settings that each stage's fingerprint of the shipped params.yaml holds."""
PUBLISHED = "ad7d65afaed14674"
"""The settings on the page, in MLflow's params and in a version's tags."""
PRESETS = {
    "pocket": ("7960b466babb1875", "f47af6be17173a46"),
    "sd14-12gb": ("0dbc93fdcefedae4", "9b02e4ace2a38dd2"),
    "sd14-16gb": ("23602cae417146c1", "adeb094299e95503"),
    "sd14-24gb": ("7a8ac8321fe39cea", "e68a918d5e15d779"),
    "sd14-6gb": ("8563d63fceb1ae90", "a090f5728d1618a0"),
    "sd14-8gb": ("1b4ae1ab5ed45a5e", "52892d2a4c22736d"),
    "sd14-lora": ("05bd1725519c48a0", "b3322373afbfd7e2"),
    "sdxl-lora": ("2ee0276487f77a3e", "5d3cb2fe4b59bc8f"),
}
"""Of each preset the settings of the training's fingerprint, and the published ones."""


def digest(value: object) -> str:
    return files.digest_of(value)[:16]


def digests(view: SubjectView) -> tuple[str, str]:
    return digest(config.settings_of(view, "train")), digest(settings_that_count(view))


def test_fingerprints_of_shipped_settings_are_unchanged() -> None:
    view = config.load_view(Workspace(ROOT), subject_of_shipped())
    assert {stage: digest(config.settings_of(view, stage)) for stage in STAGES} == STAGES
    assert digest(settings_that_count(view)) == PUBLISHED


@pytest.mark.parametrize("name", PRESETS)
def test_fingerprints_of_presets_are_unchanged(name: str, tmp_path: Path) -> None:
    text = (ROOT / "presets" / f"{name}.yaml").read_text()
    assert digests(view_of(tmp_path, text)) == PRESETS[name]


def test_caption_rate_counts_for_the_cache_alone(tmp_path: Path) -> None:
    text = (ROOT / "presets" / "pocket.yaml").read_text()
    captions = text.replace("captions: false", "captions: true")
    whole, half = (
        view_of(tmp_path, captions.replace("caption_rate: 1.0", f"caption_rate: {rate}"))
        for rate in (1, 0.5)
    )
    moved = {s for s in STAGES if config.settings_of(whole, s) != config.settings_of(half, s)}
    assert moved == {"cache"}
    assert "data.caption_rate" not in config.settings_of(whole, "cache")
    assert settings_that_count(half)["data"]["caption_rate"] == 0.5


def test_stating_the_implied_strategy_moves_no_fingerprint(tmp_path: Path) -> None:
    text = (ROOT / "presets" / "pocket.yaml").read_text()
    stated = text.replace("strategy: null", "strategy: single")
    assert view_of(tmp_path, stated).train.strategy == "single"
    assert digests(view_of(tmp_path, stated)) == PRESETS["pocket"]
