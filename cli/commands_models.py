"""The commands that use models: choose, generate, export, vote, compare, promote and so on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli import running, screens
from cli.progress import TerminalReporter
from cli.services import api_in_use
from cli.session import JsonOption, Session, SubjectArgument, make_console, open_session, user_path
from dreambooth_core import config
from dreambooth_core.config import fields
from dreambooth_core.errors import SettingsError
from dreambooth_core.pipeline import StageContext

if TYPE_CHECKING:
    from dreambooth_core.registry.versions import VersionInfo

WhyOption = Annotated[str, typer.Option(help="Reason, saved in the version's tags.")]
IfChampionOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Change nothing unless this version is the champion.", show_default=False
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        help="Subject (its champion), models:/NAME@ALIAS, models:/NAME/3, or the folder of a "
        "checkpoint or pipeline."
    ),
]
OutOption = Annotated[
    Path,
    typer.Option(
        parser=user_path, metavar="FOLDER", help="Output folder. Files in it stay as they are."
    ),
]
SeedOption = Annotated[
    int,
    typer.Option(
        min=0, max=fields.MAX_SEED, help="Seed of the first image; image i uses seed + i."
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=fields.MAX_SAMPLING_STEPS,
        help="Sampling steps. Default: evaluate.num_inference_steps.",
    ),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=fields.MAX_GUIDANCE,
        help="Guidance scale. Default: evaluate.guidance_scale.",
    ),
]
StrengthOption = Annotated[
    float,
    typer.Option(
        min=0,
        max=fields.MAX_STRENGTH,
        help="Strength of the training: 0 is the base model, 1 the trained one.",
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images at once. Default: evaluate.sample_batch_size, which gives the bits of the "
        "scored images; another size changes the last bits.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(choose)
    app.command()(generate)
    app.command()(export)
    app.command()(vote)
    app.command()(compare)
    app.command()(promote)
    app.command()(rollback)
    app.command()(evaluate_again)


def _context(session: Session, subject: str) -> StageContext:
    view = config.load_view(session.workspace, subject)
    return StageContext(view, session.workspace.places(subject), env=session.env)


def choose(
    subject: SubjectArgument,
    step: Annotated[
        int | None, typer.Argument(help="Step of the checkpoint.", show_default=False)
    ] = None,
    *,
    why: Annotated[str, typer.Option(help="Reason, saved with the choice.")] = "",
    by_rule: Annotated[
        bool, typer.Option("--by-rule", help="Take the choice back: the rule selects again.")
    ] = False,
    if_weights: Annotated[
        str, typer.Option(help="Choose nothing unless the weights' sha256 begins with this.")
    ] = "",
    json: JsonOption = False,
) -> None:
    """Choose a checkpoint by hand; the next run registers and compares it."""
    from dreambooth_core.pipeline import choose as choices

    session = open_session(as_json=json)
    if by_rule == (step is not None):
        steps = ", ".join(map(str, choices.options(session.workspace, subject).steps))
        raise SettingsError("choose takes a step or --by-rule", allowed=f"{steps}, or --by-rule")
    if step is None:
        before = choices.choose_by_rule(session.workspace, subject)
        chosen, said = None, f"the rule selects again, instead of step {before.step}"
    else:
        checkpoint = choices.choose(session.workspace, subject, step, why=why, weights=if_weights)
        chosen = checkpoint.to_json()
        said = f"chosen: {chosen['name']} ({chosen['why']})"
    session.terminal.finish(
        {"subject": subject, "chosen": chosen},
        lambda console: console.print(f"{said}\nnext: dreambooth run {subject}"),
    )


def generate(  # noqa: PLR0913 - one parameter per option
    *,
    model: ModelOption,
    prompt: Annotated[str, typer.Option(help='For example "a photo of sks mug on the beach".')],
    out: OutOption,
    negative_prompt: Annotated[str, typer.Option(help="What the images should not show.")] = "",
    num: Annotated[int, typer.Option(min=1, max=fields.MAX_IMAGES, help="Number of images.")] = 4,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    batch_size: BatchOption = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Default: compute.device.")
    ] = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option(help="Type of the weights; fp16 needs a GPU.")
    ] = "fp32",
    strength: StrengthOption = 1.0,
    sheet: Annotated[bool, typer.Option(help="Also write a contact sheet of the images.")] = True,
    json: JsonOption = False,
) -> None:
    """Generate images with a registered version, a checkpoint or a saved pipeline."""
    session = open_session(as_json=json)
    from cli import generation  # imports torch, so only after the environment is complete

    request = generation.Request(
        prompt=prompt,
        negative_prompt=negative_prompt,
        num=num,
        seed=seed,
        steps=steps,
        guidance=guidance,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        with_sheet=sheet,
        strength=strength,
    )
    with TerminalReporter(make_console(stderr=True)) as shown:
        result = generation.generate(
            session.workspace,
            model,
            request,
            out,
            tracking_uri=session.env.get("MLFLOW_TRACKING_URI"),
            progress=shown.progress("images"),
        )
    session.terminal.finish(result, lambda console: screens.show_images(console, result))


def export(
    model: Annotated[str, typer.Argument(help="A model, as `generate --model` takes it.")],
    *,
    form: Annotated[
        Literal["lora", "kohya", "pipeline"],
        typer.Option(
            "--as",
            help="An adapter for diffusers (lora), for kohya and ComfyUI (kohya), or all weights.",
        ),
    ],
    out: OutOption,
    json: JsonOption = False,
) -> None:
    """Write a model for another program: an adapter file, or the folder of a pipeline."""
    session = open_session(as_json=json)
    from cli import exporting  # imports torch

    uri = session.env.get("MLFLOW_TRACKING_URI")
    made = exporting.export(session.workspace, model, form, out, tracking_uri=uri)
    session.terminal.finish(made, lambda console: console.print(made["path"]))


def vote(
    subject: SubjectArgument,
    winner: Annotated[
        Literal["challenger", "champion", "tie"], typer.Argument(help="The better picture.")
    ],
    *,
    prompt: Annotated[str, typer.Option(help="The prompt of both pictures.")],
    seed: Annotated[int, typer.Option(min=0, max=fields.MAX_SEED, help="Their seed.")],
    challenger: Annotated[
        int | None, typer.Option(min=1, help="Version. Default: the alias challenger.")
    ] = None,
    champion: Annotated[
        int | None, typer.Option(min=1, help="Version. Default: the alias champion.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Record which of two versions drew the better picture of a prompt and seed."""
    from dreambooth_core.pipeline import voting

    session = open_session(as_json=json)
    context = _context(session, subject)
    pair = voting.pair_of(context, challenger, champion)
    made = voting.cast(context, pair, prompt=prompt, seed=seed, winner=winner)
    found = voting.preference_of(context, pair)
    said = f"version {pair.challenger} against {pair.champion}: {found.in_words()}"
    session.terminal.finish(
        {"subject": subject, "vote": made.to_json(), "preference": found.to_json()},
        lambda console: console.print(said),
    )


