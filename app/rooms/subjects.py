"""The room Subjects: the list, and a page for each subject."""

from __future__ import annotations

from typing import Any

from nicegui import run, ui

from app.layout import link, problem, room, tag
from app.site import Site
from dreambooth_core.errors import DreamBoothError


def add_to(site: Site) -> None:
    """Add the pages."""

    @ui.page("/")
    async def start() -> None:
        with room(site, "Subjects", current="/"):
            try:
                found = await run.io_bound(_rows, site)
            except DreamBoothError as error:
                problem(error)
                return
            _show_list(found or [])


def _rows(site: Site) -> list[dict[str, Any]]:
    from cli import subject_table  # the data gate's libraries, which would delay the start

    return subject_table.rows(site.workspace)


def _show_list(rows: list[dict[str, Any]]) -> None:
    if not rows:
        with tag("div", classes="empty"):
            tag("p", "No subjects yet. Add one from 3 to 6 photos.")
        return
    with tag("ul", classes="shelf"):
        for row in rows:
            with tag("li", classes="subject"):
                with tag("h2"):
                    link(row["name"], f"/subjects/{row['name']}")
                tag("p", f"{row['identifier']} {row['class_noun']}, {row['photos']} photos")
                tag("p", f"last run: {row['last_run']}")
