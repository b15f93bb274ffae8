"""The commands init, validate, subject, preset, clean and doctor."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from cli import disk_usage, presets, pruning, screens
from cli import doctor as checks
from cli.commands_subject import init, subject_app
from cli.session import JsonOption, SubjectArgument, open_session
from dreambooth_core import config
from dreambooth_core.errors import DataError
from dreambooth_core.pipeline import StageContext
from tasks import photos
from tasks.dvc import Dvc

PresetArgument = Annotated[str, typer.Argument(help="Name of a preset.")]

preset_app = typer.Typer(
    help="List, show and use presets: complete settings for a model and a GPU.",
    no_args_is_help=True,
)


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(init)
    app.command()(validate)
    app.add_typer(subject_app, name="subject")
    app.add_typer(preset_app, name="preset")
    app.command()(clean)
    app.command()(doctor)


def validate(
    subject: SubjectArgument,
    *,
    json: JsonOption = False,
) -> int:
    """Check a subject's photos without writing anything; report every file."""
    from dreambooth_core.pipeline import validate as stage

    session = open_session(as_json=json)
    workspace = session.workspace
    context = StageContext(
        config.load_view(workspace, subject), workspace.places(subject), env=session.env
    )
    photos.restore(workspace, context.settings, Dvc(workspace, env=session.env))
    with stage.inspected(context) as inspection:
        report = inspection.report
    result = report.to_json()
    session.terminal.finish(result, lambda console: screens.show_gate(console, result))
    return 0 if report.accepted else DataError.exit_code


@preset_app.command("list")
def preset_list(*, json: JsonOption = False) -> None:
    """List the presets, each with a one-line description."""
    session = open_session(as_json=json)
    found = presets.list_all(session.workspace)
    session.terminal.finish(
        {"presets": found},
        lambda console: console.print("\n".join(f"{n:<16} {text}" for n, text in found.items())),
    )


@preset_app.command("show")
def preset_show(name: PresetArgument, *, json: JsonOption = False) -> None:
    """Print a preset."""
    session = open_session(as_json=json)
    text = presets.read(session.workspace, name)
    session.terminal.finish(
        {"name": name, "settings": config.parse_yaml(text)},
        lambda _: session.terminal.print_raw(text),
    )


@preset_app.command("use")
def preset_use(name: PresetArgument, *, json: JsonOption = False) -> None:
    """Replace the settings in params.yaml by a preset; keep the subjects."""
    session = open_session(as_json=json)
    changed = presets.use(session.workspace, name)
    session.terminal.finish(
        {"name": name, "changed": changed},
        lambda console: console.print(f"params.yaml: {len(changed)} settings changed"),
    )


def clean(
    *,
    dry_run: Annotated[
        bool, typer.Option(help="List what would be removed, and remove nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show what fills the disk; remove old entries that no output came from from the store."""
    session = open_session(as_json=json)
    pruned = pruning.prune(session.workspace, dry_run=dry_run)
    kept = disk_usage.usage_of(session.workspace)
    verb = "would be removed" if dry_run else "removed"
    mib = sum(item["bytes"] for item in pruned["removed"]) / 2**20

    def show(console: Console) -> None:
        screens.show_disk(console, kept)
        console.print(
            f"{len(pruned['removed'])} entries {verb} ({mib:.1f} MiB), {pruned['kept']} kept"
        )

    session.terminal.finish({**pruned, "disk": [line.to_json() for line in kept]}, show)


def doctor(
    *,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="After moving or copying this project: let its MLflow store find its files.",
        ),
    ] = False,
    json: JsonOption = False,
) -> int:
    """Check this machine: devices, versions, free disk, servers; suggest fixes."""
    session = open_session(as_json=json)
    repaired = checks.repair(session.workspace, session.env) if repair else []
    for text in repaired:
        session.terminal.say(text)
    found = checks.examine(session.workspace, session.env)
    session.terminal.finish(
        {"checks": found, "repaired": repaired},
        lambda console: screens.show_checks(console, found),
    )
    return 1 if any(check["state"] == "wrong" for check in found) else 0
