"""Two network namespaces as two machines: c10d rendezvous, a process each, the same losses.

Each has a host name and an address of its own and nothing but a cable between them; they share the
file system, as machines of a cluster do.
"""

import contextlib
import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dreambooth_core import files
from dreambooth_core.config import LaunchConfig
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.launch.launcher import run_trainer
from tests.unit.training import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_ADDRESSES = ("10.77.0.1", "10.77.0.2")
_RUN = (
    "import sys; from pathlib import Path\n"
    "from dreambooth_core.training.job import TrainJob\n"
    "from dreambooth_core.training.launch.launcher import run_trainer\n"
    "from dreambooth_core.training.launch.accelerate_config import Node\n"
    "node = Node(rank=int(sys.argv[2]), rendezvous=sys.argv[3])\n"
    "print(run_trainer(TrainJob.load(Path(sys.argv[1])), grace_s=10, node=node).how)\n"
)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Names of two connected network namespaces, removed in the end."""
    names = [f"dreambooth-{os.getpid()}-{rank}" for rank in (0, 1)]
    if not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("ip and unshare are needed to make network namespaces")
    with contextlib.ExitStack() as stack:
        for name in names:
            try:
                _ip("netns", "add", name)
            except subprocess.CalledProcessError:
                pytest.skip("network namespaces cannot be made here")
            stack.callback(_ip, "netns", "delete", name)
        _ip(
            "-n",
            names[0],
            "link",
            "add",
            "cable",
            "type",
            "veth",
            "peer",
            "cable",
            "netns",
            names[1],
        )
        for name, address in zip(names, _ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names


def _start(machine: str, job: TrainJob, *, rank: int) -> subprocess.Popen[str]:
    """Run the trainer's launch on a machine whose host name is its address."""
    inside = f'hostname {_ADDRESSES[rank]}; exec "$@"'
    command = ["ip", "netns", "exec", machine, "unshare", "--uts", "sh", "-c", inside, "sh"]
    command += [sys.executable, "-c", _RUN, str(job.path), str(rank), f"{_ADDRESSES[0]}:29500"]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "cable"},
    )


def test_two_machines_have_the_losses_of_two_processes_on_one(tmp_path, tiny_sd, machines):
    one = tiny.make_job(tmp_path, tiny_sd, name="one", num_processes=2)
    assert run_trainer(one, grace_s=10).how == "done"
    launch = LaunchConfig(
        accelerate={
            "distributed_type": "MULTI_GPU",
            "num_machines": 2,
            "rdzv_backend": "c10d",
            "same_network": False,
        }
    )
    two = tiny.make_job(tmp_path, tiny_sd, name="two", num_processes=2)
    two = two.model_copy(update={"launch": launch})
    two.state_dir.mkdir(parents=True)
    two.save()
    started = [_start(machine, two, rank=rank) for rank, machine in enumerate(machines)]
    told = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    assert all(text.rstrip().endswith("done") for text in told)
    tables = [list(csv.DictReader((j.out_dir / "metrics.csv").open())) for j in (one, two)]
    assert tables[0] == tables[1]
    assert files.tree_hashes(two.out_dir) == files.tree_hashes(one.out_dir)
