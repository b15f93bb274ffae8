"""When, where and by which runs a version was made: facts of the registry for its page."""

from __future__ import annotations

import datetime

from dreambooth_core.registry import links, runs
from dreambooth_core.registry.runs import RunFacts
from dreambooth_core.registry.tracking import Tracking
from dreambooth_core.registry.versions import VersionInfo
from dreambooth_core.report.page import Fact


def facts_of(tracking: Tracking, info: VersionInfo, *, server: str | None) -> list[Fact]:
    """The facts that are known; `server` is the address of MLflow's server, if there is one."""
    facts: list[Fact] = []
    if info.run_id is not None:
        found = runs.facts_of(tracking, info.run_id)
        facts += _training(found)
        address = links.run_page(server, found) if server else None
        facts.append(Fact(name="MLflow run", text=found.name, address=address))
    if flow_run := info.tags.get(runs.FLOW_RUN):
        facts.append(Fact(name="Prefect run", text="open in Prefect", address=flow_run))
    return facts


def spell_time(when: datetime.datetime) -> str:
    """A point in time, such as `29 November 2026, 02:28 UTC`."""
    utc = when.astimezone(datetime.UTC)
    return f"{utc.day} {utc:%B %Y, %H:%M} UTC"


def spell_duration(seconds: float) -> str:
    """A duration in the two units that matter, such as `2 min 54 s`."""
    whole = round(seconds)
    parts = [(whole // 3600, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((i for i, (count, _) in enumerate(parts) if count), 2)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2])


def _training(found: RunFacts) -> list[Fact]:
    began = datetime.datetime.fromtimestamp(found.began_ms / 1000, datetime.UTC)
    facts = [Fact(name="Trained", text=spell_time(began))]
    if found.trained_ms is not None:
        # The thread that writes to MLflow may create the run after the first loss.
        duration = spell_duration(max(0, found.trained_ms - found.began_ms) / 1000)
        facts.append(Fact(name="Training time", text=duration))
    if device := found.tags.get(runs.DEVICE):
        facts.append(Fact(name="Device", text=device))
    return facts
