"""A flow logs the warnings that `dreambooth run` prints before it starts."""

import logging

import pytest

from dreambooth_core import config
from dreambooth_core.workspace import Workspace
from tasks import progress
from tasks.run import log_warnings
from tests.paths import ROOT


@pytest.mark.parametrize("is_logged", [True, False])
def test_warnings_of_settings_are_logged_only_without_a_terminal(caplog, is_logged):
    view = config.load_view(Workspace(ROOT), "mug")
    subject = view.subject.model_copy(update={"class_noun": "dog"})
    caplog.set_level(logging.INFO, logger="dreambooth")
    token = progress.reporter.set(None if is_logged else progress.LogReporter())
    try:
        log_warnings(Workspace(ROOT), view.model_copy(update={"subject": subject}))
    finally:
        progress.reporter.reset(token)
    assert any("does not know 'dog'" in text for text in caplog.messages) is is_logged
