"""The launcher's environment: processes, precision, and settings that cannot work."""

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
    """The processes of this run, from the environment variables of the launcher."""

    num_processes: int
    is_main: bool
    by_accelerate: bool
    mixed_precision: str
    strategy: Strategy
    num_threads: int
    is_lonely: bool
    """Whether accelerate started one process although several were requested."""
    deepspeed_halves: Mapping[str, bool]
    """fp16 and bf16 as DeepSpeed's file turns them on or off; `auto` is absent."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> LauncherEnv:
        """Read the variables of accelerate and torchrun; without them there is one process."""
        num_processes = int(env.get("WORLD_SIZE", "1"))
        strategy: Strategy = "ddp" if num_processes > 1 else "single"
        if _is_on(env, "ACCELERATE_USE_DEEPSPEED"):
            strategy = "deepspeed"
        if _is_on(env, "ACCELERATE_USE_FSDP"):
            strategy = "fsdp"
        return cls(
            num_processes=num_processes,
            is_main=env.get("RANK", "0") == "0",
            by_accelerate=_LAUNCHER in env,
            mixed_precision=env.get(_LAUNCHER, "no"),
            strategy=strategy,
            num_threads=int(env.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
            # For several it sets address and port; for one, on a CPU, nothing that says how many.
            # Clusters export an address for all that runs there: by itself it says nothing.
            is_lonely=all(name in env for name in (_LAUNCHER, *_ADDRESS))
            and "WORLD_SIZE" not in env,
            deepspeed_halves=_deepspeed_halves(env) if strategy == "deepspeed" else {},
        )

    @property
    def precision(self) -> str:
        """The launcher's compute type: accelerate's, else that of DeepSpeed's file."""
        halves = [half for half, is_on in self.deepspeed_halves.items() if is_on]
        return halves[0] if self.mixed_precision == "no" and halves else self.mixed_precision


def _is_on(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "").lower() in ("true", "1")


def _deepspeed_halves(env: Mapping[str, str]) -> dict[str, bool]:
    """fp16 and bf16 in DeepSpeed's file. Raises SettingsError if it is not JSON."""
    path = Path(env.get(_DEEPSPEED_FILE, ""))
    told = read_deepspeed(path) if path.is_file() else {}
    enabled = {half: mapping(told.get(half)).get("enabled") for half in ("fp16", "bf16")}
    return {half: value for half, value in enabled.items() if isinstance(value, bool)}


def launcher_problems(launcher: LauncherEnv) -> list[Problem]:
    """Report a launcher that started fewer processes than it was told to."""
    if not launcher.is_lonely:
        return []
    return [
        Problem(
            "several processes were requested, but one was started, as happens with --cpu and "
            "MULTI_CPU; `accelerate launch --multi_gpu --num_processes N` starts them all, on a "
            "CPU too. If you wanted one process, your own environment sets "
            f"{' and '.join(_ADDRESS)}: `unset {' '.join(_ADDRESS)}`",
            "accelerate launch",
        )
    ]


def precision_problems(precision: str, launcher: LauncherEnv) -> list[Problem]:
    """Report a precision that contradicts DeepSpeed's own file, which DeepSpeed follows."""
    return [
        Problem(
            f"{precision}, but DeepSpeed's configuration has {half} {'on' if is_on else 'off'}; "
            'leave the flag out to follow the file, or write "enabled": "auto" there to follow '
            "the flag",
            "--mixed_precision",
        )
        for half, is_on in launcher.deepspeed_halves.items()
        if is_on is not (half == precision)
    ]
