"""Launch configurations: the files of `infra/accelerate`, checked against the settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreambooth_core.config import compatibility
from dreambooth_core.config.sections import Strategy, TrainSettings
from dreambooth_core.config.yaml_files import mapping, read_yaml
from dreambooth_core.errors import Problem, SettingsError
from dreambooth_core.records import Record
from dreambooth_core.workspace import Workspace


class LaunchConfig(Record):
    """A file of `infra/accelerate` and the DeepSpeed configuration that it names.

    The content is part of the training's fingerprint; comments and formatting are not.
    """

    accelerate: dict[str, Any]
    deepspeed: dict[str, Any] | None = None

    @property
    def num_machines(self) -> int:
        """Number of machines. Each starts its share of the processes."""
        return int(self.accelerate.get("num_machines", 1))


def read_launch_config(workspace: Workspace, train: TrainSettings) -> LaunchConfig | None:
    """The launch configuration of the settings, or None without `accelerate_config`.

    Raises SettingsError for an unknown name, an unreadable file, and a file or a strategy that
    contradicts the settings.
    """
    config, file = None, None
    if train.accelerate_config is not None:
        path = _launch_file(workspace, train.accelerate_config)
        config, file = _read(workspace, path), path.name
    found = [replace(problem, file=file) for problem in _contradictions(config, train)]
    if found:
        raise SettingsError.of(found)
    return config


def strategy_of(train: TrainSettings, config: LaunchConfig | None) -> Strategy:
    """The strategy that the launch configuration and the number of processes imply."""
    kind = config.accelerate.get("distributed_type") if config else None
    if kind == "DEEPSPEED":
        return "deepspeed"
    if kind == "FSDP":
        return "fsdp"
    return "ddp" if train.num_processes > 1 else "single"


def _launch_file(workspace: Workspace, name: str) -> Path:
    known = {path.stem: path for path in sorted(workspace.accelerate_configs.glob("*.yaml"))}
    if name not in known:
        raise SettingsError(
            "no such file in infra/accelerate",
            key="train.accelerate_config",
            got=name,
            allowed=", ".join(known) or f"{workspace.accelerate_configs} is empty",
            hint="name one of these files, or set null to launch on this machine only",
        )
    return known[name]


def _read(workspace: Workspace, path: Path) -> LaunchConfig:
    accelerate = mapping(read_yaml(path))
    named = mapping(accelerate.get("deepspeed_config")).get("deepspeed_config_file")
    deepspeed = None if named is None else read_deepspeed(workspace.root / named)
    return LaunchConfig(accelerate=accelerate, deepspeed=deepspeed)


def _contradictions(config: LaunchConfig | None, train: TrainSettings) -> Iterator[Problem]:
    """Yield the contradictions between the settings and their launch file or strategy."""
    implied = strategy_of(train, config)
    if train.strategy not in (None, implied):
        given = "without accelerate_config" if config is None else "with this launch file"
        yield Problem(
            f"{train.strategy}, but num_processes {train.num_processes} {given} means {implied}: "
            f"set {implied} or null, or name another file of infra/accelerate",
            "train.strategy",
        )
    if config is None:
        return
    if train.strategy is None:
        resolved = {**dict(train), "strategy": implied}
        for name, message in compatibility.broken(compatibility.TRAIN_RULES, resolved):
            yield Problem(message, f"train.{name}")
    if implied == "deepspeed" and config.deepspeed is None:
        yield Problem("deepspeed_config.deepspeed_config_file is missing")
    processes = config.accelerate.get("num_processes")
    if processes != train.num_processes:
        yield Problem(
            f"{train.num_processes}, but this launch file has num_processes {processes}",
            "train.num_processes",
        )
    precision = _precision(config)
    if precision not in (None, train.mixed_precision):
        yield Problem(
            f"{train.mixed_precision!r}, but this launch file computes in {precision!r}",
            "train.mixed_precision",
        )
    for key, value in _deepspeed_values(train).items():
        found = (config.deepspeed or {}).get(key, "auto")
        if found not in ("auto", value):
            yield Problem(f"{key} is {found!r}, but the settings imply {value!r}; write 'auto'")


def _precision(config: LaunchConfig) -> str | None:
    """The compute type of the launch file, or of its DeepSpeed file."""
    if config.deepspeed is None:
        return config.accelerate.get("mixed_precision")
    on = [k for k in ("fp16", "bf16") if mapping(config.deepspeed.get(k)).get("enabled") is True]
    return on[0] if on else "no"


def offloads(deepspeed: Mapping[str, Any]) -> bool:
    """Whether a DeepSpeed configuration moves the optimizer to the CPU."""
    offload = mapping(mapping(deepspeed.get("zero_optimization")).get("offload_optimizer"))
    return offload.get("device", "none") != "none"


def _deepspeed_values(train: TrainSettings) -> dict[str, Any]:
    """The settings by DeepSpeed's names. A file may have `auto` for each."""
    return {
        "train_micro_batch_size_per_gpu": train.train_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "gradient_clipping": train.max_grad_norm or 0.0,
    }


def deepspeed_config(config: dict[str, Any], train: TrainSettings) -> dict[str, Any]:
    """A DeepSpeed configuration with every `auto` replaced by the value of the settings."""
    return {**config, **_deepspeed_values(train)}


def read_deepspeed(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed configuration. Raises SettingsError if it is missing or not JSON."""
    try:
        return mapping(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise SettingsError(
            f"the DeepSpeed configuration {path} does not exist",
            hint="deepspeed_config_file is relative to the project's folder",
        ) from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read", got=error.strerror) from None
    except ValueError as error:
        raise SettingsError(f"{path} is not valid JSON", got=str(error)) from None
