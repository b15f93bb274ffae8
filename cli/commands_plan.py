"""The command plan: stages, memory and time of a run, without running it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli.session import JsonOption, Session, open_session
from dreambooth_core import config
from dreambooth_core.config.changes import changed_view
from dreambooth_core.errors import SettingsError
from dreambooth_core.pipeline import input_checks, preflight
from tasks import this_run
from tasks.staleness import refuse_the_impossible, stages_ahead_of_changes

if TYPE_CHECKING:
    from dreambooth_core.planning.speed import Device

_GIB = 1024.0
_LAUNCHES: dict[config.Strategy, str] = {
    "single": "one process",
    "ddp": "DDP",
    "deepspeed": "DeepSpeed",
    "fsdp": "FSDP2",
}


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(plan)


def plan(
    subject: Annotated[
        str | None, typer.Argument(help="Name of a subject. Default: the only one in params.yaml.")
    ] = None,
    *,
    card_gib: Annotated[
        float | None,
        typer.Option(min=1, max=10_000, help="Plan for a GPU with this memory, not this machine."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Plan with a changed setting, as `run --set` runs with it; repeat for more.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Predict a run: stages to run or skip, memory, time, and the presets that fit."""
    from dreambooth_core.evaluation import suites
    from dreambooth_core.planning import fit, speed
    from dreambooth_core.planning.memory import launch_of

    session = open_session(as_json=json)
    name = subject or _only_subject(session.workspace)
    view = changed_view(session.workspace, name, this_run.parse(changes or ()))
    _refuse_the_impossible(session, view, on_this_machine=card_gib is None)
    root = session.workspace.root
    device, have_mib = _device(view, card_gib)
    suite = suites.load_suite(view.subject.prompts or view.evaluate.suite, root=root)
    architecture = fit.architecture_of(view, root)
    times = speed.times_of(view, architecture, device, prompts=len(suite.templates))
    footprint = fit.memory_of(view, root, kind=device.kind)
    launch = launch_of(view.train, root)
    base = view.base_model.pretrained_model_name_or_path
    presets = fit.presets_that_fit(root, base, have_mib=have_mib, kind=device.kind)
    stages = stages_ahead_of_changes(session.workspace, view, env=session.env)
    result = {
        "subject": name,
        "base_model": base,
        "stages": stages,
        "device": device.name or device.kind,
        "memory": fit.describe(footprint, have_mib=have_mib),
        "launch": _LAUNCHES[launch.strategy],
        "offloads": launch.offloads,
        "time": speed.describe(times, [stage for stage, does in stages.items() if does == "run"]),
        "presets": presets,
        "recommended": fit.recommended(presets, base, have_mib=have_mib, kind=device.kind),
        "warnings": input_checks.warnings(root, view),
    }
    session.terminal.finish(result, lambda console: show(console, result))


def _refuse_the_impossible(
    session: Session, view: config.SubjectView, *, on_this_machine: bool
) -> None:
    """Refuse to plan a run that cannot be done; --card-gib plans for another machine."""
    workspace, env = session.workspace, session.env
    try:
        refuse_the_impossible(workspace, view, env=env, on_this_machine=on_this_machine)
    except SettingsError as error:
        inputs = preflight.findings(workspace.root, view, env, on_this_machine=False)
        if {each.problem for each in inputs} >= set(error.problems):
            raise
        raise SettingsError(f"{error}\nto plan for another GPU: --card-gib 12") from None


def _only_subject(workspace: Any) -> str:
    names = sorted(config.load_settings(workspace.params).subjects)
    if len(names) != 1:
        raise SettingsError(
            "plan needs a subject",
            got=f"{len(names)} in params.yaml",
            allowed=", ".join(names) or None,
            hint="name a subject, or add one with `dreambooth subject add`",
        )
    return names[0]


def _device(view: config.SubjectView, card_gib: float | None) -> tuple[Device, float]:
    """The device that would train, and its memory in MiB. With `card_gib`, it has no name."""
    from dreambooth_core.planning.speed import Device

    if card_gib is not None:
        return Device("gpu", name=None), card_gib * _GIB
    import torch

    from dreambooth_core.environment import available_bytes

    if view.compute.device != "cpu" and torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        return Device("gpu", name=torch.cuda.get_device_name()), memory / 2**20
    return Device("cpu", name=None), available_bytes() / 2**20


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the plan."""
    stages = Table(title=f"A run of {result['subject']}")
    stages.add_column("stage")
    stages.add_column("action")
    for stage, does in result["stages"].items():
        stages.add_row(stage, does)
    console.print(stages)
    console.print(_memory_line(result))
    for line in _time_lines(result["time"], result["device"]):
        console.print(line)
    console.print(_preset_table(result))
    if own := result["recommended"]:
        console.print(f"preset for this device: {own['name']}. {own['why']}")
    if result["memory"]["fits"] is False:
        console.print(_advice(result["presets"], result["base_model"]))
    for warning in result["warnings"]:
        console.print(f"warning: {warning}", style="yellow")


def _preset_table(result: dict[str, Any]) -> Table:
    table = Table(title=f"Presets on {result['memory']['have_mib'] / _GIB:.1f} GiB")
    for column in ("preset", "base model", "memory", ""):
        justify = "right" if column == "memory" else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for preset in result["presets"]:
        peak = preset["peak_mib"]
        size = "not predicted" if peak is None else f"{peak / _GIB:.2f} GiB"
        fits = {True: "fits", False: "does not fit", None: "unknown"}[preset["fits"]]
        table.add_row(preset["name"], preset["base_model"], size, fits)
    return table


def _advice(presets: list[dict[str, Any]], base_model: str) -> str:
    own = [each["name"] for each in presets if each["fits"] and each["base_model"] == base_model]
    if not own:
        return "no preset for this base model is known to fit"
    return f"a preset that fits: `dreambooth preset use {own[0]}`"


def _time_lines(time: dict[str, Any], device: str) -> list[str]:
    """Seconds per step and per stage, if measured on such a device."""
    if time["measured_on"] is None:
        return [f"time: not measured on this device ({device})"]
    step = time["seconds_per_step"]
    training = "training not measured with these settings" if step is None else f"{step} s per step"
    lines = [f"time: {training}, as measured on {time['measured_on']}"]
    for stage, seconds in time["stage_seconds"].items():
        lines.append(f"  {stage:<14}{'not measured' if seconds is None else _clock(seconds)}")
    if time["total_seconds"] is not None:
        lines.append(
            f"  total of the stages to run: {_clock(time['total_seconds'])}, without loading"
        )
    return lines


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def _memory_line(result: dict[str, Any]) -> str:
    memory = result["memory"]
    have = f"{memory['have_mib'] / _GIB:.1f} GiB on {result['device']}"
    if result["offloads"]:
        return f"memory: the optimizer is offloaded; the GPU's share is not predicted ({have})"
    if result["launch"] == "DeepSpeed":
        return f"memory: not predicted under DeepSpeed ({have})"
    if memory["peak_mib"] is None:
        return f"memory: unknown until the base model is downloaded ({have})"
    verdict = {True: "fits", False: "DOES NOT FIT", None: "at least"}[memory["fits"]]
    if result["launch"] == "FSDP2":
        verdict += ", not counting the blocks that FSDP2 gathers"
    return f"memory: peak {memory['peak_mib'] / _GIB:.2f} GiB in training, {verdict} ({have})"
