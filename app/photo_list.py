"""The photos of a folder with their verdicts, as the check of each ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nicegui import ui

from app import looks, pictures
from app.layout import problem, tag
from app.looks import Look
from app.site import Site
from dreambooth_core.data import messages
from dreambooth_core.data.captions import METADATA

_POLL_S = 0.6

Extra = Callable[[dict[str, Any]], None]
"""Adds more to the card of a photo."""


class PhotoList:
    """The list on a page: it grows during the examination, and is final at its end."""

    def __init__(
        self, site: Site, place: tuple[Path, Path, str], *, extra: Extra | None = None
    ) -> None:
        self._site, self._place, self._extra = site, place, extra
        self._shown = 0
        self._progress = tag("p", "Looking at the photos", classes="small", role="status")
        self._notes = tag("div")
        self._list = tag("ul", classes="photos")
        self._timer = ui.timer(_POLL_S, self._poll)
        self._poll()

    def look_again(self) -> None:
        """Examine the folder anew, after a change of its files."""
        self._shown = 0
        self._list.clear()
        self._notes.clear()
        self._timer.activate()

    def _poll(self) -> None:
        look = looks.read(self._site, self._place)
        if look.is_done:
            self._timer.deactivate()
            self._draw_all(look)
            return
        looks.start(self._site, self._place)  # the process of an older look may just have ended
        with self._list:
            for row in look.rows[self._shown :]:
                self._draw(row, look)
        self._shown = len(look.rows)
        if look.rows:
            done, total = len(look.rows), look.rows[0]["total"]
            self._progress.set_text(f"{done} of {total} photos examined")

    def _draw_all(self, look: Look) -> None:
        self._list.clear()
        self._notes.clear()
        if look.error is not None:
            self._progress.set_text("")
            with self._notes:
                problem(look.error)
            return
        report = look.report or {}
        reasons = {each["name"]: each["reason"] for each in report["rejected"]}
        good, bad = len(report["accepted"]), len(report["rejected"])
        self._progress.set_text(f"{good} accepted, {bad} rejected")
        with self._notes:
            for warning in report["warnings"]:
                with tag("div", classes="notice"):
                    tag("p", _sentence(warning))
        with self._list:
            for row in look.rows:
                self._draw({**row, "reason": reasons.get(row["name"], row.get("reason"))}, look)
            for entry in report["skipped"]:
                with tag("li", classes="photo skipped"):
                    tag("h3", entry["name"])
                    tag("p", _said_of_skipped(entry, look), classes="small")

    def _draw(self, row: dict[str, Any], look: Look) -> None:
        is_accepted = row.get("reason") is None
        with tag("li", classes="photo" if is_accepted else "photo rejected"):
            if row.get("thumb"):
                _draw_pictures(self._site, row, look, is_accepted=is_accepted)
            tag("h3", row["name"])
            if is_accepted:
                size = f"{row['width']} × {row['height']} px"
                tag("p", f"Accepted, {size}", classes="good")
                for warning in row["warnings"]:
                    tag("p", _sentence(warning), classes="care")
            else:
                tag("p", f"Rejected: {row['reason']}", classes="bad")
                tag("p", "It is left out of the training.", classes="small")
            if self._extra is not None and look.is_done:
                self._extra(row)


def _draw_pictures(site: Site, row: dict[str, Any], look: Look, *, is_accepted: bool) -> None:
    def url(name: str) -> str:
        return pictures.url_of(site, look.folder / name)

    with tag("div", classes="views"):
        with tag("div", classes="whole"):
            tag("img", src=url(row["thumb"]), alt=f"photo {row['name']}", loading="lazy")
            for square in row.get("squares", []) if is_accepted else []:
                places = ("left", "top", "width", "height")
                style = "; ".join(f"{place}: {square[place]:.3f}%" for place in places)
                tag("span", classes="crop").style(style)
        if is_accepted:
            for square in row["squares"]:
                tag(
                    *("img",),
                    src=url(square["file"]),
                    alt=f"the square of {row['name']} that training sees",
                    classes="square",
                    loading="lazy",
                )
            if row.get("mask"):
                alt = f"the mask of {row['name']}"
                tag("img", src=url(row["mask"]), alt=alt, classes="square", loading="lazy")


def _said_of_skipped(entry: dict[str, Any], look: Look) -> str:
    """What became of a file that is no photo."""
    reason, path = entry["reason"], Path(entry["name"])
    if reason in messages.READ:
        return _sentence(reason)
    stems = {Path(row["file"]).stem for row in look.rows}
    is_caption = path.name == METADATA or (path.suffix == ".txt" and path.stem in stems)
    if is_caption and reason == messages.SKIPPED_OTHER:
        reason = "a caption, which only data.captions reads"
    return f"Not used: {reason}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
