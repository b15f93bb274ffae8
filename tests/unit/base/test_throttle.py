"""Logs that are no terminal get a line every few seconds."""

import io
import logging
import time

from rich.console import Console

from cli.progress import TerminalReporter
from dreambooth_core import __main__ as entry
from dreambooth_core.ports import Throttle
from dreambooth_core.training import progress
from tasks.progress import LogReporter


def test_only_one_line_of_a_busy_stretch_is_due():
    throttle = Throttle(0.2)
    due = [throttle.is_due() for _ in range(50)]
    time.sleep(0.25)
    assert due == [True] + 49 * [False]
    assert throttle.is_due()


def test_file_gets_one_line_of_many_stages_in_a_moment():
    stream = io.StringIO()
    with TerminalReporter(Console(file=stream)) as reporter:
        for row in range(20):
            show = reporter.progress(f"score checkpoint-{row}")
            for done in range(11):
                show(done, 10)
    assert stream.getvalue() == "  score checkpoint-0 0/10\n"


def test_stderr_of_a_stage_gets_one_line_in_a_moment(capsys):
    show = entry._progress_lines()
    for done in range(100):
        show(done, 100, "checkpoint-60")
    assert capsys.readouterr().err == "  0/100 checkpoint-60\n"


def test_log_gets_one_line_in_a_moment(caplog):
    caplog.set_level(logging.INFO, logger="dreambooth")
    reporter = LogReporter()
    for stage in ("train", "evaluate"):
        for done in range(100):
            reporter.progress(stage)(done, 100)
    assert caplog.messages == ["train: 0 of 100 "]


def test_log_of_a_script_gets_the_first_line_and_the_last(capsys):
    show = progress.logged_progress("latents")
    for done in range(101):
        show(done, 100)
    assert capsys.readouterr().out == "latents: 0 of 100\nlatents: 100 of 100\n"


def test_terminal_gets_more_lines_of_a_script_than_a_log(monkeypatch):
    logged = progress.seconds_between_lines()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert (logged, progress.seconds_between_lines()) == (5.0, 0.5)
