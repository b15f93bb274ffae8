"""The page in headless Chromium: keys, themes, a phone, and the rules of axe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from dreambooth_core.report.page import render_page
from tests.unit.report.made_up import page_content

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
GRID = '[data-sheet="prompts"]'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    (folder / "index.html").write_text(render_page(page_content(folder)), encoding="utf-8")
    return (folder / "index.html").as_uri()


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Any]:
    """Opens the page; at the end no script has failed and nothing was loaded."""
    contexts, faults = [], list[str]()

    def open_page(**options: Any) -> Any:
        context = browser.new_context(viewport=options.pop("viewport", DESKTOP), **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:")) else faults.append(r.url),
        )
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def focused(page: Any, expression: str) -> Any:
    return page.evaluate(f"(() => {{ const it = document.activeElement; return {expression}; }})()")


def test_tab_reaches_every_control_and_a_picture_of_every_table(opened: Any) -> None:
    page = opened()
    controls = (
        "[...document.querySelectorAll("
        "'a, button:not(.picture), input, summary, [tabindex=\"0\"]'"
        ")].filter((it) => it.offsetParent !== null)"
    )
    wanted = page.evaluate(f"{controls}.length")
    page.evaluate("window.reached = new Set()")
    for _ in range(wanted + 20):
        page.keyboard.press("Tab")
        focused(page, "window.reached.add(it)")
    missed = page.evaluate(
        f"{controls}.filter((it) => !window.reached.has(it)).map((it) => it.outerHTML.slice(0, 99))"
    )
    assert missed == []
    sheets = page.locator("[data-sheet]").count()
    assert page.evaluate("[...window.reached].filter((it) => it.matches('.picture')).length") == (
        sheets
    )


def test_arrow_keys_reach_every_shown_picture(opened: Any) -> None:
    page = opened()
    page.locator(f"{GRID} .picture").first.focus()
    seen = set()
    for row in range(2):
        for _ in range(3):
            seen.add(focused(page, "it.dataset.prompt + it.dataset.name"))
            page.keyboard.press("ArrowLeft" if row else "ArrowRight")
        page.keyboard.press("ArrowDown")
    assert len(seen) == 6


def test_enlarged_picture_moves_between_checkpoints_and_gives_the_focus_back(opened: Any) -> None:
    page = opened()
    page.locator(f"{GRID} .picture").first.focus()
    page.keyboard.press("Enter")
    name = page.locator("dialog h2")
    assert name.inner_text() == "step 0"
    for expected in ("checkpoint-100", "checkpoint-200", "checkpoint-200"):
        page.keyboard.press("ArrowRight")
        assert name.inner_text() == expected
    assert "seed 1 · DINO 0.700" in page.locator("dialog").inner_text()
    assert page.locator("#nearest img").get_attribute("alt") == "the nearest photo <i>.jpg"
    page.keyboard.press("ArrowDown")
    assert "seed 3" in page.locator("dialog").inner_text()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert focused(page, "it.dataset.name") == "checkpoint-200"


def test_further_seeds_unfold_for_one_prompt_or_all(opened: Any) -> None:
    page = opened()
    shown = f"{GRID} .picture:visible"
    assert page.locator(shown).count() == 6
    page.locator(f"{GRID} [data-seeds]").first.click()
    assert page.locator(shown).count() == 8  # checkpoint-100 has one round
    page.locator('[data-all-seeds="prompts"]').check()
    assert page.locator(shown).count() == 10


def test_chosen_column_and_prompts_stay_in_view_on_a_phone(opened: Any) -> None:
    page = opened(viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    sheet = page.locator(GRID)
    sheet.scroll_into_view_if_needed()
    for left in (0, 9999):
        sheet.evaluate(f"(it) => it.scrollTo({left}, 0)")
        frame = sheet.bounding_box()
        for cell in ("thead .chosen", "tbody td.chosen", "tbody th"):
            box = sheet.locator(cell).first.bounding_box()
            assert frame["x"] <= box["x"]
            assert box["x"] + box["width"] <= frame["x"] + frame["width"]


def test_command_is_copied_as_it_is_typed(opened: Any) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    page.locator("[data-copy]").first.click()
    assert page.evaluate("navigator.clipboard.readText()") == (
        "dreambooth compare mug --why 'a & b'"
    )
    assert "Copied" in page.locator("#said").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious(opened: Any, scheme: str, viewport: dict[str, int]) -> None:
    page = opened(color_scheme=scheme, viewport=viewport, bypass_csp=True)
    for enlarged in (False, True):
        if enlarged:
            page.locator(f"{GRID} .picture").first.click()
        found = axe.Axe().run(page).response["violations"]
        assert [(v["id"], v["nodes"]) for v in found if v["impact"] in ("serious", "critical")] == (
            []
        )


def test_page_without_scripts_shows_every_picture(opened: Any) -> None:
    page = opened(java_script_enabled=False)
    assert page.locator(f"{GRID} .picture:visible").count() == 10
