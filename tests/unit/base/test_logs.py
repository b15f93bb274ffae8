"""Every line of the log says which run, subject, stage and step it belongs to."""

import datetime
import logging
import re
from pathlib import Path

import pytest

from dreambooth_core.logs import FIELDS, log_fields, logged_to, logger, with_fields


@pytest.fixture
def log(tmp_path: Path):
    """A log file, and how to read its lines."""
    path = tmp_path / "logs" / "mug" / "run.log"
    return path, lambda: path.read_text().splitlines()


def test_line_names_run_subject_stage_and_step_in_order(log):
    path, lines = log
    with (
        logged_to(path),
        log_fields(stage="train", subject="mug", run="1f2c"),
        log_fields(step="60"),
    ):
        logger.info("loss %.1f", 0.5)
    time, rest = lines()[0].split(" ", 1)
    assert datetime.datetime.fromisoformat(time).utcoffset() == datetime.timedelta(0)
    assert rest == "INFO run=1f2c subject=mug stage=train step=60 loss 0.5"
    assert FIELDS == ("run", "subject", "stage", "step")


def test_fields_end_with_their_block(log):
    path, lines = log
    with logged_to(path), log_fields(subject="mug"):
        with log_fields(stage="cache"):
            logger.info("inside")
        logger.info("outside")
    logger.info("after")
    assert [line.split("INFO ")[1] for line in lines()] == [
        "subject=mug stage=cache inside",
        "subject=mug outside",
    ]


def test_value_with_a_space_stands_in_quotes():
    with log_fields(subject="mug", stage='score "step 0"'):
        assert with_fields("x") == r'subject=mug stage="score \"step 0\"" x'


def test_message_of_several_lines_is_one_line_of_the_file(log):
    path, lines = log
    with logged_to(path):
        logger.warning("a\nb")
    assert [re.sub(r"^\S+ ", "", line) for line in lines()] == [r"WARNING a\nb"]


def test_percent_sign_of_a_program_is_no_format(log):
    path, lines = log
    with logged_to(path), log_fields(subject="mug"):
        logger.info("%s", "100% of %d")
    assert lines()[0].endswith("subject=mug 100% of %d")


def test_a_full_disk_stops_the_log_and_not_the_run(log, capsys):
    path, _ = log
    with logged_to(path):
        file = logger.handlers[-1]
        assert isinstance(file, logging.FileHandler)
        file.baseFilename = "/dev/full"  # every write fails with ENOSPC
        logger.info("lost")
    assert "Traceback" not in capsys.readouterr().err
