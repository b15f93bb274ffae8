"""What `accelerate launch` is told: a configuration of our own, as a user's default would be read.

The settings say how many processes compute in which precision; a file of `infra/accelerate` says
how they are spread over machines and what splits the optimizer's state.
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
"""Variable that numbers the machines of a training; the one of rank 0 leads."""
RENDEZVOUS = "DREAMBOOTH_RENDEZVOUS"
"""Variable with `host:port` of the machine of rank 0, the same on all."""
_HOW_TO = (
    f"start it on every machine with {RANK}=0, 1, ... and {RENDEZVOUS}=host:port of machine 0 "
    "(docs/how-to-several-machines.md)"
)


@dataclass(frozen=True)
class Node:
    """One machine of several: its number, and `host:port` where all machines meet."""

    rank: int
    rendezvous: str


def node_of(env: Mapping[str, str]) -> Node | None:
    """Which of several machines this is, by its environment; None where it says nothing.

    Raises SettingsError when it says half of it, or something else.
    """
    rank, rendezvous = env.get(RANK), env.get(RENDEZVOUS)
    if rank is None and rendezvous is None:
        return None
    if not (rank or "").isdecimal() or not re.fullmatch(r"[^:]+:\d+", rendezvous or ""):
        raise SettingsError(
            "the environment does not say which of several machines this is",
            got=f"{RANK}={rank}, {RENDEZVOUS}={rendezvous}",
            allowed=f"{RANK}=0, 1, ... and {RENDEZVOUS}=host:port of machine 0, or neither",
            hint=_HOW_TO,
        )
    return Node(rank=int(rank or 0), rendezvous=rendezvous or "")


def check_node(train: TrainSettings, launch: LaunchConfig | None, node: Node | None) -> None:
    """Raise SettingsError when several machines take part and `node` does not say which this is."""
    if launch is not None and launch.num_machines > 1 and node is None:
        raise SettingsError(
            f"train.accelerate_config {train.accelerate_config} is for {launch.num_machines} "
            "machines, and this one was not told which it is",
            got=f"neither {RANK} nor {RENDEZVOUS}",
            hint=_HOW_TO,
        )


def accelerate_options(job: TrainJob, node: Node | None) -> list[str]:
    """The options before the program, with the files that they name written to the state's folder.

    Raises SettingsError when several machines are asked for and `node` does not say which is this.
    """
    path = job.state_dir / f"accelerate-{node.rank if node else 0}.json"
    several = job.train.num_processes > 1
    config = _config(job)
    if config["num_machines"] > 1:
        config |= _meeting(job, node)
    files.write_json(path, config)
    options = ["--config_file", str(path)]
    if config["num_machines"] > 1 and node is not None:
        # Else a machine finds out by its own name whether it is the one where all meet.
        options += ["--rdzv_conf", f"is_host={int(node.rank == 0)}"]
    elif several or job.launch is not None:
        options += ["--main_process_port", str(free_port())]
    return options


def _config(job: TrainJob) -> dict[str, Any]:
    """The file of the settings or, without one, the processes of one machine.

    "MULTI_GPU" is how the launcher is told to start several processes, on CPUs too: its `--cpu`
    with two processes starts one. The trainer itself says on what it computes, and splits the
    weights itself where FSDP is asked for, which accelerate passes over on a CPU.
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
