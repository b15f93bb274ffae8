"""The brush for masks in a browser: mouse, keys, touch, saving, two browsers, a lost connection."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from app.mask_layers import layers_of
from dreambooth_core import config
from dreambooth_core.errors import DataError
from dreambooth_core.waiting import wait_until
from tests import tiny_models
from tests.app.conftest import PHONE, RunningApp, running_app, serious
from tests.flow import workspaces
from tests.unit.data.photo_files import encode, exif_with_orientation

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(300)]

UPRIGHT = (1200, 900)
"""The size of the photo that lies on its side in its file."""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """An app with four photos of 96 px, a turned photo, and one with alpha."""
    workspace = workspaces.build(tmp_path_factory.mktemp("masks") / "project")
    folder = workspace.resolve("data/instance/mug")
    side = tiny_models.build_photos(folder.parent / "large", count=6, side=1200)
    turned = Image.open(side / "photo-4.png").crop((0, 0, UPRIGHT[1], UPRIGHT[0]))
    (folder / "turned.jpg").write_bytes(encode(turned, "JPEG", exif=exif_with_orientation(6)))
    cut_out = Image.open(side / "photo-5.png").convert("RGBA")
    alpha = Image.new("L", cut_out.size, 0)
    alpha.paste(255, (0, 0, 600, 1200))
    cut_out.putalpha(alpha)
    cut_out.save(folder / "cut.png")
    with running_app(workspace) as running:
        yield running


def home(app: RunningApp) -> Path:
    return app.workspace.resolve("data/instance/mug")


def mask_of(app: RunningApp, name: str) -> np.ndarray:
    with Image.open(home(app) / "masks" / name) as image:
        return np.asarray(image.convert("L")) / 255


def painter(opened: Any, app: RunningApp, photo: str, **options: Any) -> Any:
    page = opened(f"{app.url}/subjects/mug/mask?photo={quote(photo)}", **options)
    page.locator("mask-painter.ready").wait_for()
    return page


def drag(page: Any, *places: tuple[float, float]) -> None:
    """Drag the mouse between places, in parts of the photo's width and height."""
    page.locator(".stage").scroll_into_view_if_needed()
    box = page.locator(".stage").bounding_box()
    for number, (left, top) in enumerate(places):
        page.mouse.move(box["x"] + left * box["width"], box["y"] + top * box["height"], steps=8)
        if number == 0:
            page.mouse.down()
    page.mouse.up()


def save(page: Any) -> None:
    page.get_by_role("button", name="Save the mask").click()
    page.get_by_text("The mask is saved").wait_for()
    page.get_by_role("button", name="Close").click()


def told(page: Any) -> str:
    return page.locator(".told").inner_text()


def test_painted_mask_is_used_and_shown_beside_the_square(app: RunningApp, opened: Any) -> None:
    page = opened(f"{app.url}/subjects/mug")
    page.get_by_role("link", name="Paint the mask of photo-0.png").click()
    page.locator("mask-painter.ready").wait_for()
    assert "No mask yet" in told(page)
    page.get_by_text("data.masks is off").wait_for()
    page.get_by_role("button", name="Use mask files").click()
    page.get_by_text("Training of mug will use them (data.masks: files).").wait_for()
    assert config.load_view(app.workspace, "mug").data.masks == "files"
    assert config.load_settings(app.workspace.params).data.masks is None
    page.get_by_label("Size").fill("40")
    drag(page, (0.1, 0.25), (0.9, 0.25))
    assert told(page).startswith("Subject: 4")
    save(page)
    mask = mask_of(app, "photo-0.png")
    assert mask.shape == (96, 96)
    assert mask[24, 10:86].min() == 1
    assert mask[60:].max() == 0
    page.get_by_role("link", name="Back to the photos").click()
    page.get_by_alt_text("the mask of photo-0.png").wait_for()
    page.get_by_text("Read as masks (data.masks).").wait_for()
    page.get_by_role("link", name="Paint the mask of photo-0.png").click()
    page.locator("mask-painter.ready").wait_for()
    assert told(page).startswith("Shown: the mask from masks/photo-0.png. Subject: 4")


