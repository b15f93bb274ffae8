"""The room Subjects in a browser: uploads, verdicts, words, captions, masks, removal."""

from __future__ import annotations

import http.client
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth_core import config
from dreambooth_core.waiting import wait_until
from dreambooth_core.workspace import Workspace
from tests import tiny_models
from tests.app.conftest import PHONE, RunningApp, running_app, serious
from tests.flow import workspaces
from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(300)]

HOSTILE = "<img src=x onerror=alert(1)>.png"
DRAFT = "0123456789abcdef"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    workspace = workspaces.build(tmp_path_factory.mktemp("subjects") / "project")
    with running_app(workspace) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four good photos, a blank one, a cut one, a text, and a name with HTML."""
    folder = tiny_models.build_photos(tmp_path_factory.mktemp("camera") / "My Dog")
    photos = sorted(folder.glob("*.png"))
    photos[0].rename(folder / HOSTILE)
    Image.new("RGB", (96, 96), "grey").save(folder / "blank.png")
    (folder / "cut.png").write_bytes(photos[1].read_bytes()[:300])
    (folder / "notes.txt").write_text("not a photo")
    return folder


def choose(page: Any, label: str, paths: list[Path] | Path) -> None:
    page.get_by_label(label).set_input_files(paths)


def drafts(workspace: Workspace) -> list[str]:
    folder = workspace.state / "app" / "drafts"
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_folder_becomes_a_subject_with_a_verdict_on_every_file(
    app: RunningApp, opened: Any, folder: Path
) -> None:
    page = opened(app.url)
    choose(page, "Choose a folder", folder)
    page.get_by_role("heading", name="New subject").wait_for()
    page.get_by_text("4 accepted, 2 rejected").wait_for()
    assert page.get_by_label("Name").input_value() == "my-dog"
    assert page.locator(".photo.rejected").count() == 2
    text = page.locator(".photos").inner_text()
    assert "Rejected: blank or almost constant" in text
    assert "Rejected: truncated" in text
    assert HOSTILE in text
    assert "Not used: not a picture" in text
    assert page.locator(".photo img.square").count() == 4
    page.get_by_text("reads sks as").wait_for()
    page.get_by_label("Class noun").fill("dog; rm -rf /")
    page.get_by_role("button", name="Add the subject").click()
    page.get_by_text("not a noun of 1 to 60 letters").wait_for()
    page.reload()
    assert page.get_by_label("Class noun").input_value() == "dog; rm -rf /"
    page.get_by_label("Class noun").fill("dog")
    page.get_by_role("button", name="Add the subject").click()
    page.get_by_role("heading", name="my-dog").wait_for(timeout=60_000)
    view = config.load_view(app.workspace, "my-dog")
    assert view.subject.class_noun == "dog"
    names = {p.name for p in app.workspace.resolve(view.subject.instance_dir).iterdir()}
    assert HOSTILE in names
    assert {"blank.png", "cut.png", "notes.txt"}.isdisjoint(names)
    assert drafts(app.workspace) == []


def test_second_browser_reads_that_the_name_is_taken(
    app: RunningApp, opened: Any, photos: Path
) -> None:
    pages = [opened(app.url), opened(app.url)]
    for page in pages:
        choose(page, "Choose photos", sorted(photos.glob("*.png")))
        page.get_by_role("heading", name="New subject").wait_for()
        page.get_by_label("Name").fill("both")
        page.get_by_label("Class noun").fill("mug")
    for page in pages:
        page.get_by_role("button", name="Add the subject").click()
    told = page_told(pages)
    assert sorted(told) == ["added", "already exists"]
    assert list(config.load_settings(app.workspace.params).subjects).count("both") == 1


def page_told(pages: list[Any]) -> list[str]:
    found: list[str] = []

    def look() -> bool:
        found[:] = [
            "added"
            if page.get_by_role("heading", name="both", exact=True).is_visible()
            else "already exists"
            if page.get_by_text("already exists").first.is_visible()
            else "working"
            for page in pages
        ]
        return "working" not in found

    assert wait_until(look, timeout_s=60, every_s=0.2), found
    return found


def test_upload_that_breaks_off_leaves_nothing(app: RunningApp) -> None:
    host = app.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host)
    connection.putrequest("POST", f"/upload/{DRAFT}?name=a.jpg")
    connection.putheader("Content-Length", "1000000")
    connection.endheaders(b"\xff\xd8" + bytes(200_000))
    time.sleep(0.5)
    connection.close()
    folder = app.workspace.state / "app" / "drafts" / DRAFT / "photos"
    assert wait_until(lambda: list(folder.glob("*")) == [], timeout_s=10, every_s=0.1)


@pytest.mark.parametrize(
    ("name", "sent", "said"),
    [
        ("..%2F..%2Fevil.png", "8", "not a name for a photo"),
        ("a%2Fb.png", "8", "not a name for a photo"),
        (".aside-x.png", "8", "not a name for a photo"),
        ("x" * 300, "8", "longer than 200 bytes"),
        ("a.png", "300000000", "too large: 286 MiB, at most 200 MiB"),
    ],
)
def test_upload_with_a_wrong_name_or_size_is_refused(
    app: RunningApp, name: str, sent: str, said: str
) -> None:
    connection = http.client.HTTPConnection(app.url.removeprefix("http://"))
    connection.putrequest("POST", f"/upload/{DRAFT}?name={name}")
    connection.putheader("Content-Length", sent)
    connection.endheaders(b"12345678")
    answer = connection.getresponse()
    assert answer.status in (400, 413)
    assert said in answer.read().decode()
    connection.close()


def test_caption_and_mask_are_written_where_the_gate_reads_them(
    app: RunningApp, opened: Any, photos: Path, tmp_path: Path
) -> None:
    add(app, "cap", photos)
    page = opened(f"{app.url}/subjects/cap")
    name = sorted(path.name for path in photos.glob("*.png"))[0]
    page.get_by_label(f"Caption of {name}").fill("sks mug on  a <b>table</b>")
    page.keyboard.press("Tab")
    page.get_by_text(f"The caption of {name} is saved.").wait_for()
    home = app.workspace.resolve("data/instance/cap")
    assert (home / name).with_suffix(".txt").read_text() == "sks mug on a <b>table</b>\n"
    page.reload()
    box = page.get_by_label(f"Caption of {name}")
    box.wait_for()
    assert box.input_value() == "sks mug on a <b>table</b>"
    page.get_by_role("button", name="Use the captions").click()
    page.get_by_text("Training of cap will use them (data.captions: true).").wait_for()
    page.reload()
    page.get_by_text("Read as a caption (data.captions).").wait_for()
    assert "Not used" not in page.locator(".photos").inner_text()
    mask = tmp_path / "mask.png"
    Image.new("L", Image.open(home / name).size, 255).save(mask)
    page.get_by_label("Upload a mask").first.set_input_files(mask)
    page.get_by_role("button", name="Remove the mask").wait_for()
    assert (home / "masks" / name).is_file()
    page.get_by_role("button", name="Remove the mask").click()
    page.get_by_role("button", name="Remove the mask").wait_for(state="detached")
    assert not (home / "masks" / name).exists()


def test_suggested_captions_fill_empty_fields_and_can_be_edited(
    app: RunningApp, opened: Any, photos: Path
) -> None:
    add(app, "suggest", photos)
    home = app.workspace.resolve("data/instance/suggest")
    names = sorted(path.name for path in photos.glob("*.png"))
    (home / names[1]).with_suffix(".txt").write_text("sks mug, by hand")
    page = opened(f"{app.url}/subjects/suggest")
    page.get_by_text("Not used: a caption, which only data.captions reads").wait_for()
    button = page.get_by_role("button", name="Suggest captions")
    button.click()
    page.get_by_text("the captioner cannot be used").wait_for()  # no hub, and no list of places
    assert page.get_by_label(f"Caption of {names[0]}").input_value() == ""

    world = app.workspace.root / "assets" / "pocket-sd" / "world.json"
    shutil.copy(ROOT / "assets" / "pocket-sd" / "world.json", world)
    try:
        button.click()
        page.get_by_text("Captions written: 3. Change any of them below.").wait_for()
    finally:
        world.unlink()
    page.wait_for_function(
        "label => document.querySelector(`[aria-label='${label}']`)?.value",
        arg=f"Caption of {names[0]}",
    )
    suggested = page.get_by_label(f"Caption of {names[0]}").input_value()
    assert suggested.startswith("a photo of sks mug ")
    assert (home / names[0]).with_suffix(".txt").read_text() == f"{suggested}\n"
    assert page.get_by_label(f"Caption of {names[1]}").input_value() == "sks mug, by hand"
    page.get_by_label(f"Caption of {names[0]}").fill("sks mug on my desk")
    page.keyboard.press("Tab")
    page.get_by_text(f"The caption of {names[0]} is saved.").wait_for()
    assert (home / names[0]).with_suffix(".txt").read_text() == "sks mug on my desk\n"
    button.click()
    page.get_by_text("Every photo has a caption.").wait_for()


def add(app: RunningApp, name: str, photos: Path) -> None:
    workspaces.run_in(
        app.workspace.root,
        *("dreambooth", "subject", "add", name, "--class-noun", "mug", "--images", str(photos)),
    )


def test_removal_asks_first_and_keeps_the_photos_unless_chosen(
    app: RunningApp, opened: Any, photos: Path
) -> None:
    home = app.workspace.resolve("data/instance/gone")
    for also, stay in (("", True), ("Also delete", False)):
        add(app, "gone", home if home.is_dir() else photos)
        page = opened(f"{app.url}/subjects/gone")
        page.get_by_role("link", name="Remove").click()
        if also:
            page.get_by_label(re.compile(also)).check()
        page.get_by_role("button", name="Remove").click()
        page.get_by_role("heading", name="Subjects").wait_for()
        assert "gone" not in config.load_settings(app.workspace.params).subjects
        assert home.is_dir() is stay


def test_subject_gets_a_new_name_and_keeps_its_photos(
    app: RunningApp, opened: Any, photos: Path
) -> None:
    add(app, "before", photos)
    page = opened(f"{app.url}/subjects/before")
    page.get_by_role("link", name="Rename").click()
    page.get_by_label("New name").fill("My Dog")
    page.get_by_role("button", name="Rename").click()
    page.get_by_text("use my-dog").wait_for()
    page.get_by_label("New name").fill("after")
    page.get_by_role("button", name="Rename").press("Enter")
    page.get_by_role("heading", name="after").wait_for()
    names = config.load_settings(app.workspace.params).subjects
    assert "before" not in names
    assert names["after"].instance_dir == "data/instance/after"
    page.locator(".photo").nth(len(list(photos.glob("*.png"))) - 1).wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_accessible_and_fit_a_phone(
    app: RunningApp, opened: Any, photos: Path, scheme: str
) -> None:
    if "look" not in config.load_settings(app.workspace.params).subjects:
        shutil.copy(sorted(photos.glob("*.png"))[0], photos / "twice.png")
        add(app, "look", photos)
    for path in (
        "",
        "/subjects/look",
        "/subjects/look/rename",
        "/subjects/look/remove",
        "/subjects/none",
    ):
        page = opened(f"{app.url}{path}", viewport=PHONE, color_scheme=scheme)
        if path == "/subjects/look":
            page.locator(".photo .field").first.wait_for()
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
