"""What the page says of a version's run: when, how long, on what, and where to look."""

from __future__ import annotations

import pytest

from dreambooth_core.pipeline.origin import facts_of, spell_duration
from dreambooth_core.registry import runs, versions
from dreambooth_core.registry.sink import MlflowSink, RunSpec
from tests.unit.registry import examples
from tests.unit.registry.examples import MODEL


def test_page_names_device_and_duration_of_a_training(tracking, tiny_sd, tmp_path) -> None:
    spec = RunSpec(experiment=MODEL, fingerprint="a" * 64, name="full-a", device="some GPU")
    sink = MlflowSink(tracking, spec)
    sink.metrics({"loss": 0.5}, step=1)
    sink.close(status="FINISHED")
    run = runs.find_run(tracking, experiment=MODEL, fingerprint="a" * 64)
    assert run is not None
    candidate = examples.candidate(tiny_sd)
    versions.register_version(tracking, run, candidate, scratch=tmp_path / "scratch")
    (info,) = versions.list_versions(tracking, name=MODEL)
    trained, time, device, link = facts_of(tracking, info, server="http://127.0.0.1:5000")
    assert trained.text.endswith(" UTC")
    assert time.text.endswith(" s")
    assert (device.name, device.text) == ("Device", "some GPU")
    assert (link.text, link.address) == (
        "full-a",
        f"http://127.0.0.1:5000/#/experiments/{run.experiment_id}/runs/{run.run_id}"
        "?workflowType=machine_learning",
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (174, "2 min 54 s"), (7260, "2 h 1 min")],
)
def test_durations_have_their_two_largest_units(seconds: float, text: str) -> None:
    assert spell_duration(seconds) == text
