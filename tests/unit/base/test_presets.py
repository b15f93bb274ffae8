"""The presets are complete, and one word switches each between full and LoRA training."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cli import doctor, presets
from dreambooth_core import config
from dreambooth_core.config.__main__ import main as lint
from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace
from tests.presets import view_of

ROOT = Path(__file__).parents[3]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


def test_every_documented_preset_exists():
    cards = {"sd14-24gb", "sd14-16gb", "sd14-12gb", "sd14-8gb", "sd14-6gb"}
    assert {path.stem for path in PRESETS} == {"pocket", *cards, "sd14-lora", "sdxl-lora"}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_one_word_switches_the_method_of_a_preset(path, tmp_path):
    text = path.read_text()
    view = view_of(tmp_path, text)
    other = {"full": "lora", "lora": "full"}[view.train.method]
    switched = view_of(tmp_path, re.sub(r"method: \w+", f"method: {other}", text))
    assert switched.train.method == other
    assert view.train.lora is not None
    rates = {view.train.method: view.train.peak_rate, other: switched.train.peak_rate}
    assert rates == {"full": view.train.learning_rate, "lora": view.train.lora.learning_rate}


def test_lora_settings_do_not_affect_fingerprint_of_full_training(tmp_path):
    text = (ROOT / "presets" / "pocket.yaml").read_text()
    one = config.settings_of(view_of(tmp_path, text), "train")
    other = config.settings_of(view_of(tmp_path, text.replace("rank: 8", "rank: 4")), "train")
    assert one == other


def test_6_gb_preset_uses_fused_backward_without_offloading():
    train = config.load_settings(ROOT / "presets" / "sd14-6gb.yaml").train
    assert (train.method, train.accelerate_config, train.fused_backward) == ("full", None, True)
    assert (train.weight_dtype, train.optimizer) == ("bf16", "adafactor")


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_agrees_with_its_launch_file(path):
    config.check_launches(Workspace(ROOT), config.load_settings(path))


def test_8_gb_preset_launches_zero_2_with_offloaded_optimizer():
    train = config.load_settings(ROOT / "presets" / "sd14-8gb.yaml").train
    launch = config.read_launch_config(Workspace(ROOT), train)
    assert launch is not None
    assert launch.deepspeed is not None
    assert launch.deepspeed["zero_optimization"]["stage"] == 2
    assert launch.deepspeed["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """The shipped settings, presets and launch configurations."""
    for name in ("presets", "infra"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return Workspace(tmp_path)


def spoil(workspace: Workspace, name: str, old: str, new: str) -> Path:
    """Change a line of a preset."""
    path = workspace.root / "presets" / f"{name}.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


WRONG_LAUNCHES = [
    ("deepspeed-zero2-fp16-offload", "deepspeed-nowhere", "no such file in infra/accelerate"),
    (
        "num_processes: 1",
        "num_processes: 2",
        "num_processes: 2, but this launch file has",
    ),
    (
        "precision: fp16",
        "precision: bf16",
        "'bf16', but this launch file computes in 'fp16'",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), WRONG_LAUNCHES)
def test_lint_refuses_missing_or_contradicting_launch_file(workspace, capsys, old, new, message):
    wrong = spoil(workspace, "sd14-8gb", old, new)
    assert lint([str(wrong), str(workspace.params)]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("sd14-8gb.yaml: ")


def test_lint_reports_the_mistakes_of_every_file(workspace, capsys):
    wrong = [
        spoil(workspace, name, "seed: 42", "sed: 42") for name in ("sd14-8gb", "sd14-6gb", "pocket")
    ]
    assert lint([str(path) for path in wrong]) == 2
    errors = capsys.readouterr().err
    assert all(f"{path.name}: train.sed: unknown setting" in errors for path in wrong)


@pytest.mark.parametrize(("old", "new", "message"), WRONG_LAUNCHES)
def test_preset_with_invalid_launch_is_not_written(workspace, old, new, message):
    spoil(workspace, "sd14-8gb", old, new)
    before = workspace.params.read_bytes()
    with pytest.raises(SettingsError, match=re.escape(message)):
        presets.use(workspace, "sd14-8gb")
    assert workspace.params.read_bytes() == before


@pytest.mark.parametrize(("old", "new", "message"), WRONG_LAUNCHES)
def test_doctor_reports_settings_with_invalid_launch(workspace, old, new, message):
    wrong = spoil(workspace, "sd14-8gb", old, new)
    shutil.copy(wrong, workspace.params)
    (found,) = doctor.settings(workspace)
    assert found["state"] == "wrong"
    assert message in found["found"]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_has_versions_of_shipped_settings(path):
    """Versions belong to the code, not to what is trained."""
    shipped = config.load_settings(ROOT / "params.yaml").versions
    assert config.load_settings(path).versions == shipped


def test_preset_raises_but_never_lowers_versions(workspace):
    """A lower version would make outputs of older code count as up to date."""
    now = config.load_settings(workspace.params).versions
    cache, train = now.cache, now.train
    spoil(workspace, "sd14-6gb", f"  cache: {cache} ", f"  cache: {cache - 1} ")
    spoil(workspace, "sd14-6gb", f"  train: {train} ", f"  train: {train + 1} ")
    changed = presets.use(workspace, "sd14-6gb")
    versions = config.load_settings(workspace.params).versions
    assert (versions.cache, versions.train) == (cache, train + 1)
    assert "versions.train" in changed
    assert "versions.cache" not in changed


def test_launch_mistakes_of_all_subjects_are_reported_at_once(workspace):
    presets.use(workspace, "sd14-8gb")
    text = workspace.params.read_text()
    other = """overrides: {train: {num_processes: 3}}
  cup:
    instance_dir: data/instance/cup
    identifier: sks
    class_noun: cup
    prompts: null
    overrides: {train: {accelerate_config: deepspeed-nowhere}}"""
    assert "overrides: {}" in text
    workspace.params.write_text(text.replace("overrides: {}", other))
    with pytest.raises(SettingsError) as caught:
        config.check_launches(workspace, config.load_settings(workspace.params))
    assert "deepspeed-nowhere" in str(caught.value)
    assert "train.num_processes: 3, but" in str(caught.value)
