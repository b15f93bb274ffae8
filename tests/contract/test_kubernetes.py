"""infra/kubernetes builds, fits Kubernetes' schemas, and grants no more than needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dreambooth_core import config
from tests import services
from tests.paths import ROOT

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")

_PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def built(folder: Path, *, ray: bool = False) -> list[dict[str, Any]]:
    """The resources of the overlay."""
    shutil.copytree(services.INFRA, folder / "infra", ignore=shutil.ignore_patterns("*.env"))
    overlay = folder / "infra" / "kubernetes" / "overlays" / "example"
    services.make_secrets(overlay / "secrets.env")
    if ray:
        file = overlay / "kustomization.yaml"
        file.write_text(file.read_text().replace("# components:", "components:"))
    done = subprocess.run(
        ["kubectl", "kustomize", overlay], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    (folder / "built.yaml").write_text(done.stdout)
    return list(YAML(typ="safe").load_all(done.stdout))


def flow_run() -> dict[str, Any]:
    """The job of a flow run, as Prefect fills the template in."""
    template = json.loads((services.INFRA / "kubernetes/base/work-pool.json").read_text())
    variables = template["variables"]["properties"]
    own = {"command": ["prefect", "flow-run", "execute"], "labels": {"app": "x"}, "name": "run"}
    text = json.dumps(template["job_configuration"]["job_manifest"])
    for name, variable in variables.items():
        value = own.get(name, variable.get("default"))
        text = text.replace(f'"{{{{ {name} }}}}"', json.dumps(value))
        text = text.replace(f"{{{{ {name} }}}}", str(value))
    assert "{{" not in text
    return json.loads(text)


def pods(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pod templates, those of Ray included."""
    found: list[dict[str, Any]] = []
    for resource in resources:
        spec = resource.get("spec", {})
        groups = [spec, spec.get("headGroupSpec", {}), *spec.get("workerGroupSpecs", ())]
        found += [group["template"]["spec"] for group in groups if "template" in group]
    return found


def test_every_resource_fits_the_schema_of_kubernetes(tmp_path: Path) -> None:
    validator = shutil.which("kubernetes-validate", path=_PATH)
    if validator is None:
        pytest.skip("needs the extra `infra`")
    kinds = {resource["kind"] for resource in built(tmp_path)}
    assert {"StatefulSet", "Deployment", "Job", "NetworkPolicy", "Secret"} <= kinds
    job = tmp_path / "job.yaml"
    named = flow_run()  # the cluster makes the name up; the validator wants one
    named["metadata"]["name"] = "run"
    job.write_text(json.dumps(named))
    command = [validator, "--strict", "--kubernetes-version", "1.33.0"]
    done = subprocess.run(
        [*command, tmp_path / "built.yaml", job], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_pod_fulfils_the_restricted_standard(tmp_path: Path) -> None:
    templates = [*pods(built(tmp_path, ray=True)), flow_run()["spec"]["template"]["spec"]]
    assert len(templates) == 10
    for pod in templates:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
        volumes = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert volumes <= {"emptyDir", "configMap", "persistentVolumeClaim"}


def test_no_password_stands_outside_the_secret(tmp_path: Path) -> None:
    resources = [r for r in built(tmp_path) if r["kind"] != "Secret"]
    overlay = tmp_path / "infra" / "kubernetes" / "overlays" / "example"
    lines = (overlay / "secrets.env").read_text().splitlines()
    names, values = zip(*(line.split("=", 1) for line in lines), strict=True)
    text = json.dumps(resources) + json.dumps(flow_run())
    assert [value for value in values if value in text] == []
    keys = {
        entry["valueFrom"]["secretKeyRef"]["key"]
        for pod in [*pods(resources), flow_run()["spec"]["template"]["spec"]]
        for container in [*pod["containers"], *pod.get("initContainers", ())]
        for entry in container.get("env", ())
        if "valueFrom" in entry
    }
    assert keys == set(names)


def test_cluster_runs_every_service_of_the_compose_file(tmp_path: Path) -> None:
    found = {
        container["name"]: container.get("args", container.get("command"))
        for pod in pods(built(tmp_path))
        for container in pod["containers"]
    }
    compose = services.compose(services.make_secrets(tmp_path / ".env"))
    assert set(compose) - set(found) == {"objects-owner"}  # Kubernetes gives a volume to its user
    for name in ("watch", "metrics", "prefect", "mlflow"):
        assert found[name] == compose[name]["command"], name


def test_pods_of_the_project_use_images_that_an_overlay_names(tmp_path: Path) -> None:
    images = {
        container["image"]
        for pod in pods(built(tmp_path))
        for container in [*pod["containers"], *pod.get("initContainers", ())]
    }
    assert [image for image in images if image.startswith("dreambooth")] == []


def test_flow_run_sends_the_heartbeats_of_the_compose_worker(tmp_path: Path) -> None:
    worker = services.compose(services.make_secrets(tmp_path / ".env"))["worker"]["environment"]
    name = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
    (container,) = flow_run()["spec"]["template"]["spec"]["containers"]
    assert {"name": name, "value": worker[name]} in container["env"]


def test_flow_run_has_time_to_save_when_evicted() -> None:
    presets = sorted((ROOT / "presets").glob("*.yaml"))
    grace = max(config.load_settings(path).runtime.stop_grace_s for path in presets)
    assert flow_run()["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > grace
