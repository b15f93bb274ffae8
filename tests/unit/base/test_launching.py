"""The launch files of infra/accelerate match their names and are checked against settings."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dreambooth_core.config import (
    TrainSettings,
    deepspeed_config,
    load_view,
    read_launch_config,
    strategy_of,
)
from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace
from tests.unit.base.test_config import ROOT, changed, subject_of_shipped

SHIPPED = sorted(path.stem for path in Workspace(ROOT).accelerate_configs.glob("*.yaml"))


def _train(name: str | None, **changes: Any) -> TrainSettings:
    shipped = YAML(typ="safe").load(ROOT / "params.yaml")["train"]
    return TrainSettings(**{**shipped, "accelerate_config": name, **changes})


def _agreeing(name: str) -> TrainSettings:
    """Settings with the processes and the precision of the launch file."""
    raw = YAML(typ="safe").load(Workspace(ROOT).accelerate_configs / f"{name}.yaml")
    precision = raw.get("mixed_precision", "fp16" if "fp16" in name else "no")
    return _train(name, num_processes=raw["num_processes"], mixed_precision=precision)


def test_launch_files_for_documented_setups_exist() -> None:
    assert {
        "one-gpu", "eight-gpus", "two-nodes-x-8", "deepspeed-zero2-fp16-offload", "fsdp2-sdxl"
    } <= set(SHIPPED)  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_launch_file_matches_its_name(name: str) -> None:
    train = _agreeing(name)
    config = read_launch_config(Workspace(ROOT), train)
    assert config is not None
    kind = config.accelerate["distributed_type"]
    by_kind = {"DEEPSPEED": "deepspeed", "FSDP": "fsdp"}
    plain = "ddp" if train.num_processes > 1 else "single"
    assert strategy_of(train, config) == by_kind.get(kind, plain)
    assert name.partition("-")[0].rstrip("2") in (strategy_of(train, config), "one", "eight", "two")
    assert (config.deepspeed is not None) == (kind == "DEEPSPEED")
    assert config.num_machines == (2 if "two-nodes" in name else 1)
    if kind == "FSDP":
        assert config.accelerate["fsdp_config"]["fsdp_version"] == 2


def test_8_gb_recipe_uses_zero_2_in_fp16_with_cpu_offload() -> None:
    config = read_launch_config(Workspace(ROOT), _agreeing("deepspeed-zero2-fp16-offload"))
    assert config is not None
    assert config.deepspeed is not None
    assert config.deepspeed["fp16"]["enabled"] is True
    assert config.deepspeed["zero_optimization"]["stage"] == 2
    assert config.deepspeed["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


def test_auto_in_deepspeed_file_is_replaced_by_settings() -> None:
    config = read_launch_config(Workspace(ROOT), _agreeing("deepspeed-two-cpus"))
    assert config is not None
    assert config.deepspeed is not None
    filled = deepspeed_config(config.deepspeed, _train(None, max_grad_norm=None))
    assert filled["train_micro_batch_size_per_gpu"] == 4
    assert filled["gradient_accumulation_steps"] == 1
    assert filled["gradient_clipping"] == 0.0
    assert filled["zero_optimization"] == config.deepspeed["zero_optimization"]


def test_unknown_launch_file_is_refused_with_available_ones(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "infra", tmp_path / "infra")
    changed(tmp_path, train__accelerate_config="eight-gpu")
    with pytest.raises(SettingsError, match=r"found: eight-gpu; .*eight-gpus, fsdp2-sdxl"):
        load_view(Workspace(tmp_path), subject_of_shipped())


def test_unknown_launch_file_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "infra", tmp_path / "infra")
    changed(tmp_path, train__accelerate_config="../x")
    script = (
        "import sys; from pathlib import Path\n"
        "from dreambooth_core.config import load_view\n"
        "from dreambooth_core.errors import SettingsError\n"
        "from dreambooth_core.workspace import Workspace\n"
        "try:\n    load_view(Workspace(Path(sys.argv[1])), sys.argv[2])\n"
        "except SettingsError as error:\n"
        "    assert 'no such file' in str(error); sys.exit('torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), subject_of_shipped()]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def _workspace(tmp_path: Path, text: str, *, name: str) -> Workspace:
    workspace = Workspace(tmp_path)
    workspace.accelerate_configs.mkdir(parents=True)
    (workspace.accelerate_configs / f"{name}.yaml").write_text(text)
    return workspace


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("deepspeed-mine", "distributed_type: DEEPSPEED\nnum_processes: 1", "is missing"),
        (
            "mine",
            "distributed_type: MULTI_GPU\nnum_processes: 4",
            "num_processes: 1, but this launch file",
        ),
        (
            "mine",
            "distributed_type: 'NO'\nnum_processes: 1\nmixed_precision: bf16",
            "train.mixed_precision: 'no', but this launch file computes in 'bf16'",
        ),
        (
            "deepspeed-mine",
            "distributed_type: DEEPSPEED\nnum_processes: 1\n"
            "deepspeed_config: {deepspeed_config_file: nowhere.json}",
            "does not exist",
        ),
        ("mine", "a: [", "is not valid YAML"),
    ],
)
def test_launch_file_that_contradicts_settings_is_refused(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        read_launch_config(_workspace(tmp_path, text, name=name), _train(name))


def test_deepspeed_value_that_contradicts_settings_is_refused(tmp_path: Path) -> None:
    text = (
        "distributed_type: DEEPSPEED\nnum_processes: 1\n"
        "deepspeed_config: {deepspeed_config_file: d.json}"
    )
    workspace = _workspace(tmp_path, text, name="deepspeed-mine")
    (tmp_path / "d.json").write_text('{"gradient_clipping": 0.5}')
    with pytest.raises(
        SettingsError, match=r"gradient_clipping is 0\.5, but the settings imply 1\.0"
    ):
        read_launch_config(workspace, _train("deepspeed-mine"))


def test_launch_config_depends_on_content_but_not_comments(tmp_path: Path) -> None:
    found = []
    for index, text in enumerate(
        ["num_processes: 1", "# comment\nnum_processes: 1", "num_processes: 1\nx: 2"]
    ):
        workspace = _workspace(tmp_path / str(index), text, name="mine")
        found.append(read_launch_config(workspace, _train("mine")))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("changes", "means"),
    [
        ({"strategy": "ddp"}, "ddp, but num_processes 1 without accelerate_config means single"),
        ({"strategy": "single", "num_processes": 2}, "without accelerate_config means ddp"),
        ({"strategy": "deepspeed"}, "deepspeed, but num_processes 1 without accelerate_config"),
        (
            {"accelerate_config": "fsdp2-two-cpus", "num_processes": 2, "strategy": "deepspeed"},
            "fsdp2-two-cpus.yaml: train.strategy: deepspeed, but num_processes 2 with this launch",
        ),
    ],
)
def test_strategy_that_contradicts_processes_or_launch_file_is_refused(
    changes: dict[str, Any], means: str
) -> None:
    shipped = YAML(typ="safe").load(ROOT / "params.yaml")["train"]
    with pytest.raises(SettingsError, match=means):
        read_launch_config(Workspace(ROOT), TrainSettings(**{**shipped, **changes}))


@pytest.mark.parametrize("strategy", ["fsdp", None])
def test_strategy_is_checked_against_launch_file_of_any_name(
    strategy: str | None, tmp_path: Path
) -> None:
    text = "distributed_type: FSDP\nnum_processes: 2"
    train = _train("mine", strategy=strategy, num_processes=2)
    config = read_launch_config(_workspace(tmp_path, text, name="mine"), train)
    assert strategy_of(train, config) == "fsdp"


def test_launch_file_decides_which_options_go_together(tmp_path: Path) -> None:
    """Two broken rules of the strategy and two contradictions are reported at once."""
    shutil.copytree(ROOT / "infra", tmp_path / "infra")
    launch = {"train__accelerate_config": "deepspeed-two-cpus", "train__num_processes": 3}
    launch |= {"train__use_8bit_adam": True, "train__ema_decay": 0.9}
    changed(tmp_path, **launch)
    with pytest.raises(SettingsError) as caught:
        load_view(Workspace(tmp_path), subject_of_shipped())
    assert [problem.key for problem in caught.value.problems] == [
        "train.use_8bit_adam",
        "train.ema_decay",
        "train.num_processes",
    ]
    assert str(caught.value).startswith("deepspeed-two-cpus.yaml: train.use_8bit_adam: 8-bit Adam")


def test_loaded_view_has_its_strategy_filled_in(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "infra", tmp_path / "infra")
    for changes, strategy in (
        ({}, "single"),
        ({"train__num_processes": 2}, "ddp"),
        ({"train__accelerate_config": "fsdp2-two-cpus", "train__num_processes": 2}, "fsdp"),
    ):
        changed(tmp_path, **changes)
        assert load_view(Workspace(tmp_path), subject_of_shipped()).train.strategy == strategy
