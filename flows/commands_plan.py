"""The command `plan`: what a run would do, what it needs, and whether this machine has it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dreambooth_core import config
from dreambooth_core.errors import SettingsError
from flows.session import JsonOption, open_session
from tasks.planning import stages_ahead

_GIB = 1024.0


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(plan)


def plan(
    subject: Annotated[str | None, typer.Argument(help="A subject; the only one without.")] = None,
    *,
    card_gib: Annotated[
        float | None, typer.Option(help="Plan for a card of this size instead of this machine's.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """What a run would do: stages to run or skip, memory and time, and which preset would fit."""
    from dreambooth_core.planning import plan as planning

    session = open_session(as_json=json)
    name = subject or _only_subject(session.workspace)
    view = config.load_view(session.workspace, name)
    root = session.workspace.root
    device, have_mib = _device(view, card_gib)
    seconds = planning.seconds_per_step(view, device=device)
    base = view.base_model.pretrained_model_name_or_path
    result = {
        "subject": name,
        "stages": stages_ahead(session.workspace, name, env=session.env),
        "device": device,
        "memory": planning.describe(planning.memory_of(view, root), have_mib=have_mib),
        "offloads": planning.config_offloads(view),
        "train_seconds": None if seconds is None else round(seconds * view.train.max_train_steps),
        "presets": planning.presets_that_fit(root, base, have_mib=have_mib),
    }
    session.terminal.finish(result, lambda console: show(console, result))


def _only_subject(workspace: Any) -> str:
    names = sorted(config.load_settings(workspace.params).subjects)
    if len(names) != 1:
        raise SettingsError(
            "plan needs a subject", got=f"{len(names)} in params.yaml", allowed=", ".join(names)
        )
    return names[0]


def _device(view: config.SubjectView, card_gib: float | None) -> tuple[str, float]:
    """The kind of device that would train, and its memory in MiB."""
    if card_gib is not None:
        return "cuda", card_gib * _GIB
    import psutil
    import torch

    if view.compute.device != "cpu" and torch.cuda.is_available():
        return "cuda", torch.cuda.get_device_properties(0).total_memory / 2**20
    return "cpu", psutil.virtual_memory().available / 2**20


def show(console: Console, result: dict[str, Any]) -> None:
    """The plan for people."""
    stages = Table(title=f"A run of {result['subject']}")
    stages.add_column("stage")
    stages.add_column("would")
    for stage, does in result["stages"].items():
        stages.add_row(stage, does)
    console.print(stages)
    console.print(_memory_line(result), markup=False)
    seconds = result["train_seconds"]
    console.print(
        "training time: not measured for this model on such a device"
        if seconds is None
        else f"training time: about {seconds // 60} min {seconds % 60} s"
    )
    for preset in result["presets"]:
        peak = preset["peak_mib"]
        size = "offloads: not predicted" if peak is None else f"{peak / _GIB:.1f} GiB"
        fits = {True: "fits", False: "does not fit", None: "unknown"}[preset["fits"]]
        console.print(f"preset {preset['name']:<12} {size:>24}  {fits}", markup=False)


def _memory_line(result: dict[str, Any]) -> str:
    memory = result["memory"]
    have = f"{memory['have_mib'] / _GIB:.1f} GiB on {result['device']}"
    if memory["peak_mib"] is None:
        return f"memory: not known for this base model before it is here ({have})"
    if result["offloads"]:
        return f"memory: the optimizer is offloaded, and the card's share not predicted ({have})"
    verdict = {True: "fits", False: "DOES NOT FIT", None: "at least"}[memory["fits"]]
    return f"memory: peak {memory['peak_mib'] / _GIB:.2f} GiB in training, {verdict} ({have})"
