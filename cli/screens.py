"""Prints results as tables and short paragraphs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dreambooth_core import config
from dreambooth_core.data import messages
from dreambooth_core.records import SCORES

if TYPE_CHECKING:
    from cli.disk_usage import Usage

_LABEL_WIDTH, _VERSION_WIDTH = 26, 24
_OVERRIDES = "subject.overrides"
"""Columns of a terminal that the names and a version need in `compare`."""


def show_run(console: Console, summary: Mapping[str, Any]) -> None:
    """Print a finished run: scores, selection, version, verdict, times, and what to do next."""
    if "selection" not in summary:
        _show_stages(console, summary)
        return
    best = summary["selection"]["best"]
    console.print(score_table(summary["scores"]["rows"], best))
    print_fact(console, "Chosen", f"{best or 'none'}. {summary['selection']['rule']}")
    version = summary["version"]
    if version:
        print_fact(console, "Registered", f"models:/{version['name']}/{version['version']}")
    if summary["verdict"]:
        print_fact(console, "Verdict", summary["verdict"]["why"])
    console.print(times_table(summary["stages"]))
    show_page(console, Path(summary["report"]))
    if run := summary["mlflow_run"]:
        text = f"run {run['name']} ({run['run_id']}) in {run['experiment']}"
        print_fact(console, "MLflow", text)
    _show_set(console, summary)
    _show_next(console, next_commands(summary))


def print_fact(console: Console, name: str, text: str) -> None:
    """Print a line with its name in bold."""
    console.print(Text.assemble((f"{name}:", "bold"), f" {text}"))


def show_runs(console: Console, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the outcome of each subject of `run --all`."""
    table = Table(title="Subjects")
    for title in ("subject", "outcome", "version", "verdict"):
        table.add_column(title, overflow="fold")
    for name, result in results.items():
        if "error" in result:
            table.add_row(name, "failed", "", result["error"]["what"], style="red")
            continue
        version, verdict = result.get("version"), result.get("verdict")
        skipped = all(s["skipped"] for s in result["stages"] if s["stage"] != "compare")
        table.add_row(
            name,
            "up to date" if skipped else "done",
            str(version["version"]) if version else "",
            verdict["why"] if verdict else "",
        )
    console.print(table)
    _show_next(console, ["dreambooth status", "dreambooth up"])


def next_commands(summary: Mapping[str, Any]) -> list[str]:
    """The commands that a user may want after a run, ready to paste."""
    name, version = summary["subject"], summary["version"]
    commands = [f"dreambooth report {name} --open"]
    if version:
        prompt = shlex.quote(summary["prompt"])
        model = f"models:/{version['name']}/{version['version']}"
        commands += [
            f"dreambooth generate --model {model} --prompt {prompt} --out pictures",
            f"dreambooth compare {name}",
        ]
    return [*commands, "dreambooth up    # the web interfaces of Prefect and MLflow"]


def _show_next(console: Console, commands: Sequence[str]) -> None:
    console.print("Next:", style="bold")
    for command in commands:
        console.print(f"  {command}")


def _show_stages(console: Console, summary: Mapping[str, Any]) -> None:
    """Print a run of some stages."""
    console.print(times_table(summary["stages"]))
    name, last = summary["subject"], summary["stages"][-1]["stage"]
    print_fact(console, "Output", f"work/{name}/{last}")
    _show_set(console, summary)
    _show_next(console, [f"dreambooth run {name}", f"dreambooth status {name}"])


def _show_set(console: Console, summary: Mapping[str, Any]) -> None:
    """Say which settings were for this run only."""
    if not summary["set"]:
        return
    changed = ", ".join(f"{key}={value}" for key, value in summary["set"].items())
    console.print(
        f"This run only: {changed} (recorded with the results). params.yaml is unchanged, so "
        f"`dreambooth run {summary['subject']}` brings the stages back to its own values.",
    )


def score_table(rows: Sequence[Mapping[str, Any]], best: str | None) -> Table:
    """Every row with its scores and 95 % intervals; the selected one in bold."""
    table = Table(title="Scores (95 % intervals)")
    table.add_column("row", no_wrap=True, min_width=14)
    table.add_column("images", justify="right")
    for title in SCORES.values():
        table.add_column(title, justify="right")
    for row in rows:
        cells = [spell_interval(row[name]) for name in SCORES]
        style = "bold green" if row["name"] == best else None
        table.add_row(row["name"], str(row["n"]), *cells, style=style)
    return table


def spell_interval(interval: Mapping[str, float] | None) -> str:
    """Format an interval as `0.512 ±0.013`: the mean and half the width."""
    if interval is None:
        return ""
    return f"{interval['mean']:.3f} ±{(interval['high'] - interval['low']) / 2:.3f}"


def times_table(stages: Sequence[Mapping[str, Any]]) -> Table:
    """A table of the seconds per stage."""
    table = Table(title="Time")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for stage in stages:
        table.add_row(
            stage["stage"], "up to date" if stage["skipped"] else f"{stage['seconds']:.1f}"
        )
    table.add_row("sum", f"{sum(stage['seconds'] for stage in stages):.1f}", style="bold")
    return table


def show_page(console: Console, page: Path) -> None:
    """Print the URL of the report."""
    print_fact(console, "Report", page.as_uri())


def show_gate(console: Console, report: Mapping[str, Any]) -> None:
    """Print the verdict of the data gate on every file."""
    table = Table(title=f"Photos of {report['subject']}")
    for title in ("file", "verdict", "notes"):
        table.add_column(title)
    for image in report["accepted"]:
        size = f"{image['width']}x{image['height']}"
        table.add_row(image["name"], f"accepted {size}", "; ".join(image["warnings"]))
    for entry in report["rejected"]:
        table.add_row(entry["name"], "rejected", entry["reason"], style="red")
    for entry in report["skipped"]:
        verdict = "read" if entry["reason"] in messages.READ else "skipped"
        table.add_row(entry["name"], verdict, entry["reason"], style="dim")
    console.print(table)
    for warning in report.get("warnings", ()):
        console.print(f"warning: {warning}")


