"""How the services answer when they hold much: `python -m benchmarks.scale mlflow|prefect`.

Both start PostgreSQL, fill it with rows like those that runs leave, and measure the calls that the
pipeline and its pages make.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dreambooth_core import files
from dreambooth_core.supervision import free_port
from tests.postgres import postgres

RESULTS = Path(__file__).parent / "results"
MODELS, VERSIONS_EACH, TAGS_EACH = 200, 50, 20
RUNS = 10_000
SUBJECTS = 200


def milliseconds(call: Callable[[], Any], *, times: int = 9) -> float:
    """The median duration of a call, after one to warm up."""
    call()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(taken), 1)


def mlflow() -> dict[str, Any]:
    """10,000 versions of 200 models, each with 20 tags."""
    from mlflow import MlflowClient

    with postgres() as uri:
        client = MlflowClient(uri, uri)
        client.create_registered_model("subject-0")
        client.create_model_version("subject-0", "file:///x", tags={"tag0": "x"})
        client.set_registered_model_alias("subject-0", "champion", "1")
        few = _version_calls(client)
        _add_versions(uri)
        return {"1 version": few, f"{MODELS * VERSIONS_EACH} versions": _version_calls(client)}


def _add_versions(uri: str) -> None:
    """Copy the rows of the one version."""
    engine, tables = sa.create_engine(uri), sa.MetaData()
    tables.reflect(engine)
    with engine.begin() as db:

        def copies(table: str, keys: list[dict[str, Any]]) -> None:
            own = tables.tables[table]
            row = dict(db.execute(sa.select(own)).mappings().first() or {})
            new = [{**row, **key} for key in keys if any(row[k] != v for k, v in key.items())]
            for start in range(0, len(new), 5000):
                db.execute(own.insert(), new[start : start + 5000])

        names = [f"subject-{number}" for number in range(MODELS)]
        each = [(name, version) for name in names for version in range(1, VERSIONS_EACH + 1)]
        copies("registered_models", [{"name": name} for name in names])
        copies("registered_model_aliases", [{"name": name} for name in names])
        copies("model_versions", [{"name": name, "version": version} for name, version in each])
        tags = [
            {"name": n, "version": v, "key": f"tag{k}"} for n, v in each for k in range(TAGS_EACH)
        ]
        copies("model_version_tags", tags)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
        db.execute(sa.text("VACUUM ANALYZE"))


def _version_calls(client: Any) -> dict[str, float]:
    name = "subject-0"
    calls: dict[str, Callable[[], Any]] = {
        "champion by alias": lambda: client.get_model_version_by_alias(name, "champion"),
        "all versions of a subject": lambda: client.search_model_versions(f"name='{name}'"),
        "move an alias": lambda: client.set_registered_model_alias(name, "challenger", "1"),
        "tag a version": lambda: client.set_model_version_tag(name, "1", "t", "v"),
        "first page of models": lambda: client.search_registered_models(max_results=100),
    }
    return {f"{label}, ms": milliseconds(call) for label, call in calls.items()}


def prefect() -> dict[str, Any]:
    """10,000 finished flow runs of 200 subjects, each with the subject's tag."""
    with postgres() as uri, tempfile.TemporaryDirectory() as home:
        port = free_port()
        api = f"http://127.0.0.1:{port}/api"
        environment = {
            **os.environ,
            "PREFECT_HOME": home,
            "PREFECT_API_DATABASE_CONNECTION_URL": uri.replace("postgresql", "postgresql+asyncpg"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait_for(f"{api}/health")
            flow = _post(f"{api}/flows/", {"name": "train-subject"})["id"]
            few = _run_calls(api, flow)
            _add_runs(uri)
            many = _run_calls(api, flow)
        finally:
            server.terminate()
            server.wait(60)
        return {"1 run": few, f"{RUNS} runs": many}


def _add_runs(uri: str) -> None:
    """Copy the one run and its state."""
    engine, tables = sa.create_engine(uri), sa.MetaData()
    tables.reflect(engine)
    runs, states = tables.tables["flow_run"], tables.tables["flow_run_state"]
    with engine.begin() as db:
        run = dict(db.execute(sa.select(runs)).mappings().first() or {})
        state = dict(db.execute(sa.select(states)).mappings().first() or {})
        ids = [(uuid.uuid4(), uuid.uuid4(), number) for number in range(RUNS)]
        new = [
            {**run, "id": own, "state_id": None, "name": f"train-subject s{number % SUBJECTS}",
             "tags": [f"s{number % SUBJECTS}"], "idempotency_key": None}
            for own, _, number in ids
        ]  # fmt: skip
        db.execute(runs.insert(), new)
        db.execute(states.insert(), [{**state, "id": s, "flow_run_id": own} for own, s, _ in ids])
        db.execute(sa.text("UPDATE flow_run SET state_id = s.id FROM flow_run_state s"
                           " WHERE s.flow_run_id = flow_run.id"))  # fmt: skip
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
        db.execute(sa.text("VACUUM ANALYZE"))


def _run_calls(api: str, flow: str) -> dict[str, float]:
    def create() -> None:
        state = {"type": "COMPLETED", "name": "Completed"}
        _post(f"{api}/flow_runs/", {"flow_id": flow, "tags": ["s0"], "state": state})

    create()
    running = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
    subject = {"flow_runs": {"tags": {"all_": ["s0"]}}, "limit": 100, "sort": "START_TIME_DESC"}
    return {
        "create a run, ms": milliseconds(create),
        "the runs in work, ms": milliseconds(lambda: _post(f"{api}/flow_runs/filter", running)),
        "the runs of a subject, ms": milliseconds(
            lambda: _post(f"{api}/flow_runs/filter", subject)
        ),
        "a page of all runs, ms": milliseconds(
            lambda: _post(f"{api}/flow_runs/paginate", {"limit": 50, "sort": "START_TIME_DESC"})
        ),
        "count all runs, ms": milliseconds(lambda: _post(f"{api}/flow_runs/count", {})),
    }


def _post(url: str, body: dict[str, Any]) -> Any:
    import json

    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def _wait_for(url: str) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    raise TimeoutError(url)


def main() -> None:
    """Measure one part and write benchmarks/results/scale-PART.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = {"mlflow": mlflow, "prefect": prefect}
    parser.add_argument("part", choices=parts)
    part = parser.parse_args().part
    load = os.getloadavg()[0]
    result = {
        "load of the machine before": round(load, 1),
        "cores": os.cpu_count(),
        **parts[part](),
    }
    files.write_json(RESULTS / f"scale-{part}.json", result)
    print(result)


if __name__ == "__main__":
    main()
