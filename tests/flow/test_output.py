"""What commands print: JSON that parses, YAML as in the file, tables that hide nothing."""

import json
import subprocess
import sys

import pytest
from rich.console import Console

from cli import screens
from cli.progress import TerminalReporter
from cli.session import make_console
from dreambooth_core.data import messages
from tests.flow import workspaces
from tests.paths import ROOT

PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


def command(*arguments):
    return workspaces.run_in(ROOT, sys.executable, "-m", "cli", *arguments, check=False)


def test_wrong_subject_is_one_json_object_and_exit_code_2():
    ended = command("run", "nosuch", "--json")
    assert ended.returncode == 2
    error = json.loads(ended.stdout)["error"]
    assert error["what"] == "no subject has the name 'nosuch'"
    assert set(error) == {"what", "allowed", "hint"}
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", PRESETS)
def test_preset_show_prints_the_bytes_of_the_file(name):
    shown = command("preset", "show", name)
    assert shown.stdout == (ROOT / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


INTERVAL = {"mean": 0.5, "low": 0.45, "high": 0.55}


def version(number, verdict):
    difference = {"dino": {"mean": 0.0123, "low": -0.004, "high": 0.0286}}
    return {
        "version": number,
        "aliases": [],
        "scores": {"dino": 0.5, "clip_t": 0.3},
        "intervals": {"dino": INTERVAL},
        "votes": {"1": {"wins": 6, "losses": 2, "ties": 1, "share": {"low": 0.35, "high": 0.97}}},
        "verdict": {"champion": "dreambooth-mug/1", "difference": difference},
        "tags": {"verdict": verdict},
        "settings": {"train": {"learning_rate": number}},
    }


def cells(text, column):
    lines = [line.split("\u2502") for line in text.splitlines() if "\u2502" in line]
    return " ".join(" ".join(line[column + 1].strip() for line in lines).split())


def test_comparison_of_versions_cuts_no_text(capsys):
    verdict = "challenger stays: " + "x" * 150 + "END"
    screens.show_versions(Console(width=80), [version(3, verdict)])
    shown = cells(capsys.readouterr().out, 1)
    assert verdict.replace(" ", "") in shown.replace(" ", "")
    assert "0.500 (0.450 to 0.550)" in shown
    assert "0.300" in shown
    assert "+0.012 (-0.004 to +0.029) from version 1" in shown
    assert "6 of 8 (0.35 to 0.97), 1 ties against version 1" in shown


def test_comparison_of_many_versions_shows_a_few_at_a_time(capsys):
    screens.show_versions(Console(width=80), [version(n, "v") for n in range(1, 8)])
    text = capsys.readouterr().out
    assert text.count("Versions (scores") == 4
    assert text.count("0.500 (0.450 to") == 7
    assert "train.learning_rate" in text


def test_file_gets_long_lines_and_tables_whole_with_the_text_as_it_is(capsys):
    name = "photo [/red] :dog: " + 60 * "x"
    gate = {
        "subject": "mug",
        "accepted": [],
        "rejected": [{"name": name, "reason": "too small " * 30 + "END"}],
        "skipped": [],
        "warnings": ["few photos " * 30 + "END"],
    }
    screens.show_gate(make_console(stderr=False), gate)
    row, warning = [line for line in capsys.readouterr().out.splitlines() if "END" in line]
    assert name in row
    assert warning == f"warning: {gate['warnings'][0]}"


def test_captions_and_masks_in_use_are_read_not_skipped(capsys):
    reasons = (messages.CAPTION_READ, messages.MASK_READ, messages.MASK_UNREAD)
    skipped = [{"name": f"entry {i}", "reason": reason} for i, reason in enumerate(reasons)]
    gate = {"subject": "mug", "accepted": [], "rejected": [], "skipped": skipped}
    screens.show_gate(make_console(stderr=False), gate)
    rows = [line for line in capsys.readouterr().out.splitlines() if "entry" in line]
    assert ["skipped" in row for row in rows] == [False, False, True]
    assert ["read as" in row for row in rows] == [True, True, False]


def test_progress_of_a_photo_with_brackets_in_its_name(capsys):
    console = Console(force_terminal=True, width=120, markup=False)
    with TerminalReporter(console) as shown:
        shown.progress("validate")(1, 2, "01 [/red].png")
        console.print(shown._bars.get_renderable())
    assert "01 [/red].png" in capsys.readouterr().out


def test_command_line_starts_without_heavy_libraries() -> None:
    heavy = ("torch", "transformers", "numpy", "PIL", "sqlalchemy", "mlflow", "prefect")
    code = f"import sys, cli.main; sys.exit([m for m in {heavy} if m in sys.modules] or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr.decode()
