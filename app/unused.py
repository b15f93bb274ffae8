"""Notices about captions and masks that training does not use, with the button that changes it."""

from __future__ import annotations

from typing import Any

from nicegui import run

from app.layout import button, say, tag
from app.site import Site
from dreambooth_core.config import SubjectView


def show_captions(site: Site, view: SubjectView) -> None:
    """Offer `data.captions: true`, unless it is on."""
    if not view.data.captions:
        text = "The captions are not used yet: data.captions is off."
        _show(site, view, text, "Use the captions", ("data.captions", True))


def show_masks(site: Site, view: SubjectView) -> None:
    """Offer `data.masks: files`, unless it is set."""
    reasons = {None: "off", "auto": "auto, so the base model makes masks"}
    if view.data.masks != "files":
        text = f"Mask files are not used yet: data.masks is {reasons[view.data.masks]}."
        _show(site, view, text, "Use mask files", ("data.masks", "files"))


def _show(site: Site, view: SubjectView, text: str, act: str, setting: tuple[str, Any]) -> None:
    box = tag("div", classes="notice")
    key, value = setting

    async def use() -> None:
        await run.io_bound(_save, site, view.name, key, value)
        box.delete()
        said = "true" if value is True else value
        say(f"Training of {view.name} will use them ({key}: {said}).")

    with box:
        tag("p", text)
        button(act, use, classes="small-act")


def _save(site: Site, name: str, key: str, value: Any) -> None:
    from cli import settings_file

    settings_file.save_for_subject(site.workspace, name, key, value=value)
