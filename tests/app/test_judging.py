"""The rooms Result, Judge and Registry, on a pocket model that was trained for a few steps."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth_core import config
from dreambooth_core.models import lora
from dreambooth_core.pipeline import StageContext, compare, voting
from dreambooth_core.records import Selection
from dreambooth_core.registry import votes
from dreambooth_core.workspace import Workspace
from tests.app.conftest import PHONE, RunningApp, running_app, serious
from tests.flow import workspaces
from tests.flow.workspaces import run_in
from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(1800)]

SUBJECT = "cat"
WAIT = 120_000
"""Milliseconds: a process with torch starts slowly on a busy machine."""
HTML = "a <b>cat</b> & <i>"


def dreambooth(workspace: Workspace, *words: str) -> None:
    run_in(workspace.root, sys.executable, "-m", "cli", *words)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A project with the pocket models and a short run; the tests run in order."""
    workspace = Workspace(tmp_path_factory.mktemp("judging") / "project")
    workspace.root.mkdir()
    dreambooth(workspace, "init")
    workspaces.make_small(workspace.root)
    photos = shutil.copytree(ROOT / "examples" / "cat-patches", workspace.root.parent / "photos")
    words = ("--class-noun", "cat", "--images", str(photos))
    dreambooth(workspace, "subject", "add", SUBJECT, *words)
    workspaces.change(workspace.root, "train.method", "lora")
    workspaces.change(workspace.root, "select.early_stopping_patience", None)
    dreambooth(workspace, "run", SUBJECT)
    return workspace


@pytest.fixture(scope="module")
def app(workspace: Workspace) -> Iterator[RunningApp]:
    with running_app(workspace) as running:
        yield running


@pytest.fixture
def context(workspace: Workspace) -> StageContext:
    env = workspaces.environment(workspace.root)
    view = config.load_view(workspace, SUBJECT)
    return StageContext(view, workspace.places(SUBJECT), env=env)


def focused(page: Any, expression: str) -> Any:
    return page.evaluate(f"(() => {{ const it = document.activeElement; return {expression}; }})()")


def press(page: Any, name: str) -> None:
    """Press a button by keyboard."""
    act = page.get_by_role("button", name=name, exact=True).first
    act.wait_for(timeout=WAIT)
    act.focus()
    page.keyboard.press("Enter")


def say_why(page: Any, action: str, why: str) -> None:
    """Give a reason by keyboard; the focus is in its field already."""
    page.wait_for_function("document.activeElement.tagName === 'INPUT'")
    page.keyboard.type(why)
    page.locator(".ask").get_by_role("button", name=action).focus()
    page.keyboard.press("Enter")


def assert_fits(page: Any) -> None:
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"]


def is_enlarged(page: Any) -> bool:
    return page.locator("dialog").evaluate("(it) => it.open")


def test_result_shows_each_picture_of_each_checkpoint(app: RunningApp, opened: Any) -> None:
    page = opened(f"{app.url}/result")
    assert page.url == f"{app.url}/result/{SUBJECT}"  # the only subject
    cells = page.locator("table.grid tbody tr").first.locator("img")
    assert cells.count() == 3  # step 0, and two checkpoints
    page.wait_for_function("[...document.querySelectorAll('.grid img')].every((it) => it.complete)")
    widths = page.locator(".grid img").evaluate_all("(all) => all.map((it) => it.naturalWidth)")
    assert set(widths) == {64}
    before = cells.first.get_attribute("src")
    press(page, "Next seed")
    page.get_by_text("Seed 2 of").wait_for()
    assert cells.first.get_attribute("src") != before


def test_arrow_keys_move_between_pictures_and_enlarged_ones(app: RunningApp, opened: Any) -> None:
    page = opened(f"{app.url}/result/{SUBJECT}")
    page.locator("button.picture[tabindex='0']").first.focus()
    for key, place in (("ArrowRight", "0 1"), ("ArrowDown", "1 1"), ("ArrowLeft", "1 0")):
        page.keyboard.press(key)
        assert focused(page, "`${it.dataset.row} ${it.dataset.column}`") == place
    page.keyboard.press("Enter")
    assert is_enlarged(page)
    assert page.locator("dialog h2").inner_text() == "step 0"
    page.keyboard.press("ArrowRight")
    assert page.locator("dialog h2").inner_text() == "checkpoint-2"
    page.keyboard.press("Escape")
    assert not is_enlarged(page)
    assert focused(page, "it.dataset.column") == "1"


