"""Which of several machines this is, and what it is told to wait for."""

import shutil

import pytest

from dreambooth_core.__main__ import main
from dreambooth_core.errors import CorruptRecordError, SettingsError
from dreambooth_core.pipeline import train_node
from dreambooth_core.training.launch.accelerate_config import (
    RANK,
    RENDEZVOUS,
    Node,
    accelerate_options,
    node_of,
)
from tests.paths import ROOT
from tests.unit.training import tiny


def test_machine_needs_both_rank_and_rendezvous_or_neither():
    assert node_of({}) is None
    assert node_of({RANK: "1", RENDEZVOUS: "n0:29500"}) == Node(rank=1, rendezvous="n0:29500")


@pytest.mark.parametrize(
    "env",
    [{RANK: "1"}, {RENDEZVOUS: "n0:29500"}, {RANK: "x", RENDEZVOUS: "n0:1"},
     {RANK: "0", RENDEZVOUS: "n0"}],
)  # fmt: skip
def test_half_of_it_is_refused_with_what_is_missing(env):
    with pytest.raises(SettingsError, match="DREAMBOOTH_RENDEZVOUS=host:port of machine 0"):
        node_of(env)


def test_configuration_for_two_machines_needs_a_rank(tmp_path, tiny_sd):
    job = tiny.make_job(
        tmp_path,
        tiny_sd,
        accelerate_config="two-nodes-x-8",
        num_processes=16,
        mixed_precision="bf16",
    )
    job.state_dir.mkdir(parents=True)
    with pytest.raises(SettingsError, match="for 2 machines, but the rank of this one is not set"):
        accelerate_options(job, None)
    options = accelerate_options(job, Node(rank=1, rendezvous="n0:29500"))
    assert options[-2:] == ["--rdzv_conf", "is_host=0"]


def test_machine_stops_waiting_for_the_leading_one(tmp_path, monkeypatch, capsys):
    def no_cache_yet(*_: object) -> None:
        raise CorruptRecordError("the cache is not there")

    monkeypatch.setattr(train_node.train, "make_job", no_cache_yet)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.setattr(train_node, "_POLL_S", 0.01)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RANK, "1")
    monkeypatch.setenv(RENDEZVOUS, "n0:29500")
    assert main(["train-node", "--subject", "mug", "--wait-min", "0.003"]) == 1
    told = capsys.readouterr().err
    assert "the machine of rank 0 has not come to the training of mug" in told
    assert "no job of these settings after 0.003 min" in told
    assert "--wait-min waits longer" in told
