"""What a registered version is now, in words for its page: champion, challenger or former one."""

from __future__ import annotations

from dreambooth_core.registry.aliases import CHALLENGER, CHAMPION, PARITY, PARITY_PASSED
from dreambooth_core.registry.verdicts import verdict_of
from dreambooth_core.registry.versions import VersionInfo
from dreambooth_core.report.live import Standing

_DECISIONS = ("promoted", "restored", "rolled_back")
"""The tags of decisions, as `registry.aliases` writes them."""

UNREACHABLE = Standing(
    "Registry unreachable",
    "plain",
    "MLflow was unreachable when this page was written, so it cannot say which version it shows.",
)
EXPERIMENT = Standing("Experiment", "plain", "An experiment of DVC's registers no version.")


def unregistered(subject: str) -> Standing:
    """The standing of outputs that are no version."""
    return Standing(
        "Not registered",
        "plain",
        f"These outputs are not in the registry. `dreambooth run {subject}` registers them.",
    )


def standing_of(info: VersionInfo, *, subject: str) -> Standing:
    """The standing of a version by its aliases and tags."""
    word, tone = _word(info)
    asked = f"`dreambooth compare {subject}` shows what changed since."
    return Standing(word, tone, f"{_decision(info)}As of the last change of this page; {asked}")


def _word(info: VersionInfo) -> tuple[str, str]:
    if CHAMPION in info.aliases:
        return "Champion", "good"
    if info.tags.get(PARITY) != PARITY_PASSED:
        return "Export not verified", "bad"
    if "promoted.when" in info.tags or "restored.when" in info.tags:
        return "Former champion", "plain"
    if not info.version.qualified:
        return "Not qualified", "bad"
    if CHALLENGER not in info.aliases:
        return "Never the champion", "plain"
    return ("Not compared yet" if verdict_of(info) is None else "Challenger"), "plain"


def _decision(info: VersionInfo) -> str:
    """The last decision about a version, as a sentence; nothing if there was none."""
    tags = info.tags
    made = [(tags[f"{kind}.when"], kind) for kind in _DECISIONS if f"{kind}.when" in tags]
    if not made:
        return ""
    when, kind = max(made)
    who, why = tags.get(f"{kind}.who", "unknown"), tags.get(f"{kind}.why", "")
    reason = f": {why.rstrip('.')}" if why and why != tags.get("verdict") else ""
    return f"{kind.replace('_', ' ').capitalize()} by {who} on {when}{reason}. "