def test_choice_by_hand_needs_a_reason_and_is_recorded(
    app: RunningApp, opened: Any, workspace: Workspace
) -> None:
    best = Selection.read(workspace.stage_dir(SUBJECT, "select")).best
    other = 2 if best == "checkpoint-4" else 4
    page = opened(f"{app.url}/result/{SUBJECT}")
    press(page, f"Choose step {other}")
    say_why(page, "Choose it", " ")
    page.get_by_text("A reason is needed").wait_for()
    page.locator(".ask input").focus()
    say_why(page, "Choose it", "the <b>ear</b> is black")
    page.locator(".notice").get_by_text("the <b>ear</b> is black").wait_for(timeout=WAIT)
    choice = config.load_view(workspace, SUBJECT).subject.choice
    assert choice is not None
    assert (choice.step, choice.why) == (other, "the <b>ear</b> is black")
    dreambooth(workspace, "run", SUBJECT)
    page.reload()
    page.locator(".rule").get_by_text("by hand: the <b>ear</b> is black").wait_for()
    assert page.locator(".notice").count() == 0


def download(page: Any, title: str, folder: Path) -> Path:
    """Press a button of the downloads; the saved file, with the name that the browser gives it."""
    act = page.get_by_role("button", name=title, exact=True)
    act.wait_for(timeout=WAIT)
    with page.expect_download(timeout=WAIT) as caught:
        act.click()
    path = folder / caught.value.suggested_filename
    caught.value.save_as(path)
    return path


def test_adapter_is_downloaded_for_diffusers_and_for_kohya(
    app: RunningApp, opened: Any, workspace: Workspace, tmp_path: Path
) -> None:
    best = Selection.read(workspace.stage_dir(SUBJECT, "select")).best
    assert best is not None
    checkpoint = workspace.stage_dir(SUBJECT, "train") / best
    page = opened(f"{app.url}/result/{SUBJECT}")
    adapter = download(page, "LoRA for diffusers", tmp_path)
    assert adapter.name == f"dreambooth-{SUBJECT}-2-lora.safetensors"
    assert adapter.read_bytes() == (checkpoint / lora.LORA_FILE).read_bytes()
    kohya = download(page, "For ComfyUI and kohya", tmp_path)
    assert kohya.name == f"dreambooth-{SUBJECT}-2-kohya.safetensors"
    lora.write_kohya(checkpoint, out=tmp_path / "expected.safetensors")
    assert kohya.read_bytes() == (tmp_path / "expected.safetensors").read_bytes()


def test_version_is_downloaded_as_a_pipeline(app: RunningApp, opened: Any, tmp_path: Path) -> None:
    page = opened(f"{app.url}/result/{SUBJECT}")
    names = zipfile.ZipFile(download(page, "Whole pipeline (zip)", tmp_path)).namelist()
    assert {f"dreambooth-{SUBJECT}-2/model_index.json"} <= set(names)
    assert any(name.endswith(".safetensors") for name in names)
    assert not any("lora" in name for name in names)  # merged into the weights


def _show_pair(page: Any, prompt: str = "") -> None:
    if prompt:
        page.get_by_label("Prompt", exact=True).fill(prompt)
    press(page, "Next pair" if page.locator(".duel").count() else "Show the first pair")
    page.locator("[data-vote]").first.wait_for(timeout=WAIT)


def _voted(page: Any) -> str:
    """The recorded winner, as the page says it."""
    page.get_by_role("button", name="Next pair").wait_for(timeout=WAIT)
    return page.locator("#said").inner_text()