def show_images(console: Console, result: Mapping[str, Any]) -> None:
    """Print the files of generated images, one a line, then their contact sheet."""
    for path in result["images"]:
        console.print(path)
    if result["sheet"]:
        console.print(f"sheet: {result['sheet']}")


def show_evaluations(console: Console, result: Mapping[str, Any]) -> None:
    """Print the scores of every version on the present harness."""
    for name, evaluated in result["subjects"].items():
        if not evaluated["versions"]:
            console.print(f"{name}: no version is registered yet")
            continue
        table = Table(title=f"{name} (scores {evaluated['harness']})")
        for title in ("version", *SCORES.values(), ""):
            table.add_column(title, overflow="fold")
        for version in evaluated["versions"]:
            marks = ", ".join(version["aliases"])
            cells = [_number(version["scores"].get(key)) for key in SCORES]
            table.add_row(f"{version['version']} {marks}".strip(), *cells, version["state"])
        console.print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def show_versions(console: Console, versions: Sequence[Mapping[str, Any]]) -> None:
    """Print versions side by side, as many as fit: scores, paired differences, settings."""
    per_table = max(1, (console.width - _LABEL_WIDTH) // _VERSION_WIDTH)
    changed = differing(versions)
    for start in range(0, len(versions), per_table):
        shown = range(start, min(start + per_table, len(versions)))
        rows = {key: [str(values[i]) for i in shown] for key, values in changed.items()}
        console.print(_versions_table([versions[i] for i in shown], rows))


def _versions_table(
    versions: Sequence[Mapping[str, Any]], settings: Mapping[str, Sequence[str]]
) -> Table:
    table = Table(title="Versions (scores with 95 % intervals)")
    table.add_column("", overflow="fold")
    for version in versions:
        marks = ", ".join(version["aliases"])
        table.add_column(f"{version['version']} {marks}".strip(), overflow="fold")
    for key, title in SCORES.items():
        table.add_row(title, *(_score(version, key) for version in versions))
    table.add_section()
    for key, title in SCORES.items():
        cells = [_difference(version, key) for version in versions]
        if any(cells):
            table.add_row(f"{title}, paired difference", *cells)
    votes = [_votes(version) for version in versions]
    if any(votes):
        table.add_row("votes won (95 % interval)", *votes)
    table.add_section()
    for key in ("checkpoint", "data_sha256", "base_model", "git_commit", "verdict"):
        table.add_row(key, *(str(version["tags"].get(key, "")) for version in versions))
    table.add_section()
    for key, values in settings.items():
        table.add_row(key, *values)
    return table


def _score(version: Mapping[str, Any], key: str) -> str:
    value, interval = version["scores"].get(key), version["intervals"].get(key)
    if value is None:
        return ""
    bounds = f" ({interval['low']:.3f} to {interval['high']:.3f})" if interval else ""
    return f"{value:.3f}{bounds}"


def _difference(version: Mapping[str, Any], key: str) -> str:
    """The difference to the champion of the comparison, paired by prompt and seed."""
    verdict = version["verdict"]
    interval = verdict and verdict["difference"].get(key)
    if not interval:
        return ""
    champion = str(verdict["champion"]).rsplit("/", 1)[-1]
    bounds = f"({interval['low']:+.3f} to {interval['high']:+.3f})"
    return f"{interval['mean']:+.3f} {bounds} from version {champion}"


def _votes(version: Mapping[str, Any]) -> str:
    """How many decided votes a version won against each other one that people compared it with."""
    lines: list[str] = []
    for other, count in version["votes"].items():
        decided, share = count["wins"] + count["losses"], count["share"]
        bounds = f" ({share['low']:.2f} to {share['high']:.2f})" if share else ""
        ties = f", {count['ties']} ties" if count["ties"] else ""
        lines.append(f"{count['wins']} of {decided}{bounds}{ties} against version {other}")
    return "\n".join(lines)


def differing(versions: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The settings that differ between versions, by dotted key.

    A subject's overrides are left out: each stands under its own key, too.
    """
    flat = [config.flatten(version["settings"]) for version in versions]
    keys = sorted({k for settings in flat for k in settings if not k.startswith(_OVERRIDES)})
    rows = {key: [settings.get(key) for settings in flat] for key in keys}
    return {key: values for key, values in rows.items() if any(v != values[0] for v in values)}


def show_disk(console: Console, lines: Sequence[Usage]) -> None:
    """Print what keeps how much of the disk, and what frees it."""
    table = Table(title="This project's disk space")
    for title in ("what", "MiB", "kept because", "freed by"):
        table.add_column(title, overflow="fold", justify="right" if title == "MiB" else "left")
    for line in lines:
        table.add_row(line.what, f"{line.num_bytes / 2**20:,.1f}", line.why, line.freed_by)
    total = sum(line.num_bytes for line in lines) / 2**20
    table.add_row("all of it", f"{total:,.1f}", style="bold")
    console.print(table)


def show_checks(console: Console, checks: Sequence[Mapping[str, Any]]) -> None:
    """Print the results of `dreambooth doctor`."""
    table = Table(title="This machine")
    for title in ("", "check", "found", "fix"):
        table.add_column(title, overflow="fold")
    signs = {"ok": ("ok", "green"), "warning": ("!", "yellow"), "wrong": ("x", "red")}
    for check in checks:
        table.add_row(Text(*signs[check["state"]]), check["what"], check["found"], check["hint"])
    console.print(table)
