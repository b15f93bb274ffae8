"""`dreambooth plan` in a new workspace."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.flow import workspaces
from tests.flow.workspaces import REPOSITORY, SUBJECT

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of one subject, the shipped presets, and the pocket model itself."""
    root = tmp_path_factory.mktemp("plan")
    workspaces.build(root)
    shutil.copytree(REPOSITORY / "presets", root / "presets")
    model = root / "assets" / "pocket-sd"
    shutil.rmtree(model)
    shutil.copytree(REPOSITORY / "assets" / "pocket-sd", model)
    return root


def plan(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return workspaces.run_in(root, sys.executable, "-m", "cli", "plan", *options, check=False)


def with_preset(root: Path, name: str) -> None:
    """Write a preset, with the subjects kept, like `dreambooth preset use`."""
    yaml = YAML()
    settings = yaml.load((root / "presets" / f"{name}.yaml").read_text())
    settings["subjects"] = yaml.load((root / "params.yaml").read_text())["subjects"]
    settings["compute"]["device"] = "cpu"
    with (root / "params.yaml").open("w") as stream:
        yaml.dump(settings, stream)


def test_pocket_model_fits_and_its_time_follows_the_speed_table(root: Path) -> None:
    """128 class images; 600 steps of batch 4 + 4; 11 models, each of which samples the suite."""
    with_preset(root, "pocket")
    done = plan(root, SUBJECT, "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert set(told["stages"].values()) == {"run"}
    assert told["memory"]["fits"] is True
    assert told["memory"]["peak_mib"] == pytest.approx(103.0, abs=1)
    time = told["time"]
    table = json.loads((REPOSITORY / "dreambooth_core/planning/speeds.json").read_bytes())
    assert time["measured_on"] == table["made_with"][0]["device"]
    seconds = [r["seconds"] for r in table["training"] if _is_plain(r)]
    assert min(seconds) < time["seconds_per_step"] < max(seconds)
    stages = time["stage_seconds"]
    assert stages["train"] == pytest.approx(600 * time["seconds_per_step"], abs=0.1)
    assert time["total_seconds"] == pytest.approx(sum(stages.values()), abs=0.2)


def _is_plain(row: dict[str, Any]) -> bool:
    full = row["method"] == "full" and row["mixed_precision"] == "no"
    return full and not row["gradient_checkpointing"]


def test_preset_too_large_for_a_gpu_suggests_one_that_fits(root: Path) -> None:
    """sd14-16gb needs 8.3 GiB for weights, gradients and moments: too much for 6 GiB."""
    with_preset(root, "sd14-16gb")
    done = plan(root, "--card-gib", "6")
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "DOES NOT FIT (6.0 GiB on gpu)" in words
    assert "time: not measured on this device (gpu)" in words
    assert "a preset that fits: `dreambooth preset use sd14-6gb`" in words


def test_offloading_preset_gets_no_memory_verdict_and_no_suggestion(root: Path) -> None:
    """Also on a GPU that is too small for the part that is not offloaded."""
    with_preset(root, "sd14-8gb")
    done = plan(root, SUBJECT, "--card-gib", "1", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["launch"], told["offloads"]) == ("DeepSpeed", True)
    assert (told["memory"]["fits"], told["memory"]["peak_mib"]) == (None, None)
    words = " ".join(plan(root, SUBJECT, "--card-gib", "1").stdout.split())
    assert "the optimizer is offloaded; the GPU's share is not predicted" in words
    assert "a preset that fits" not in words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((SUBJECT, "--card-gib", "0"), "'--card-gib': Input should be greater than or equal to 1"),
        (("mugg",), "mugg"),
    ],
    ids=["a card of no size", "an unknown subject"],
)
def test_wrong_input_is_refused_with_its_value(root: Path, options: Any, message: str) -> None:
    done = plan(root, *options)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_changed_settings_are_planned_as_a_run_with_set_would_do_them(root: Path) -> None:
    with_preset(root, "pocket")
    options = ("--set", "train.max_train_steps=300", "--set", "data.resolution=128", "--json")
    unchanged, changed = (
        json.loads(plan(root, SUBJECT, *more).stdout) for more in (["--json"], options)
    )
    assert changed["memory"]["peak_mib"] > unchanged["memory"]["peak_mib"]
    assert (root / "params.yaml").read_text().count("max_train_steps: 300") == 0
    refused = plan(root, SUBJECT, "--set", "train.max_train_steps=no")
    assert refused.returncode == 2
    assert "--set: train.max_train_steps" in refused.stderr
