"""Downloads of a version: `dreambooth export` writes it into the store, the browser fetches it."""

from __future__ import annotations

import shutil
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import app as web
from nicegui import run, ui
from starlette.responses import FileResponse, PlainTextResponse, Response

from app import versions
from app.layout import button, problem, say, tag
from app.parts import Select, redrawn
from app.residents import residents_of
from app.site import Site
from dreambooth_core.errors import DreamBoothError

_PREFIX = "/exports/"
_KEPT_S = 3600.0
_FORMS = {
    "kohya": "For ComfyUI and kohya",
    "lora": "LoRA for diffusers",
    "pipeline": "Whole pipeline (zip)",
}


def add_to(site: Site) -> None:
    """Add the route of the exported files."""

    @web.get(_PREFIX + "{folder}/{name}")
    def fetch(folder: str, name: str) -> Response:
        path = (_folder(site) / folder / name).resolve()
        if not path.is_relative_to(_folder(site).resolve()) or not path.is_file():
            return PlainTextResponse("not found: download it again", status_code=404)
        return FileResponse(path, filename=path.name)


def show(site: Site, name: str, method: str) -> None:
    """The section with the downloads of a subject's versions."""
    with tag("section"):
        tag("h2", "Downloads")
        place = tag("div")
        with place:
            tag("p", "Reading the registry.", role="status")
    ui.timer(0.05, partial(_fill, site, name, method, place), once=True)


async def _fill(site: Site, name: str, method: str, place: Any) -> None:
    try:
        found = await versions.read(residents_of(site).registry, name)
    except DreamBoothError as error:
        with redrawn(place):
            problem(error)
        return
    if place.is_deleted:
        return
    model = found.rows[0]["name"]
    with redrawn(place):
        version = Select("Version", found.titles, next(iter(found.titles)))
        with tag("div", classes="acts"):
            for form, title in _FORMS.items():
                if method == "lora" or form == "pipeline":
                    button(title, partial(_download, site, model, version, form))
        if method != "lora":
            tag(
                "p",
                "All weights were trained, so there is no small adapter file: set train.method to "
                "lora for one.",
                classes="small",
            )


async def _download(site: Site, model: str, version: Select, form: str) -> None:
    say("Preparing the file.")
    await run.io_bound(_remove_old, site)
    out = _folder(site) / f"{time.time_ns()}"
    words = (f"models:/{model}/{version.value}", f"--as={form}", f"--out={out}")
    path = Path((await residents_of(site).drawing.call("export", *words))["path"])
    if path.is_dir():
        path = await run.io_bound(_zipped, path) or path
    ui.download.from_url(f"{_PREFIX}{out.name}/{path.name}", path.name)
    say(f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB.")


def _folder(site: Site) -> Path:
    return site.files / "exports"


def _remove_old(site: Site) -> None:
    """Remove the exports that nobody downloads any more."""
    for folder in _folder(site).glob("*"):
        if time.time() - folder.stat().st_mtime > _KEPT_S:
            shutil.rmtree(folder, ignore_errors=True)


def _zipped(folder: Path) -> Path:
    """The folder as a zip file next to it; weights do not shrink, so nothing is compressed."""
    path = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    shutil.rmtree(folder)
    return path
