"""How the trainer is launched: the files of `infra/accelerate`, checked against the settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dreambooth_core.config.pairs import uses_deepspeed, uses_fsdp
from dreambooth_core.config.reading import mapping, read_yaml
from dreambooth_core.config.sections import TrainSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.records import Record
from dreambooth_core.workspace import Workspace


class LaunchConfig(Record):
    """What a file of `infra/accelerate` says, and the DeepSpeed configuration that it names.

    Its content is part of the training's fingerprint; comments and spelling are not.
    """

    accelerate: dict[str, Any]
    deepspeed: dict[str, Any] | None = None

    @property
    def num_machines(self) -> int:
        """Machines that take part; each starts its share of the processes."""
        return int(self.accelerate.get("num_machines", 1))


def read_launch_config(workspace: Workspace, train: TrainSettings) -> LaunchConfig | None:
    """The launch configuration of the settings; None where they name none.

    Raises SettingsError for an unknown name, a file that cannot be read, and a file that says
    something else than the settings.
    """
    if train.accelerate_config is None:
        return None
    known = {path.stem: path for path in sorted(workspace.accelerate_configs.glob("*.yaml"))}
    if train.accelerate_config not in known:
        raise SettingsError(
            "train.accelerate_config names no file of infra/accelerate",
            got=train.accelerate_config,
            allowed=", ".join(known) or f"none is there: {workspace.accelerate_configs}",
            hint="set null for the processes of one machine",
        )
    path = known[train.accelerate_config]
    config = LaunchConfig(accelerate=mapping(read_yaml(path)))
    named = mapping(config.accelerate.get("deepspeed_config")).get("deepspeed_config_file")
    if named is not None:
        config = LaunchConfig(
            accelerate=config.accelerate, deepspeed=read_deepspeed(workspace.root / named)
        )
    if problems := list(_disagreements(config, train)):
        raise SettingsError("\n".join(f"{path.name}: {problem}" for problem in problems))
    return config


def _disagreements(config: LaunchConfig, train: TrainSettings) -> Iterator[str]:
    """What the file says otherwise than the settings, each as a sentence."""
    kind = str(config.accelerate.get("distributed_type", "NO"))
    prefix = {"DEEPSPEED": "deepspeed", "FSDP": "fsdp"}.get(kind)
    if prefix == "deepspeed" and not uses_deepspeed(train):
        yield "distributed_type is DEEPSPEED: the name of such a file begins with deepspeed"
    if prefix == "fsdp" and not uses_fsdp(train):
        yield "distributed_type is FSDP: the name of such a file begins with fsdp"
    if prefix is None and (uses_deepspeed(train) or uses_fsdp(train)):
        yield f"the name says {train.accelerate_config}, but distributed_type is {kind}"
    if kind == "DEEPSPEED" and config.deepspeed is None:
        yield "deepspeed_config.deepspeed_config_file is missing"
    processes = config.accelerate.get("num_processes")
    if processes != train.num_processes:
        yield f"num_processes is {processes}, but train.num_processes is {train.num_processes}"
    precision = _precision(config)
    if precision is not None and precision != train.mixed_precision:
        yield f"computes in {precision!r}, but train.mixed_precision is {train.mixed_precision!r}"
    for key, value in _deepspeed_values(train).items():
        found = (config.deepspeed or {}).get(key, "auto")
        if found not in ("auto", value):
            yield f"{key} is {found!r}, but the settings say {value!r}; write 'auto'"


def _precision(config: LaunchConfig) -> str | None:
    """The compute type that the file states; DeepSpeed has it in its own file."""
    if config.deepspeed is None:
        return config.accelerate.get("mixed_precision")
    on = [k for k in ("fp16", "bf16") if mapping(config.deepspeed.get(k)).get("enabled") is True]
    return on[0] if on else "no"


def offloads(deepspeed: Mapping[str, Any]) -> bool:
    """Whether DeepSpeed keeps and updates the optimizer's state on the CPU, by its own file."""
    offload = mapping(mapping(deepspeed.get("zero_optimization")).get("offload_optimizer"))
    return offload.get("device", "none") != "none"


def _deepspeed_values(train: TrainSettings) -> dict[str, Any]:
    """The values of the settings by DeepSpeed's names; a file may say `auto` for each."""
    return {
        "train_micro_batch_size_per_gpu": train.train_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "gradient_clipping": train.max_grad_norm or 0.0,
    }


def deepspeed_config(config: dict[str, Any], train: TrainSettings) -> dict[str, Any]:
    """A DeepSpeed configuration with the settings' values in place of every `auto`."""
    return {**config, **_deepspeed_values(train)}


def read_deepspeed(path: Path) -> dict[str, Any]:
    """A file of DeepSpeed's own. Raises SettingsError where there is none, or no JSON in it."""
    try:
        return mapping(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise SettingsError(
            f"the DeepSpeed configuration {path} does not exist",
            hint="deepspeed_config_file is relative to the project's folder",
        ) from None
    except ValueError as error:
        raise SettingsError(f"{path} is not valid JSON", got=str(error)) from None
