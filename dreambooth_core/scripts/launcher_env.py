"""The environment variables of the launcher: processes, precision, and contradictions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.config import Strategy
from dreambooth_core.config.launching import read_deepspeed
from dreambooth_core.config.yaml_files import mapping
from dreambooth_core.errors import Problem

_LAUNCHER = "ACCELERATE_MIXED_PRECISION"
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
_DEEPSPEED_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"


@dataclass(frozen=True)
class LauncherEnv:
    """How the launcher started this run."""

    num_processes: int
    by_accelerate: bool
    mixed_precision: str
    strategy: Strategy
    num_threads: int
    lacks_processes: bool
    """Whether accelerate started one process although several were requested."""
    deepspeed_precision: Mapping[str, bool]
    """Whether DeepSpeed's file enables fp16 and bf16; a type set to `auto` is absent."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> LauncherEnv:
        """Read the variables of accelerate and torchrun. Without them, one process runs."""
        num_processes = int(env.get("WORLD_SIZE", "1"))
        strategy: Strategy = "ddp" if num_processes > 1 else "single"
        if _is_on(env, "ACCELERATE_USE_DEEPSPEED"):
            strategy = "deepspeed"
        if _is_on(env, "ACCELERATE_USE_FSDP"):
            strategy = "fsdp"
        return cls(
            num_processes=num_processes,
            by_accelerate=_LAUNCHER in env,
            mixed_precision=env.get(_LAUNCHER, "no"),
            strategy=strategy,
            num_threads=int(env.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
            # If several processes are requested, accelerate sets address and port, but with --cpu
            # it starts one without WORLD_SIZE. Some clusters export an address for every job, so
            # the address alone does not count.
            lacks_processes=all(name in env for name in (_LAUNCHER, *_ADDRESS))
            and "WORLD_SIZE" not in env,
            deepspeed_precision=_deepspeed_precision(env) if strategy == "deepspeed" else {},
        )

    @property
    def precision(self) -> str:
        """The launcher's compute type: accelerate's, or that of DeepSpeed's file."""
        enabled = [dtype for dtype, is_on in self.deepspeed_precision.items() if is_on]
        return enabled[0] if self.mixed_precision == "no" and enabled else self.mixed_precision


def _is_on(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "").lower() in ("true", "1")


def _deepspeed_precision(env: Mapping[str, str]) -> dict[str, bool]:
    """Whether DeepSpeed's file enables fp16 and bf16. Raises SettingsError if it is not JSON."""
    path = Path(env.get(_DEEPSPEED_FILE, ""))
    config = read_deepspeed(path) if path.is_file() else {}
    enabled = {dtype: mapping(config.get(dtype)).get("enabled") for dtype in ("fp16", "bf16")}
    return {dtype: value for dtype, value in enabled.items() if isinstance(value, bool)}


def launcher_problems(launcher: LauncherEnv) -> list[Problem]:
    """Report a launcher that started fewer processes than requested."""
    if not launcher.lacks_processes:
        return []
    return [
        Problem(
            "several processes were requested, but one was started, as --cpu and MULTI_CPU do; "
            "`accelerate launch --multi_gpu --num_processes N` starts them all, also on a CPU. To "
            f"train with one process, unset the exported address: `unset {' '.join(_ADDRESS)}`",
            "accelerate launch",
        )
    ]


def precision_problems(precision: str, launcher: LauncherEnv) -> list[Problem]:
    """Report a precision that contradicts DeepSpeed's file, which has priority."""
    return [
        Problem(
            f"{precision}, but DeepSpeed's configuration has {dtype} {'on' if is_on else 'off'}; "
            'omit the flag to follow the file, or write "enabled": "auto" there to follow the flag',
            "--mixed_precision",
        )
        for dtype, is_on in launcher.deepspeed_precision.items()
        if is_on is not (dtype == precision)
    ]
