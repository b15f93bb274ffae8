"""From photos to a champion on the pocket model, by keyboard alone; the tests run in order."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core import config
from dreambooth_core.records import Selection
from dreambooth_core.workspace import Workspace
from tests.app.conftest import RunningApp, running_app
from tests.app.keyboard import Keyboard
from tests.flow import workspaces
from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(2400)]

SUBJECT = "kitty"
STEPS = 120
WAIT = 900_000
"""Milliseconds, on a busy machine."""
SMALL = {
    "compute.device": "cpu",
    "prior.num_class_images": 16,
    "prior.num_inference_steps": 4,
    "train.max_train_steps": 2 * STEPS,
    "train.checkpointing_steps": STEPS // 6,
    "train.train_batch_size": 2,
    "evaluate.num_inference_steps": 4,
    "evaluate.num_class_prompt_images": 16,
    "evaluate.bootstrap_samples": 200,
    "select.early_stopping_patience": 6,
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    workspace = Workspace(tmp_path_factory.mktemp("journey") / "project")
    workspace.root.mkdir()
    workspaces.run_in(workspace.root, sys.executable, "-m", "cli", "init")
    for key, value in SMALL.items():
        workspaces.change(workspace.root, key, value)
    with running_app(workspace) as running:
        yield running


@pytest.fixture
def user(app: RunningApp, opened: Any) -> Keyboard:
    """At the start page."""
    return Keyboard(opened(app.url))


def test_photos_become_a_subject(app: RunningApp, user: Keyboard, tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "examples" / "cat-patches", tmp_path / "photos")
    photos = sorted(folder.glob("*.png"))
    cut = folder / "cut.png"
    cut.write_bytes(photos[0].read_bytes()[:500])
    page = user.page
    user.upload("Choose photos", [*photos, cut])
    page.get_by_text(f"{len(photos)} accepted, 1 rejected").wait_for(timeout=WAIT)
    assert "Rejected: truncated" in page.locator(".photo.rejected").inner_text()
    assert page.locator(".photo img.square").count() == len(photos)
    user.type("Name", SUBJECT)
    user.type("Class noun", "cat")
    user.type("Identifier", "kittycat")
    pieces = page.locator(".pieces")
    pieces.get_by_text(re.compile(r"reads kittycat as \d tokens: \w+ \+ ")).wait_for()
    word = pieces.get_by_role("button").first.inner_text()
    user.press("button", word, within=".pieces")
    pieces.get_by_text(f"reads {word} as one token: good").wait_for()
    assert page.get_by_label("Identifier").input_value() == word
    user.press("button", "Add the subject")
    page.get_by_role("heading", name=SUBJECT).wait_for(timeout=WAIT)
    subject = config.load_view(app.workspace, SUBJECT).subject
    assert (subject.identifier, subject.class_noun) == (word, "cat")


def test_setting_is_found_changed_planned_and_saved(app: RunningApp, user: Keyboard) -> None:
    page = user.page
    user.press("link", "Settings")
    plan = page.get_by_role("complementary", name="Plan")
    plan.get_by_text("Runs again", exact=True).wait_for(timeout=WAIT)
    before = plan.inner_text()
    assert "It fits." in before
    user.type("Search", "number of training steps")
    user.type("train.max_train_steps", str(STEPS))
    page.keyboard.press("Tab")
    page.get_by_text("1 change not saved").wait_for()
    page.wait_for_function(
        "(before) => { const now = document.querySelector('aside').innerText;"
        " return now.includes('It fits.') && now !== before; }",
        arg=before,
    )
    user.press("button", "Save")
    page.get_by_text("Saved in params.yaml.").wait_for()
    assert config.load_settings(app.workspace.params).train.max_train_steps == STEPS


def facts_of(page: Any) -> dict[str, str]:
    """The facts below the buttons of a training."""
    rows = page.locator(".facts").first.locator("div").all_inner_texts()
    return dict(row.split("\n", 1) for row in rows if "\n" in row)


def number(text: str) -> float:
    found = re.match(r"[\d.]+", text)
    assert found, text
    return float(found[0])


def assert_sane(facts: dict[str, str]) -> None:
    step, total = map(int, facts["Step"].split(" of "))
    assert 0 < step <= total == STEPS
    assert 0 < number(facts["Speed"]) < 1000
    assert re.fullmatch(r"\d+ min \d\d s", facts["Left in training"])
    assert 0.1 <= number(facts["Memory of the run"]) < 16
    assert number(facts["Free memory"]) > 0
    assert number(facts["Free disk"]) > 0


def test_training_is_watched_saved_stopped_and_continued(app: RunningApp, user: Keyboard) -> None:
    page = user.page
    user.press("link", f"Train {SUBJECT}")
    user.press("button", "Start training")
    page.locator(".checkpoint").nth(2).wait_for(timeout=WAIT)  # step 0 and two checkpoints
    for index in range(3):
        shown = page.locator(".checkpoint").nth(index)
        assert "DINO" in shown.locator(".scores").inner_text()
        assert shown.locator("img").count() > 3
    page.get_by_text("steps/s").wait_for(timeout=WAIT)
    assert_sane(facts_of(page))
    user.press("button", "Save now")
    page.get_by_text(re.compile(r"Saved at step \d+\. The training continues\.")).wait_for()
    user.press("button", "Stop")
    page.get_by_role("button", name="Continue training").wait_for(timeout=WAIT)
    log = app.workspace.places(SUBJECT).log_file("train")
    assert Selection.read_if_there(app.workspace.stage_dir(SUBJECT, "select")) is None
    user.press("button", "Continue training")
    page.get_by_text("Selected: checkpoint-").wait_for(timeout=WAIT)
    page.get_by_role("button", name="Start training").wait_for(timeout=WAIT)
    assert page.locator(".stages .ready").count() == 9
    starts = re.findall(r"training starts after step (\d+)", log.read_text())
    assert starts[0] == "0"
    assert int(starts[1]) >= STEPS // 3


def test_result_is_seen_and_another_checkpoint_chosen(app: RunningApp, user: Keyboard) -> None:
    page = user.page
    user.press("link", "Result")
    user.reach(page.locator("button.picture[tabindex='0']").first)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator("dialog h2").inner_text() == f"checkpoint-{STEPS // 6}"
    page.keyboard.press("Escape")
    with page.context.expect_page() as caught:
        user.press("link", "Open the page of this run")
    caught.value.get_by_role("heading", name=SUBJECT).first.wait_for()
    caught.value.close()
    page.get_by_text("All weights were trained, so there is no small adapter file").wait_for()
    assert page.get_by_role("button", name="Whole pipeline (zip)").count() == 1
    assert page.get_by_role("button", name="LoRA for diffusers").count() == 0
    best = Selection.read(app.workspace.stage_dir(SUBJECT, "select")).best
    step = STEPS if best != f"checkpoint-{STEPS}" else STEPS - STEPS // 6
    user.press("button", f"Choose step {step}")
    user.say_why("Choose it", "its ears are right")
    page.locator(".notice").get_by_text("its ears are right").wait_for(timeout=WAIT)
    user.press("link", "Run it now")
    user.press("button", "Start training")
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_role("button", name="Start training").wait_for(timeout=WAIT)
    page.get_by_text(f"Selected: checkpoint-{step}.").wait_for()


def test_ten_votes_promotion_and_rollback(app: RunningApp, user: Keyboard) -> None:
    page = user.page
    user.press("link", "Judge")
    user.press("button", "Show the first pair")
    for index, key in enumerate(("ArrowLeft", "ArrowRight", "ArrowDown", "ArrowRight") * 3, 1):
        page.locator("[data-vote]").first.wait_for(timeout=WAIT)
        page.wait_for_function("document.activeElement.className.startsWith('duel')")
        page.keyboard.press(key)
        page.get_by_role("button", name="Next pair").wait_for(timeout=WAIT)
        if index == 10:
            break
        user.press("button", "Next pair")
    page.get_by_text(re.compile(r"won \d of 8 votes .* 2 ties count")).wait_for()
    user.press("link", "Registry", within="header")
    page.get_by_role("button", name="Promote version 2").wait_for(timeout=WAIT)
    assert page.get_by_role("button", name="Roll back").count() == 0  # no earlier champion
    user.press("button", "Promote version 2")
    user.say_why("Promote", "people prefer it")
    page.get_by_text("Version 2 is the champion: it is in use.").wait_for(timeout=WAIT)
    user.press("button", "Roll back to version 1")
    user.say_why("Roll back", "its colours fade")
    page.get_by_text("Version 1 is the champion: it is in use.").wait_for(timeout=WAIT)
