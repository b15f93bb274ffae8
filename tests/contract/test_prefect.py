"""prefect.yaml deploys existing flows, and flows are plain sequences of calls."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest

from dreambooth_core import config
from tasks import forms

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = {
    f"{d['flow_name']}/{d['name']}": d
    for d in config.read_yaml(ROOT / "prefect.yaml")["deployments"]
}
FLOW_FILES = ("train_subject.py", "retrain_all.py", "dreambench.py", "evaluate_again.py")


def test_deployments_named_by_the_documentation_exist() -> None:
    local = {f"{flow}/local" for flow in ("train-subject", "sweep", "dreambench", "evaluate-again")}
    assert set(DEPLOYMENTS) == {*local, "retrain-all/nightly"}
    assert DEPLOYMENTS["retrain-all/nightly"]["schedules"][0]["cron"] == "0 2 * * *"


def test_deployments_take_the_pool_of_the_settings() -> None:
    """Prefect ignores --pool for several deployments, so only the settings can name another one."""
    assert [name for name, deployment in DEPLOYMENTS.items() if "work_pool" in deployment] == []
    settings = tomllib.loads((ROOT / "prefect.toml").read_text())
    assert settings["deployments"] == {"default_work_pool_name": "local"}


@pytest.mark.parametrize(
    ("name", "tag", "limit"),
    [
        ("train-subject/local", "training", {"limit": 1, "collision_strategy": "ENQUEUE"}),
        ("retrain-all/nightly", "training", {"limit": 1, "collision_strategy": "CANCEL_NEW"}),
        ("evaluate-again/local", "scoring", {"limit": 1, "collision_strategy": "ENQUEUE"}),
        ("dreambench/local", "scoring", {"limit": 1, "collision_strategy": "ENQUEUE"}),
        ("sweep/local", "search", None),
    ],
)
def test_deployment_has_the_tags_and_limit_of_the_documentation(
    name: str, tag: str, limit: dict[str, object] | None
) -> None:
    assert DEPLOYMENTS[name]["tags"] == ["dreambooth", tag]
    assert DEPLOYMENTS[name].get("concurrency_limit") == limit
    assert DEPLOYMENTS[name]["description"].endswith(".")
    assert f"`{tag}`" in (ROOT / "docs" / "how-to-schedule.md").read_text()


def test_run_with_the_default_heartbeats_is_not_called_lost() -> None:
    from prefect.settings.models.flows import FlowsSettings

    every_s = FlowsSettings.model_fields["heartbeat_frequency"].default
    lost, *_ = config.read_yaml(ROOT / "infra/automations/lost-runs.yaml")["automations"]
    assert lost["trigger"]["after"] == ["prefect.flow-run.heartbeat"]
    assert lost["trigger"]["within"] >= 3 * every_s


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
def test_entrypoint_is_a_flow_that_takes_its_parameters(name: str) -> None:
    file, function = DEPLOYMENTS[name]["entrypoint"].split(":")
    flow = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), function)
    assert flow.name == DEPLOYMENTS[name]["flow_name"]
    assert set(DEPLOYMENTS[name].get("parameters", {})) <= set(flow.parameters.properties)


def test_form_offers_the_subjects_and_describes_every_parameter() -> None:
    from flows.dreambench import dreambench
    from flows.evaluate_again import evaluate_again
    from flows.retrain_all import retrain_all
    from flows.sweep import sweep
    from flows.train_subject import train_subject

    subjects = sorted(config.read_yaml(ROOT / "params.yaml")["subjects"])
    assert train_subject.parameters.properties["subject"]["enum"] == subjects
    for flow in (train_subject, retrain_all, sweep, dreambench, evaluate_again):
        assert all(p["description"] for p in flow.parameters.properties.values())


def test_form_offers_settings_with_the_limits_of_their_declarations() -> None:
    from flows.train_subject import train_subject

    changes = train_subject.parameters.properties["changes"]
    assert changes["type"] == "object"  # with `anyOf`, the form shows no field before a click
    assert changes["default"] is None
    offered = changes["properties"]
    assert offered["train.learning_rate"]["exclusiveMinimum"] == 0
    assert offered["train.method"]["enum"] == ["full", "lora"]
    assert all(field["description"] and "default" not in field for field in offered.values())


def test_form_outside_a_workspace_takes_any_name(tmp_path: Path) -> None:
    assert forms.subject_schema(tmp_path) == {"type": "string"}


def test_deployment_accepts_subjects_that_are_newer_than_its_form() -> None:
    assert DEPLOYMENTS["train-subject/local"]["enforce_parameter_schema"] is False


@pytest.mark.parametrize("file", FLOW_FILES)
def test_flows_have_no_branches_loops_or_arithmetic(file: str) -> None:
    tree = ast.parse((ROOT / "flows" / file).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    logic = (ast.If, ast.For, ast.While, ast.Try, ast.BinOp, ast.Compare, ast.Lambda)
    found = [node for f in functions for b in f.body for node in ast.walk(b)]
    assert [type(n).__name__ for n in found if isinstance(n, logic)] == []


def test_no_task_uses_prefect_result_cache() -> None:
    from prefect import Task
    from prefect.cache_policies import NO_CACHE

    from tasks import changes, evaluate_again, pipeline

    tasks = [
        v
        for m in (pipeline, changes, evaluate_again)
        for v in vars(m).values()
        if isinstance(v, Task)
    ]
    assert len(tasks) >= 11
    assert [task.name for task in tasks if task.cache_policy != NO_CACHE] == []


def test_lock_file_pins_sqlalchemy_2_0_for_prefect_scheduler() -> None:
    """With 2.1 the server of Prefect 3.8 creates no scheduled run, silently."""
    locked = (ROOT / "requirements.lock").read_text().lower()
    version = re.search(r"^sqlalchemy==(\d+)\.(\d+)", locked, re.MULTILINE)
    assert version is not None
    assert (int(version[1]), int(version[2])) == (2, 0)


def test_servers_of_up_listen_on_loopback_alone() -> None:
    services = config.read_yaml(ROOT / "infra" / "local" / "services.yaml")["services"]
    commands = [service["command"] for service in services]
    hosts = [words[words.index("--host") + 1] for words in commands if "--host" in words]
    assert hosts == ["127.0.0.1", "127.0.0.1"]
    assert not any("0.0.0.0" in word for words in commands for word in words)
