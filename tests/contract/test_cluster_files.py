"""The Slurm script and the Kubernetes file of docs/how-to-several-machines.md, with stand-ins.

What they start must get the SIGTERM that the cluster sends, with time to save.
"""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dreambooth_core import config
from tests.paths import ROOT

_PAGE = (ROOT / "docs" / "how-to-several-machines.md").read_text()
_PROGRAM = """#!/bin/bash
# Stands in for `{name}`: says what it is, waits, and says when it is asked to stop.
trap 'echo "{name} was asked to stop"; exit 3' TERM
echo "{name} $*"
for _ in $(seq 1200); do sleep 0.05; done  # no test waits for a minute
"""
_SRUN = '#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\nexec "$@"\n'
STARTED = {"0": "dreambooth run mug", "1": "python -m dreambooth_core train-node --subject mug"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", _PAGE, flags=re.DOTALL)


def slurm_script() -> str:
    return next(text for text in blocks("sh") if "#SBATCH" in text)


def pod() -> dict[str, Any]:
    documents = list(YAML(typ="safe").load_all(blocks("yaml")[0]))
    return next(d for d in documents if d["kind"] == "Job")["spec"]["template"]["spec"]


def longest_grace_s() -> float:
    presets = sorted((ROOT / "presets").glob("*.yaml"))
    return max(config.load_settings(path).runtime.stop_grace_s for path in presets)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with stand-ins for all programs that the files start."""
    texts = {name: _PROGRAM.format(name=name) for name in ("dreambooth", "python")}
    for name, text in (texts | {"srun": _SRUN, "scontrol": "#!/bin/bash\necho n0\n"}).items():
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def asked_to_stop(command: list[str], programs: Path, **variables: str) -> tuple[str, str, int]:
    """The first and last line of the started process, and its exit code after SIGTERM."""
    process = subprocess.Popen(
        command,
        env={"PATH": f"{programs}:/usr/bin:/bin", **variables},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline().strip()
    process.send_signal(signal.SIGTERM)
    try:
        last = process.communicate(timeout=10)[0].strip()
    finally:
        process.kill()
    return first, last, process.returncode


@pytest.mark.parametrize("rank", STARTED)
def test_kubernetes_container_passes_sigterm_on_to_the_training(rank, programs):
    first, last, code = asked_to_stop(
        pod()["containers"][0]["command"], programs, JOB_COMPLETION_INDEX=rank
    )
    assert first == STARTED[rank]
    assert (last, code) == (f"{first.split()[0]} was asked to stop", 3)


@pytest.mark.parametrize("rank", STARTED)
def test_slurm_task_passes_sigterm_on_to_the_training(rank, programs):
    script = slurm_script().replace("srun ", "exec srun ")  # the task's own process is asked
    first, last, code = asked_to_stop(
        ["bash", "-c", script], programs, SLURM_NODEID=rank, SLURM_JOB_NODELIST="n[0-1]"
    )
    assert first == STARTED[rank]
    assert (last, code) == (f"{first.split()[0]} was asked to stop", 3)


def test_clusters_wait_longer_than_any_preset_stop_grace():
    announced = re.search(r"#SBATCH --signal=TERM@(\d+)", slurm_script())
    assert announced is not None
    assert int(announced[1]) > longest_grace_s()
    assert pod()["terminationGracePeriodSeconds"] > longest_grace_s()


def test_failed_leader_ends_the_other_slurm_machines():
    assert "srun --kill-on-bad-exit=1 " in slurm_script()
