"""The comparison of challenger and champion across runs, and the promotion.

No DVC stage: which version is the champion is a fact of the registry (docs/adr/0005).
"""

from __future__ import annotations

from dreambooth_core.errors import UnknownModelError
from dreambooth_core.evaluation import comparison
from dreambooth_core.evaluation.comparison import Contender, Noise, VoteRule
from dreambooth_core.pipeline import decisions, duel, registered, report, rescore, voting
from dreambooth_core.pipeline.common import StageContext, confirmation_of
from dreambooth_core.pipeline.registered import tracking_of
from dreambooth_core.records import CheckpointScore, Duel, RegisteredVersion, Verdict
from dreambooth_core.registry import aliases, verdicts, versions
from dreambooth_core.registry.aliases import Decision
from dreambooth_core.registry.tracking import Tracking
from dreambooth_core.registry.versions import VersionInfo


def run(context: StageContext) -> Verdict:
    """Compare, write the verdict into the version's tags, and promote if the verdict allows."""
    tracking = tracking_of(context)
    challenger = registered.get(context)
    champion = aliases.champion(tracking, name=challenger.name)
    row = confirmation_of(context).row(challenger.checkpoint)
    rival = _champion(context, champion, challenger)
    verdict = comparison.compare(
        _contender(context, challenger, row),
        rival,
        settings=context.settings.select,
        noise=_noise(context),
        votes=_votes(context, champion, challenger),
    )
    if champion is None or rival is None:
        _carry_out(tracking, challenger, verdict, champion)
    elif champion.version.version != challenger.version:
        _keep_pictures(context, verdict, row, rival.row, champion)
        _carry_out(tracking, challenger, verdict, champion)
    return verdict


def decision(why: str) -> Decision:
    """A decision by the account of this process, now."""
    return Decision(who=decisions.account(), when=decisions.now(), why=why)


def _contender(
    context: StageContext, version: RegisteredVersion, row: CheckpointScore
) -> Contender:
    return Contender(
        name=verdicts.label(version),
        qualified=version.qualified,
        row=row,
        harness=confirmation_of(context).harness,
    )


def _champion(
    context: StageContext,
    champion: VersionInfo | None,
    challenger: RegisteredVersion,
) -> Contender | None:
    """The champion as a contender, scored on the challenger's suite, seeds and scorers."""
    if champion is None:
        return None
    version = champion.version
    if version.version == challenger.version:
        row = confirmation_of(context).row(version.checkpoint)
    else:
        row = rescore.score_version(context, champion)
    return _contender(context, version, row)


def _keep_pictures(
    context: StageContext,
    verdict: Verdict,
    challenger: CheckpointScore,
    champion: CheckpointScore,
    info: VersionInfo,
) -> None:
    """Keep the compared images of both sides for the page."""
    from dreambooth_core.pipeline import evaluate

    resident = evaluate.open_resident(context)
    base_sha256 = info.tags.get("base_model_sha256")
    duel.write(
        context.places,
        Duel(
            challenger=verdict.challenger,
            champion=verdict.champion or "",
            challenger_images=challenger.images,
            champion_images=champion.images,
        ),
        challenger=resident.images(challenger, role="confirm").suite,
        champion=resident.images(champion, role="confirm", base_sha256=base_sha256).suite,
    )


def _noise(context: StageContext) -> Noise:
    return Noise(
        samples=context.settings.evaluate.bootstrap_samples,
        seed=context.settings.evaluate.seed,
        text_range=confirmation_of(context).text_range,
    )


def _votes(
    context: StageContext, champion: VersionInfo | None, challenger: RegisteredVersion
) -> VoteRule | None:
    """What people say about the two, if the settings ask for their votes."""
    min_votes = context.settings.compare.min_votes
    if min_votes is None or champion is None:
        return None
    pair = voting.Pair(challenger.version, champion.version.version)
    return VoteRule(preference=voting.preference_of(context, pair), min_votes=min_votes)


def _carry_out(
    tracking: Tracking,
    version: RegisteredVersion,
    verdict: Verdict,
    champion: VersionInfo | None,
) -> None:
    """Move the alias on a promotion, then write the verdict as tags.

    Raises ChampionChanged, and changes nothing, if `champion` is no longer the champion.
    """
    if verdict.promote:
        aliases.promote(
            tracking,
            name=version.name,
            version=version.version,
            decision=decision(verdict.why),
            expected=None if champion is None else champion.version.version,
        )
    aliases.set_tags(
        tracking, name=version.name, version=version.version, tags=verdicts.tags_of(verdict)
    )


def promote(
    context: StageContext, version: int, *, why: str, expected: int | None = None
) -> VersionInfo:
    """Make a version the champion by hand. Raises RegistryError.

    Raises ChampionChanged, and changes nothing, if another version than `expected` is the champion.
    """
    tracking, name = tracking_of(context), context.settings.model_name
    info = aliases.promote(
        tracking,
        name=name,
        version=version,
        decision=decision(why),
        expected=expected or _champion_now(tracking, name),
    )
    report.refresh(context)
    return info


def rollback(context: StageContext, *, why: str, expected: int | None = None) -> VersionInfo:
    """Make the champion before this one the champion again. Raises RegistryError.

    Raises ChampionChanged, and changes nothing, if another version than `expected` is the champion.
    """
    tracking, name = tracking_of(context), context.settings.model_name
    info = aliases.rollback(
        tracking,
        name=name,
        decision=decision(why),
        expected=expected or _champion_now(tracking, name),
    )
    report.refresh(context)
    return info


def _champion_now(tracking: Tracking, name: str) -> int | None:
    return versions.aliases_of(tracking, name=name).get(aliases.CHAMPION)


def earlier_champion(context: StageContext) -> int | None:
    """The version that a rollback would put back in use, or None. Raises RegistryError."""
    return aliases.earlier_champion(tracking_of(context), name=context.settings.model_name)


def side_by_side(context: StageContext, numbers: list[int] | None = None) -> list[VersionInfo]:
    """The registry's versions of a subject (all, or some). Raises RegistryError."""
    found = versions.list_versions(tracking_of(context), name=context.settings.model_name)
    wanted = [v for v in found if not numbers or v.version.version in numbers]
    missing = set(numbers or ()) - {v.version.version for v in wanted}
    if missing:
        raise UnknownModelError(
            f"{context.settings.name} has no version {', '.join(map(str, sorted(missing)))}",
            allowed=", ".join(str(v.version.version) for v in found),
        )
    return wanted