def test_keys_paint_erase_and_undo(app: RunningApp, opened: Any) -> None:
    page = painter(opened, app, "photo-1.png")
    stage = page.get_by_role("application", name="Mask of photo-1.png")
    stage.focus()
    for _ in range(12):
        page.keyboard.press("]")
    assert "Size 20 %" in told(page)
    page.keyboard.press("ArrowUp")
    assert told(page) == "50 % from the left, 40 % from the top: background."
    page.keyboard.down(" ")
    page.keyboard.press("ArrowRight")
    page.keyboard.up(" ")
    painted = told(page)
    assert painted == "Subject: 5 % of the photo."
    page.keyboard.press("Shift+ArrowLeft")
    assert told(page).endswith(": subject.")
    page.keyboard.press("e")
    assert page.get_by_role("button", name="Eraser").get_attribute("aria-pressed") == "true"
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press(" ")
    page.keyboard.press("Control+z")
    assert told(page) == f"Undone. {painted}"
    page.keyboard.press("Control+Shift+z")
    page.keyboard.press("Control+z")
    page.get_by_role("button", name="Save the mask").press("Enter")
    page.get_by_text("The mask is saved, 96 × 96 px.").wait_for()
    assert 0.045 < mask_of(app, "photo-1.png").mean() < 0.055


def test_fill_and_clear_are_steps_and_an_empty_mask_is_refused(
    app: RunningApp, opened: Any
) -> None:
    page = painter(opened, app, "photo-2.png")
    page.get_by_role("button", name="Fill").click()
    assert "100 %" in told(page)
    page.get_by_role("button", name="Clear").click()
    assert "Subject: 0 %" in told(page)
    page.get_by_role("button", name="Save the mask").click()
    page.get_by_text("Not saved: less than 1 % of the photo is painted").wait_for()
    assert not (home(app) / "masks" / "photo-2.png").exists()
    page.get_by_role("button", name="Undo").click()
    assert told(page) == "Undone. Subject: 100 % of the photo."
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Undo").click()
    assert told(page) == "Nothing more to undo."


def test_turned_photo_is_painted_upright_at_full_size(app: RunningApp, opened: Any) -> None:
    page = painter(opened, app, "turned.jpg")
    box = page.locator(".stage").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(4 / 3, rel=0.01)
    drag(page, (0.1, 0.1), (0.9, 0.1))
    save(page)
    mask = mask_of(app, "turned.png")
    assert mask.shape == tuple(reversed(UPRIGHT))
    assert mask[90, 150:1050].min() > 0.95
    assert mask[450:].max() == 0


def test_transparency_is_the_first_mask(app: RunningApp, opened: Any) -> None:
    page = painter(opened, app, "cut.png")
    assert (
        told(page)
        == "Shown: the mask from the transparency of the photo. Subject: 50 % of the photo."
    )


def test_mask_of_the_wrong_size_can_be_painted_anew_or_removed(
    app: RunningApp, opened: Any
) -> None:
    cli = app.workspace
    workspaces.change(cli.root, "subjects.mug.overrides", {"data": {"masks": "files"}})
    wrong = home(app) / "masks" / "photo-3.png"
    wrong.parent.mkdir(exist_ok=True)
    Image.new("L", (50, 50), 255).save(wrong)
    page = opened(f"{app.url}/subjects/mug")
    page.get_by_text("Rejected: its mask has another size").wait_for()
    card = page.locator(".photo.rejected")
    card.get_by_role("link", name="Paint the mask of photo-3.png").click()
    page.locator("mask-painter.ready").wait_for()
    assert "Not used: its mask has another size: 50 x 50 px" in told(page)
    page.get_by_role("link", name="Back to the photos").click()
    card.get_by_role("button", name="Remove the mask").click()
    card.wait_for(state="detached")
    assert not wrong.exists()


def test_second_browser_is_asked_before_it_replaces_a_mask(app: RunningApp, opened: Any) -> None:
    (home(app) / "masks" / "photo-2.png").unlink(missing_ok=True)
    first, second = (painter(opened, app, "photo-2.png", expects="409") for _ in range(2))
    drag(first, (0.2, 0.2), (0.8, 0.2))
    save(first)
    saved = (home(app) / "masks" / "photo-2.png").read_bytes()
    second.get_by_role("button", name="Fill").click()
    second.get_by_role("button", name="Save the mask").click()
    second.get_by_text("Not saved: this mask was changed elsewhere").wait_for()
    assert (home(app) / "masks" / "photo-2.png").read_bytes() == saved
    save(second)
    assert mask_of(app, "photo-2.png").min() == 1


