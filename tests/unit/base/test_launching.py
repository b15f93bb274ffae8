"""The files of infra/accelerate: each does what its name says, and agrees with the settings."""

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
)
from dreambooth_core.config.pairs import uses_deepspeed, uses_fsdp
from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace
from tests.unit.base.test_config import ROOT, changed, subject_of_shipped

SHIPPED = sorted(path.stem for path in Workspace(ROOT).accelerate_configs.glob("*.yaml"))


def _train(name: str | None, **changes: Any) -> TrainSettings:
    shipped = YAML(typ="safe").load(ROOT / "params.yaml")["train"]
    return TrainSettings(**{**shipped, "accelerate_config": name, **changes})


def _agreeing(name: str) -> TrainSettings:
    """Settings with the processes and the precision that the file states."""
    raw = YAML(typ="safe").load(Workspace(ROOT).accelerate_configs / f"{name}.yaml")
    precision = raw.get("mixed_precision", "fp16" if "fp16" in name else "no")
    return _train(name, num_processes=raw["num_processes"], mixed_precision=precision)


def test_configurations_are_there_for_one_gpu_eight_two_nodes_deepspeed_and_fsdp2() -> None:
    assert {
        "one-gpu", "eight-gpus", "two-nodes-x-8", "deepspeed-zero2-fp16-offload", "fsdp2-sdxl"
    } <= set(SHIPPED)  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_launches_what_its_name_says(name: str) -> None:
    train = _agreeing(name)
    config = read_launch_config(Workspace(ROOT), train)
    assert config is not None
    kind = config.accelerate["distributed_type"]
    assert uses_deepspeed(train) == (kind == "DEEPSPEED")
    assert uses_fsdp(train) == (kind == "FSDP")
    assert (config.deepspeed is not None) == (kind == "DEEPSPEED")
    assert config.num_machines == (2 if "two-nodes" in name else 1)
    if kind == "FSDP":
        assert config.accelerate["fsdp_config"]["fsdp_version"] == 2


def test_the_seeds_8_gb_recipe_is_zero_2_in_fp16_with_the_optimizer_on_the_cpu() -> None:
    config = read_launch_config(Workspace(ROOT), _agreeing("deepspeed-zero2-fp16-offload"))
    assert config is not None
    assert config.deepspeed is not None
    assert config.deepspeed["fp16"]["enabled"] is True
    assert config.deepspeed["zero_optimization"]["stage"] == 2
    assert config.deepspeed["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


def test_the_settings_values_take_the_place_of_auto() -> None:
    config = read_launch_config(Workspace(ROOT), _agreeing("deepspeed-two-cpus"))
    assert config is not None
    assert config.deepspeed is not None
    filled = deepspeed_config(config.deepspeed, _train(None, max_grad_norm=None))
    assert filled["train_micro_batch_size_per_gpu"] == 4
    assert filled["gradient_accumulation_steps"] == 1
    assert filled["gradient_clipping"] == 0.0
    assert filled["zero_optimization"] == config.deepspeed["zero_optimization"]


def test_an_unknown_name_is_refused_with_the_files_that_are_there(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "infra", tmp_path / "infra")
    changed(tmp_path, train__accelerate_config="eight-gpu")
    with pytest.raises(SettingsError, match=r"found: eight-gpu; .*eight-gpus, fsdp2-sdxl"):
        load_view(Workspace(tmp_path), subject_of_shipped())


def test_an_unknown_name_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "infra", tmp_path / "infra")
    changed(tmp_path, train__accelerate_config="../x")
    script = (
        "import sys; from pathlib import Path\n"
        "from dreambooth_core.config import load_view\n"
        "from dreambooth_core.errors import SettingsError\n"
        "from dreambooth_core.workspace import Workspace\n"
        "try:\n    load_view(Workspace(Path(sys.argv[1])), sys.argv[2])\n"
        "except SettingsError as error:\n"
        "    assert 'names no file' in str(error); sys.exit('torch' in sys.modules)\n"
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
        ("mine", "distributed_type: DEEPSPEED\nnum_processes: 1", "begins with deepspeed"),
        ("mine", "distributed_type: FSDP\nnum_processes: 1", "begins with fsdp"),
        ("deepspeed-mine", "distributed_type: MULTI_GPU\nnum_processes: 1", "is MULTI_GPU"),
        ("deepspeed-mine", "distributed_type: DEEPSPEED\nnum_processes: 1", "is missing"),
        ("mine", "distributed_type: MULTI_GPU\nnum_processes: 4", "num_processes is 4, but"),
        (
            "mine",
            "distributed_type: 'NO'\nnum_processes: 1\nmixed_precision: bf16",
            "computes in 'bf16', but train.mixed_precision is 'no'",
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
def test_a_file_that_says_otherwise_than_its_name_or_the_settings_is_refused(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        read_launch_config(_workspace(tmp_path, text, name=name), _train(name))


def test_a_deepspeed_value_that_is_not_the_settings_is_refused(tmp_path: Path) -> None:
    text = (
        "distributed_type: DEEPSPEED\nnum_processes: 1\n"
        "deepspeed_config: {deepspeed_config_file: d.json}"
    )
    workspace = _workspace(tmp_path, text, name="deepspeed-mine")
    (tmp_path / "d.json").write_text('{"gradient_clipping": 0.5}')
    with pytest.raises(
        SettingsError, match=r"gradient_clipping is 0\.5, but the settings say 1\.0"
    ):
        read_launch_config(workspace, _train("deepspeed-mine"))


def test_comments_of_a_file_do_not_count_but_its_content_does(tmp_path: Path) -> None:
    found = []
    for index, text in enumerate(
        ["num_processes: 1", "# so\nnum_processes: 1", "num_processes: 1\nx: 2"]
    ):
        workspace = _workspace(tmp_path / str(index), text, name="mine")
        found.append(read_launch_config(workspace, _train("mine")))
    assert found[0] == found[1] != found[2]