def test_ten_blind_votes_by_keyboard_are_counted(
    app: RunningApp, opened: Any, context: StageContext
) -> None:
    page = opened(f"{app.url}/judge/{SUBJECT}")
    page.get_by_role("button", name="Show the first pair").wait_for(timeout=WAIT)
    winners: list[str] = []
    for key in ("ArrowLeft", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowRight") * 2:
        _show_pair(page)
        html = page.locator("[data-judge]").inner_html()
        assert "version" not in html
        assert "challenger" not in html
        assert focused(page, "it.className").startswith("duel")
        page.keyboard.press(key)
        winners.append(_voted(page).split("recorded: ")[1].split(".")[0])
        captions = page.locator(".duel figcaption").all_inner_texts()
        assert sorted(captions) == ["version 1, champion", "version 2, challenger"]
    found = voting.preference_of(context, voting.pair_of(context))
    counted = {"challenger": found.wins, "champion": found.losses, "tie": found.ties}
    assert counted == {name: winners.count(name) for name in counted}
    assert (found.total, found.ties) == (10, 2)
    assert f"Version 2 won {found.wins} of 8 votes" in page.locator("main").inner_text()
    assert serious(page) == []


def test_blind_pictures_do_not_say_who_drew_them(app: RunningApp, opened: Any) -> None:
    page = opened(f"{app.url}/judge/{SUBJECT}")
    page.get_by_role("button", name="Show the first pair").wait_for(timeout=WAIT)
    page.wait_for_timeout(1000)
    before = page.locator(".made figure").count()
    _show_pair(page)
    other = opened(f"{app.url}/judge/{SUBJECT}")
    other.get_by_role("button", name="Show the first pair").wait_for(timeout=WAIT)
    other.wait_for_timeout(1000)
    assert other.locator(".made figure").count() == before
    sources = page.locator(".duel img").evaluate_all(
        "(all) => all.map((it) => atob(it.src.split(',')[1]))"
    )
    assert len(set(sources)) == 2
    assert all("dreambooth" not in source and "tEXt" not in source for source in sources)


def test_two_browsers_voting_at_once_lose_no_vote(
    app: RunningApp, opened: Any, context: StageContext
) -> None:
    before = voting.preference_of(context, voting.pair_of(context)).total
    pages = [opened(f"{app.url}/judge/{SUBJECT}") for _ in range(2)]
    for _ in range(2):
        for page in pages:
            page.get_by_role("button", name="pair").first.wait_for(timeout=WAIT)
            _show_pair(page)
        for page in pages:  # neither waits for the other
            page.keyboard.press("ArrowLeft")
            page.keyboard.press("ArrowLeft")  # a second press is no second vote
        for page in pages:
            _voted(page)
    assert voting.preference_of(context, voting.pair_of(context)).total == before + 4


def test_prompt_with_html_is_text_everywhere(
    app: RunningApp, opened: Any, context: StageContext
) -> None:
    page = opened(f"{app.url}/judge/{SUBJECT}")
    page.get_by_role("button", name="Show the first pair").wait_for(timeout=WAIT)
    _show_pair(page, HTML)
    assert page.locator(".asked").inner_text() == HTML
    page.keyboard.press("ArrowDown")
    _voted(page)
    page.locator(".made").get_by_text(HTML, exact=True).first.wait_for(timeout=WAIT)
    assert page.locator(".made figcaption strong").first.inner_text() == HTML
    assert page.locator("main").locator("b, i").count() == 0
    infos = compare.side_by_side(context)
    assert votes.votes_of(infos[1])[-1].prompt == HTML


def test_playground_keeps_the_settings_in_the_file(
    app: RunningApp, opened: Any, workspace: Workspace
) -> None:
    page = opened(f"{app.url}/judge/{SUBJECT}")
    page.get_by_role("button", name="Draw", exact=True).wait_for(timeout=WAIT)
    page.get_by_label("Steps").fill("0")
    press(page, "Draw")
    page.locator("#said").get_by_text(
        "'--steps': Input should be greater than or equal to 1"
    ).wait_for(timeout=WAIT)
    for label, value in {"Prompt to draw": "a red cat", "Seed": "41", "Steps": "2",
                         "Guidance": "1.5", "Strength": "0.5"}.items():  # fmt: skip
        page.get_by_label(label, exact=True).fill(value)
    press(page, "Draw")
    page.locator("#said").get_by_text("Drawn: ").wait_for(timeout=WAIT)
    newest = sorted((workspace.root / "work" / SUBJECT / "pictures").glob("*.png"))[-1]
    with Image.open(newest) as image:
        record = json.loads(image.info["dreambooth"])
    wanted = {"prompt": "a red cat", "seed": 41, "steps": 2, "guidance": 1.5, "strength": 0.5}
    assert {key: record[key] for key in wanted} == wanted
    assert record["model"]["version"] == "2"
    shown = page.locator(".made figcaption").first.inner_text()
    assert "version 2, seed 41, steps 2, guidance 1.5, strength 0.5" in shown


def promote(page: Any, why: str) -> None:
    """Make version 2 the champion, by keyboard."""
    press(page, "Promote version 2")
    say_why(page, "Promote", why)
    page.get_by_text("Version 2 is the champion: it is in use.").wait_for(timeout=WAIT)


def roll_back(page: Any, why: str) -> None:
    """Put version 1 back in use, by keyboard."""
    press(page, "Roll back to version 1")
    say_why(page, "Roll back", why)
    page.get_by_text("Version 1 is the champion: it is in use.").wait_for(timeout=WAIT)


def test_promotion_and_rollback_by_keyboard_with_reasons(
    app: RunningApp, opened: Any, context: StageContext
) -> None:
    page = opened(f"{app.url}/registry/{SUBJECT}")
    promote(page, "people prefer it")
    roll_back(page, "its colours fade")
    tags = compare.side_by_side(context)[1].tags
    assert (tags["promoted.why"], tags["rolled_back.why"]) == (
        "people prefer it",
        "its colours fade",
    )
    assert page.get_by_text("Rolled back by").count() == 1


def test_page_of_an_earlier_champion_changes_nothing(
    app: RunningApp, opened: Any, context: StageContext
) -> None:
    new = opened(f"{app.url}/registry/{SUBJECT}")
    promote(new, "it is sharper")
    stale = opened(f"{app.url}/registry/{SUBJECT}")
    stale.get_by_role("button", name="Roll back to version 1").wait_for(timeout=WAIT)
    roll_back(new, "its colours fade")
    press(stale, "Roll back to version 1")
    say_why(stale, "Roll back", "I did not see yours")
    stale.locator("#said").get_by_text("was changed meanwhile").wait_for(timeout=WAIT)
    stale.get_by_text("Version 1 is the champion: it is in use.").wait_for(timeout=WAIT)
    assert compare.side_by_side(context)[1].tags["rolled_back.why"] == "its colours fade"


def test_registry_compares_any_two_versions(app: RunningApp, opened: Any) -> None:
    page = opened(f"{app.url}/registry/{SUBJECT}")
    table = page.get_by_role("region", name="two versions side by side")
    table.wait_for(timeout=WAIT)
    assert table.locator("thead th").all_inner_texts() == ["version 2", "version 1, champion"]
    page.get_by_label("First version").select_option("1")
    page.wait_for_function("document.querySelectorAll('thead th')[0].innerText.includes('1')")
    assert {"DINO", "checkpoint"} <= set(table.locator("tbody th").all_inner_texts())
    page.get_by_text("Lineage").first.click()
    assert page.get_by_text("weights of the base model").first.is_visible()


ROOMS = {"result": "Selected:", "judge": "Votes so far", "registry": "Side by side"}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_satisfy_axe_and_fit_a_phone(app: RunningApp, opened: Any, room: str) -> None:
    for options in ({"color_scheme": "light"}, {"color_scheme": "dark", "viewport": PHONE}):
        page = opened(f"{app.url}/{room}/{SUBJECT}", **options)
        page.get_by_text(ROOMS[room]).first.wait_for(timeout=WAIT)
        assert serious(page) == []
        assert_fits(page)


def test_unknown_subject_and_missing_run_are_sentences(
    app: RunningApp, opened: Any, workspace: Workspace
) -> None:
    for room in ROOMS:
        page = opened(f"{app.url}/{room}/dog")
        page.get_by_text("no subject has the name 'dog'").wait_for()
    photos = ROOT / "examples" / "mug-stripes"
    dreambooth(workspace, "subject", "add", "dog", "--class-noun", "dog", "--images", str(photos))
    sentences = {"result": "no scored checkpoints yet", "judge": "no model 'dreambooth-dog'"}
    for room, sentence in sentences.items():
        page = opened(f"{app.url}/{room}/dog")
        page.get_by_text(sentence).first.wait_for(timeout=WAIT)
        assert page.get_by_role("link", name="Train it").count() == 1
