"""The configuration file for `accelerate launch`, which would otherwise read the user's default.

The settings define the number of processes and the precision. A file in `infra/accelerate` defines
the machines and the sharding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreambooth_core import files
from dreambooth_core.config import LaunchConfig, TrainSettings, deepspeed_config
from dreambooth_core.errors import SettingsError
from dreambooth_core.supervision import free_port
from dreambooth_core.training.job import TrainJob

RANK = "DREAMBOOTH_MACHINE_RANK"
"""Environment variable with the rank of this machine; rank 0 leads the training."""
RENDEZVOUS = "DREAMBOOTH_RENDEZVOUS"
"""Environment variable with `host:port` of the machine of rank 0, the same on all machines."""
_HOW_TO = (
    f"start it on every machine with {RANK}=0, 1, ... and {RENDEZVOUS}=host:port of machine 0 "
    "(docs/how-to-several-machines.md)"
)


@dataclass(frozen=True)
class Node:
    """One of several machines: its rank, and the `host:port` of rank 0."""

    rank: int
    rendezvous: str


def node_of(env: Mapping[str, str]) -> Node | None:
    """Read this machine's rank and rendezvous from its environment; None if neither is set.

    Raises SettingsError if only one is set, or one is malformed.
    """
    rank, rendezvous = env.get(RANK), env.get(RENDEZVOUS)
    if rank is None and rendezvous is None:
        return None
    if not (rank or "").isdecimal() or not re.fullmatch(r"[^:]+:\d+", rendezvous or ""):
        raise SettingsError(
            "the environment must define both the rank and the rendezvous of this machine",
            got=f"{RANK}={rank}, {RENDEZVOUS}={rendezvous}",
            allowed=f"{RANK}=0, 1, ... and {RENDEZVOUS}=host:port of machine 0, or neither",
            hint=_HOW_TO,
        )
    return Node(rank=int(rank or 0), rendezvous=rendezvous or "")


def check_node(train: TrainSettings, launch: LaunchConfig | None, node: Node | None) -> None:
    """Raise SettingsError if several machines train and `node` is None."""
    if launch is not None and launch.num_machines > 1 and node is None:
        raise SettingsError(
            f"train.accelerate_config {train.accelerate_config} is for {launch.num_machines} "
            "machines, but the rank of this one is not set",
            got=f"neither {RANK} nor {RENDEZVOUS}",
            hint=_HOW_TO,
        )


def accelerate_options(job: TrainJob, node: Node | None) -> list[str]:
    """Write the configuration to the state folder; return the options before the program.

    Raises SettingsError if several machines train and `node` is None.
    """
    path = job.state_dir / f"accelerate-{node.rank if node else 0}.json"
    several = job.train.num_processes > 1
    config = _config(job)
    if config["num_machines"] > 1:
        config |= _meeting(job, node)
    files.write_json(path, config)
    options = ["--config_file", str(path)]
    if config["num_machines"] > 1 and node is not None:
        # Otherwise a machine compares its own host name with the rendezvous.
        options += ["--rdzv_conf", f"is_host={int(node.rank == 0)}"]
    elif several or job.launch is not None:
        options += ["--main_process_port", str(free_port())]
    return options


def _config(job: TrainJob) -> dict[str, Any]:
    """The configuration of `train.accelerate_config`, or one for this machine alone.

    "MULTI_GPU" makes the launcher start several processes, also on CPUs; with `--cpu` it starts
    only one. The trainer picks its own device. It also shards the weights for FSDP itself, because
    accelerate ignores FSDP on a CPU.
    """
    several = job.train.num_processes > 1
    plain = "MULTI_GPU" if several else "NO"
    base = {
        "compute_environment": "LOCAL_MACHINE",
        "num_machines": 1,
        "machine_rank": 0,
        "debug": False,
    }
    config = {**base, **(job.launch.accelerate if job.launch else {})}
    config |= {"num_processes": job.train.num_processes, "use_cpu": False}
    if config.get("distributed_type") == "DEEPSPEED":
        return {**config, "deepspeed_config": _deepspeed_section(job)}
    config.pop("fsdp_config", None)
    return {**config, "distributed_type": plain, "mixed_precision": job.train.mixed_precision}


def _deepspeed_section(job: TrainJob) -> dict[str, Any]:
    assert job.launch is not None
    assert job.launch.deepspeed is not None
    path = job.state_dir / "deepspeed.json"
    files.write_json(path, deepspeed_config(job.launch.deepspeed, job.train))
    return {"deepspeed_config_file": str(path), "zero3_init_flag": False}


def _meeting(job: TrainJob, node: Node | None) -> dict[str, Any]:
    check_node(job.train, job.launch, node)
    assert node is not None
    host, _, port = node.rendezvous.rpartition(":")
    return {"machine_rank": node.rank, "main_process_ip": host, "main_process_port": int(port)}
