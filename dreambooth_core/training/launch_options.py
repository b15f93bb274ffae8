"""What `accelerate launch` is told: a configuration of our own, as a user's default would be read.

The settings say how many processes compute in which precision; a file of `infra/accelerate` says
how they are spread over machines and what splits the optimizer's state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dreambooth_core import files
from dreambooth_core.config import deepspeed_config
from dreambooth_core.errors import SettingsError
from dreambooth_core.training import processes
from dreambooth_core.training.job import TrainJob


@dataclass(frozen=True)
class Node:
    """One machine of several: its number, and `host:port` where all machines meet."""

    rank: int
    rendezvous: str


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
        options += ["--main_process_port", str(processes.free_port())]
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
    assert job.launch is not None
    if node is None:
        raise SettingsError(
            f"{job.train.accelerate_config} is for {job.launch.num_machines} machines, and this "
            "one was not told which it is",
            hint="start it on every machine with its rank and the place where they meet "
            "(docs/how-to-several-machines.md)",
        )
    host, _, port = node.rendezvous.rpartition(":")
    return {"machine_rank": node.rank, "main_process_ip": host, "main_process_port": int(port)}