def test_upload_that_breaks_off_keeps_the_mask(app: RunningApp) -> None:
    mask = home(app) / "masks" / "photo-1.png"
    mask.parent.mkdir(exist_ok=True)
    Image.new("L", (96, 96), 255).save(mask)
    before = mask.read_bytes()
    connection = http.client.HTTPConnection(app.url.removeprefix("http://"))
    connection.putrequest("POST", "/mask/mug?photo=photo-1.png")
    connection.putheader("Content-Length", "1000000")
    connection.endheaders(b"\x89PNG" + bytes(200_000))
    time.sleep(0.5)
    connection.close()

    def is_clean() -> bool:
        return [path.name for path in mask.parent.iterdir() if path.name.startswith(".")] == []

    assert wait_until(is_clean, timeout_s=10, every_s=0.1)
    assert mask.read_bytes() == before


def test_painting_survives_a_lost_connection(app: RunningApp, opened: Any) -> None:
    page = painter(opened, app, "photo-3.png", expects="net::ERR_FAILED")
    page.get_by_role("button", name="Fill").click()
    page.context.route("**/mask/mug?*", lambda route: route.abort())
    page.get_by_role("button", name="Save the mask").click()
    page.get_by_text("Your painting is still here, so save again.").wait_for()
    page.context.unroute("**/mask/mug?*")
    save(page)
    assert mask_of(app, "photo-3.png").min() == 1


def test_finger_paints_and_unknown_photos_are_told(app: RunningApp, opened: Any) -> None:
    page = painter(opened, app, "photo-0.png", viewport=PHONE, has_touch=True)
    page.get_by_role("button", name="Clear").click()
    box = page.locator(".stage").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.get_by_text("Subject: 1 % of the photo.").wait_for()
    with pytest.raises(DataError, match="no photo of this name"):
        layers_of(app.workspace, config.load_view(app.workspace, "mug"), "none.png")


def test_automatic_masks_are_shown_and_painted_on(app: RunningApp, opened: Any) -> None:
    (home(app) / "masks" / "photo-0.png").unlink(missing_ok=True)
    page, other = (opened(f"{app.url}/subjects/mug") for _ in range(2))
    for each in (page, other):
        each.get_by_role("button", name="Show automatic masks").click()
    for each in (page, other):
        each.get_by_alt_text("the automatic mask of photo-0.png").wait_for()
    made = list((app.workspace.state / "app" / "automatic" / "mug").glob("*/photo-0.png"))
    assert len(made) == 1
    assert not (home(app) / "masks" / "photo-0.png").exists()
    page.get_by_role("link", name="Start from the automatic mask of photo-0.png").click()
    page.get_by_text("Started from the automatic mask.").wait_for()
    save(page)
    found = np.asarray(Image.open(made[0])) / 255
    assert np.abs(mask_of(app, "photo-0.png") - found).max() < 0.01
    page.get_by_role("button", name="Fill").click()
    page.get_by_role("button", name="Start from the automatic mask").click()
    page.get_by_text("The automatic mask is in place of yours").wait_for()
    page.wait_for_function("!document.querySelector('.told').textContent.includes('100 %')")
    page.get_by_role("button", name="Undo").click()
    assert told(page) == "Undone. Subject: 100 % of the photo."
    page.get_by_role("button", name="Redo").click()
    assert f"{round(100 * found.mean())} %" in told(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("masks", [None, "auto"])
def test_page_is_accessible_and_fits_a_phone(
    app: RunningApp, opened: Any, scheme: str, masks: str | None
) -> None:
    workspaces.change(app.workspace.root, "subjects.mug.overrides", {"data": {"masks": masks}})
    page = painter(opened, app, "turned.jpg", viewport=PHONE, color_scheme=scheme)
    page.get_by_text("Mask files are not used yet").wait_for()
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