def compare(
    subject: SubjectArgument,
    *,
    versions: Annotated[
        list[int] | None, typer.Option(help="Version to show; repeat for several. Default: all.")
    ] = None,
    more: Annotated[list[int] | None, typer.Argument(hidden=True)] = None,
    json: JsonOption = False,
) -> None:
    """Show registered versions side by side: scores, settings, data, verdicts."""
    from dreambooth_core.pipeline import compare as stage

    session = open_session(as_json=json)
    context = _context(session, subject)
    wanted = [*(versions or ()), *(more or ())]
    found = stage.side_by_side(context, wanted or None)
    every = stage.side_by_side(context) if wanted else found
    rows = [_as_row(info, every) for info in found]
    earlier = stage.earlier_champion(context)
    session.terminal.finish(
        {"subject": subject, "versions": rows, "earlier_champion": earlier},
        lambda console: screens.show_versions(console, rows),
    )


def _as_row(info: VersionInfo, every: list[VersionInfo]) -> dict[str, Any]:
    from dreambooth_core.pipeline.voting import Pair, preference_among
    from dreambooth_core.registry import votes
    from dreambooth_core.registry.verdicts import verdict_of

    verdict = verdict_of(info)
    return {
        **info.version.to_json(),
        "aliases": list(info.aliases),
        "scores": dict(info.scores),
        "intervals": {name: value.to_json() for name, value in info.intervals.items()},
        "verdict": verdict.to_json() if verdict else None,
        "settings": dict(info.settings),
        "tags": votes.without_votes(info.tags),
        "votes": {
            str(other): preference_among(every, Pair(info.version.version, other)).to_json()
            for other in votes.opponents_of(info, every)
        },
        "run_id": info.run_id,
    }


def promote(
    subject: SubjectArgument,
    version: Annotated[int, typer.Argument(help="Version number in the registry.")],
    *,
    why: WhyOption = "promoted by hand",
    if_champion: IfChampionOption = None,
    json: JsonOption = False,
) -> None:
    """Make a version the champion."""
    from dreambooth_core.pipeline import compare as stage

    session = open_session(as_json=json)
    context = _context(session, subject)
    _change_champion(
        *(session, context, "promote", why),
        lambda: stage.promote(context, version, why=why, expected=if_champion),
    )


def rollback(
    subject: SubjectArgument,
    *,
    why: WhyOption = "rolled back by hand",
    if_champion: IfChampionOption = None,
    json: JsonOption = False,
) -> None:
    """Restore the previous champion."""
    from dreambooth_core.pipeline import compare as stage

    session = open_session(as_json=json)
    context = _context(session, subject)
    _change_champion(
        *(session, context, "rollback", why),
        lambda: stage.rollback(context, why=why, expected=if_champion),
    )


def _change_champion(
    session: Session,
    context: StageContext,
    how: Literal["promote", "rollback"],
    why: str,
    change: Callable[[], VersionInfo],
) -> None:
    """Change the champion, print it, and send the event if a Prefect server runs."""
    from dreambooth_core.pipeline import registered

    previous = registered.aliases_now(context).get("champion")
    info = change()
    url = api_in_use(session.workspace, session.env)
    if url and previous != info.version.version:
        from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

        from tasks import events

        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 1}):
            events.report_champion(context.settings.name, info, previous=previous, how=how, why=why)
    champion = {"name": info.version.name, "champion": info.version.version}
    session.terminal.finish(
        champion,
        lambda console: console.print(f"champion of {info.version.name}: {info.version.version}"),
    )


def evaluate_again(
    subject: Annotated[
        str | None, typer.Argument(help="Name of a subject in params.yaml.", show_default=False)
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Evaluate every subject.")] = False,
    json: JsonOption = False,
) -> None:
    """Score all registered versions with the present suite, scorers and photos.

    The registry keeps the scores of their registration.
    """
    session = open_session(as_json=json, **running.SILENT_PREFECT)
    names = running.subjects_of(session, subject, every=every, command="evaluate-again")
    for name in names:
        config.load_view(session.workspace, name)
    result = running.run_evaluation(session, names)
    session.terminal.finish(result, lambda console: screens.show_evaluations(console, result))
