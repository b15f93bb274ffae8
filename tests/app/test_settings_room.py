"""The room Settings in a browser: search, checks at the field, saving, plan, presets."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from app.setting_fields import parse
from dreambooth_core import config
from dreambooth_core.config import reference
from tests.app.conftest import PHONE, RunningApp, running_app, serious
from tests.flow import workspaces
from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    workspace = workspaces.build(tmp_path_factory.mktemp("settings") / "project")
    shutil.copytree(ROOT / "presets", workspace.root / "presets")
    with running_app(workspace) as running:
        yield running


def test_every_setting_can_be_spelled_and_read_back() -> None:
    values = config.flatten(config.read_yaml(ROOT / "params.yaml"))
    entries = {entry.key: entry for entry in reference.entries()}
    for key, value in values.items():
        if key in entries and not isinstance(value, dict):
            text = ", ".join(value) if isinstance(value, list) else str(value)
            text = (
                {True: "true", False: "false", None: ""}.get(value, text)
                if (value is None or isinstance(value, bool))
                else text
            )
            assert parse(entries[key], text) == value, key


def test_change_is_checked_planned_and_saved(app: RunningApp, opened: Any) -> None:
    page = opened(f"{app.url}/settings")
    page.get_by_text("Runs again", exact=True).wait_for()
    own = page.locator(".presets li").first
    shown = own.inner_text().split("\n\n")[:2]
    assert shown == ["pocket", "The one for this machine"]  # there is no GPU
    page.get_by_text("pocket: Training uses the CPU").wait_for()
    assert page.get_by_label("train.seed").is_hidden()
    steps = page.get_by_label("train.max_train_steps")
    steps.fill("no")
    page.keyboard.press("Tab")
    page.get_by_text("1 change not saved, 1 wrong").wait_for()
    assert steps.input_value() == "no"
    assert "valid integer" in page.locator(".setting .wrong:not(:empty)").inner_text()
    assert serious(page) == []
    before = app.workspace.params.read_text()
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Nothing is saved").wait_for()
    assert app.workspace.params.read_text() == before
    steps.fill("1")
    page.keyboard.press("Tab")
    page.get_by_role("alert").get_by_text("checkpoint").first.wait_for()  # the plan refuses it
    steps.fill("6")
    page.keyboard.press("Tab")
    page.get_by_text("fits").first.wait_for()
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Saved in params.yaml.").wait_for()
    assert config.load_settings(app.workspace.params).train.max_train_steps == 6
    page.reload()
    steps.wait_for()
    assert steps.input_value() == "6"


def test_section_is_switched_off_and_on_again(app: RunningApp, opened: Any) -> None:
    before = config.read_yaml(app.workspace.params)
    page = opened(f"{app.url}/settings")
    page.get_by_label("Show every setting").check()
    switch = page.get_by_label("prior", exact=True)
    switch.select_option("off")
    page.get_by_text("1 change not saved").wait_for()
    assert page.get_by_label("prior.seed").is_disabled()
    page.get_by_role("button", name="Save").click()
    page.get_by_label("prior.seed").wait_for(state="detached")
    assert config.load_settings(app.workspace.params).prior is None
    page.get_by_label("Show every setting").check()
    page.get_by_label("prior", exact=True).select_option("on")
    page.get_by_text("1 change not saved").wait_for()
    page.get_by_role("button", name="Save").click()
    page.get_by_label("prior.num_class_images").wait_for()
    shipped = config.read_yaml(ROOT / "presets" / "pocket.yaml")["prior"]
    assert config.read_yaml(app.workspace.params) == {**before, "prior": shipped}


def test_search_finds_settings_that_are_not_basic(app: RunningApp, opened: Any) -> None:
    page = opened(f"{app.url}/settings")
    page.get_by_label("Search").fill("noise")
    page.get_by_label("train.offset_noise").wait_for()
    assert page.get_by_label("train.method").is_hidden()
    page.get_by_label("Search").fill("")
    page.get_by_label("Show every setting").check()
    page.get_by_label("runtime.keep_store_days").wait_for()


def test_preset_replaces_the_settings_and_keeps_the_subjects(app: RunningApp, opened: Any) -> None:
    page = opened(f"{app.url}/settings")
    page.get_by_role("button", name="Use the preset pocket", exact=True).click()
    page.get_by_label("train.max_train_steps").wait_for()
    page.wait_for_function("document.querySelectorAll('.setting input').length > 0")
    settings = config.load_settings(app.workspace.params)
    assert list(settings.subjects) == ["mug"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible_and_fits_a_phone(app: RunningApp, opened: Any, scheme: str) -> None:
    page = opened(f"{app.url}/settings", viewport=PHONE, color_scheme=scheme)
    page.get_by_label("Show every setting").check()
    page.get_by_label("runtime.keep_store_days").wait_for()
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
