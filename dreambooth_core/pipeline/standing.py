"""What a registered version is now, in words for its page, and the commands that it invites."""

from __future__ import annotations

import datetime
import shlex

from dreambooth_core.pipeline.origin import spell_time
from dreambooth_core.registry.aliases import CHALLENGER, CHAMPION, PARITY, PARITY_PASSED
from dreambooth_core.registry.verdicts import verdict_of
from dreambooth_core.registry.versions import VersionInfo
from dreambooth_core.report.live import Command, Standing

_DECISIONS = ("promoted", "restored", "rolled_back", "chosen")
"""The tags of decisions, as `registry.aliases` and `pipeline.register` write them."""

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


def commands_for(subject: str, info: VersionInfo | None) -> list[Command]:
    """What a reader of the page may type next."""
    if info is None:
        return [Command("Register the best checkpoint:", f"dreambooth run {subject}")]
    words: dict[str, str] = info.settings.get("subject", {})
    prompt = shlex.quote(f"a photo of {words.get('identifier')} {words.get('class_noun')}")
    made = [
        Command(
            "Generate pictures with this version:",
            f"dreambooth generate --model {info.uri} --prompt {prompt} --out pictures",
        ),
        Command("Compare the versions of this subject:", f"dreambooth compare {subject}"),
    ]
    if CHAMPION in info.aliases:
        undo = f"dreambooth rollback {subject}"
        return [*made, Command("Put the champion before this one back in use:", undo)]
    if info.tags.get(PARITY) != PARITY_PASSED:
        return made
    number = info.version.version
    return [
        *made,
        Command("Put this version in use:", f"dreambooth promote {subject} {number} --why REASON"),
    ]


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
    iso, kind = max(made)
    when = spell_time(datetime.datetime.fromisoformat(iso))
    who, why = tags.get(f"{kind}.who", "unknown"), tags.get(f"{kind}.why", "")
    reason = f": {why.rstrip('.')}" if why and why != tags.get("verdict") else ""
    return f"{kind.replace('_', ' ').capitalize()} by {who} on {when}{reason}. "
