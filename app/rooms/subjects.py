"""The room Subjects: the list, a page for each subject, its new name and its removal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nicegui import run, ui

from app import automatic, commands, looks, pictures, unused, uploads
from app.layout import Field, button, checkbox, go, link, problem, room, say, tag
from app.photo_list import PhotoList
from app.rooms import mask
from app.rooms.add_subject import drop_zone
from app.site import Site
from dreambooth_core import config, locks
from dreambooth_core.config import SubjectView
from dreambooth_core.data.captions import METADATA
from dreambooth_core.errors import DreamBoothError

_MASKS = "masks"  # the folder that the data gate reads
_STRIP = 4
_POLL_S = 1.0
_LOOKED_AT = 12
_LOCK_TIMEOUT_S = 30.0


def add_to(site: Site) -> None:
    """Add the pages."""

    @ui.page("/")
    async def start() -> None:
        with room(site, "Subjects", current="/"):
            drop_zone(uploads.new_draft(), text="Drop 3 to 6 photos of a new subject here")
            try:
                found = await run.io_bound(_rows, site) or []
            except DreamBoothError as error:
                problem(error)
                return
            _show_list(site, found)

    @ui.page("/subjects/{name}")
    async def subject(name: str) -> None:
        with room(site, name, current="/", eyebrow="Subject"):
            try:
                view = config.load_view(site.workspace, name)
            except DreamBoothError as error:
                problem(error)
                return
            await _show_subject(site, view)

    @ui.page("/subjects/{name}/rename")
    def renaming(name: str) -> None:
        with room(site, f"Rename {name}", current="/", eyebrow="Subject"):
            _show_renaming(site, name)

    @ui.page("/subjects/{name}/remove")
    def removal(name: str) -> None:
        with room(site, f"Remove {name}?", current="/", eyebrow="Subject"):
            _show_removal(site, name)


def _rows(site: Site) -> list[dict[str, Any]]:
    from cli import subject_table  # the data gate's libraries, which would delay the start

    return subject_table.rows(site.workspace)


def _show_list(site: Site, rows: list[dict[str, Any]]) -> None:
    if not rows:
        tag("p", "No subjects yet.", classes="lead")
        return
    with tag("ul", classes="shelf"):
        for number, row in enumerate(rows):
            with tag("li", classes="subject"):
                place = looks.of_subject(site, row["name"], row["instance_dir"])
                if number < _LOOKED_AT:
                    looks.start(site, place)
                _Strip(site, place)
                with tag("h2"):
                    link(row["name"], f"/subjects/{row['name']}")
                tag("p", f"{row['identifier']} {row['class_noun']}, {row['photos']} photos")
                tag("p", f"Last run: {row['last_run']}")
                with tag("div", classes="acts"):
                    link("Train", f"/train/{row['name']}", classes="act").props["aria-label"] = (
                        f"Train {row['name']}"
                    )


class _Strip:
    """The first squares of a subject, as soon as they are made."""

    def __init__(self, site: Site, place: tuple[Any, Any, str]) -> None:
        self._site, self._place, self._shown = site, place, 0
        self._box = tag("div", classes="mini")
        self._timer = ui.timer(_POLL_S, self._poll)
        self._poll()

    def _poll(self) -> None:
        look = looks.read(self._site, self._place)
        rows = [row for row in look.rows if row.get("squares")][:_STRIP]
        with self._box:
            for row in rows[self._shown :]:
                source = pictures.url_of(self._site, look.folder / row["squares"][0]["file"])
                tag("img", src=source, alt="", loading="lazy")
        self._shown = len(rows)
        if look.is_done or self._shown == _STRIP:
            self._timer.deactivate()


async def _show_subject(site: Site, view: SubjectView) -> None:
    subject = view.subject
    tag("p", f"Prompts name it {subject.identifier} {subject.class_noun}.", classes="lead")
    with tag("div", classes="acts"):
        link("Train", f"/train/{view.name}", classes="act main")
        link("Rename", f"/subjects/{view.name}/rename", classes="act")
        link("Remove", f"/subjects/{view.name}/remove", classes="act danger")
    with tag("section"):
        tag("h2", "Photos")
        tag("p", _how_words(view), classes="small")
        place = looks.of_subject(site, view.name, subject.instance_dir)
        if _has_captions(place[0]):
            unused.show_captions(site, view)
        if (place[0] / _MASKS).is_dir():
            unused.show_masks(site, view)
        listed: list[PhotoList] = []
        with tag("div", classes="acts small-acts"):
            _show_suggesting(site, view.name, listed)
            _show_finding(site, view, listed)
        listed.append(
            PhotoList(site, place, extra=lambda row: _show_edits(site, view, row, listed))
        )


def _show_suggesting(site: Site, name: str, listed: list[PhotoList]) -> None:
    """The button that writes a caption for each photo without one."""

    async def suggest() -> None:
        say("Looking for captions.")
        made = await commands.call(site, "subject", "caption", name)
        count = made["written"]
        say(
            f"Captions written: {count}. Change any of them below."
            if count
            else "Every photo has a caption."
        )
        for each in listed:
            each.look_again()

    button("Suggest captions", suggest, classes="small-act")


def _show_finding(site: Site, view: SubjectView, listed: list[PhotoList]) -> None:
    """The button that shows where the base model sees the subject."""

    async def find() -> None:
        say("Looking for the subject in each photo.")
        await automatic.make(site, view)
        say("Each photo shows its automatic mask: white is the subject.")
        for each in listed:
            each.look_again()

    button("Show automatic masks", find, classes="small-act")


def _how_words(view: SubjectView) -> str:
    captions = "used" if view.data.captions else "not used (data.captions is off)"
    masks = {"files": "used", "auto": "made by the base model (data.masks is auto)"}
    said = masks.get(view.data.masks or "", "not used (data.masks is off)")
    return f"The frame marks the square that training sees. Captions: {captions}. Masks: {said}."


def _show_edits(site: Site, view: SubjectView, row: dict[str, Any], listed: list[Any]) -> None:
    folder = site.workspace.resolve(view.subject.instance_dir)
    if row.get("reason") is None:
        _show_caption_edit(site, view, row, folder)
    _show_mask_edit(site, view, row, folder, listed)


def _show_caption_edit(site: Site, view: SubjectView, row: dict[str, Any], folder: Path) -> None:

    async def save(text: str) -> None:
        def write() -> None:
            from dreambooth_core.data.captions import write_caption

            with locks.hold(site.workspace.workspace_lock, timeout_s=_LOCK_TIMEOUT_S):
                write_caption(folder, row["file"], text)

        await run.io_bound(write)
        say(f"The caption of {row['name']} is saved.")

    Field(
        "Caption",
        _caption_of(folder, row["file"]),
        on_commit=save,
        placeholder=view.subject.instance_prompt,
        aria_label=f"Caption of {row['name']}",
    )


def _show_automatic(site: Site, view: SubjectView, row: dict[str, Any]) -> None:
    """The automatic mask of a photo, if it was made, and the way to change it."""
    found = automatic.picture_of(site, view, row["file"])
    if found is None:
        return
    with tag("div", classes="automatic"):
        source = pictures.url_of(site, automatic.small(found))
        tag("img", src=source, alt=f"the automatic mask of {row['name']}", loading="lazy")
        with tag("div"):
            tag("p", "Automatic mask", classes="small")
            start = link(
                "Start from it",
                mask.url_of(view.name, row["file"], from_automatic=True),
                classes="act small-act",
            )
            start.props["aria-label"] = f"Start from the automatic mask of {row['name']}"


def _show_mask_edit(
    site: Site, view: SubjectView, row: dict[str, Any], folder: Path, listed: list[Any]
) -> None:
    """What can be done with the mask of an accepted photo, or of one with a wrong mask."""
    from dreambooth_core.data import masks

    own = masks.own_file(folder, row["file"])
    if row.get("reason") is not None and not own.is_file():
        return
    _show_automatic(site, view, row)
    with tag("div", classes="acts small-acts"):
        paint = link("Paint the mask", mask.url_of(view.name, row["file"]), classes="act small-act")
        paint.props["aria-label"] = f"Paint the mask of {row['name']}"
        with tag("label", "Upload a mask", classes="act small-act choose"):
            tag(
                *("input",),
                type="file",
                accept="image/*",
                classes="unseen",
                data_mask=view.name,
                data_photo=row["file"],
            )

        def remove() -> None:
            own.unlink(missing_ok=True)
            for each in listed:
                each.look_again()

        if own.is_file():
            button("Remove the mask", remove, classes="small-act")


def _has_captions(folder: Path) -> bool:
    return (folder / METADATA).is_file() or any(folder.glob("*.txt"))


def _caption_of(folder: Path, photo: str) -> str:
    from dreambooth_core.data.captions import read_captions

    try:
        return read_captions(folder, [folder / photo]).by_name.get(photo, "")
    except DreamBoothError:
        return ""


def _show_renaming(site: Site, name: str) -> None:
    tag(
        "p",
        "Its photos, results and registered versions get the new name. Nothing is trained again.",
        classes="lead",
    )

    async def rename() -> None:
        new = field.value.strip()
        if new == name:
            field.show_error("That is its present name.")
            return
        try:
            config.check_name(new)  # before it becomes a word of a command line
            await commands.call(site, "subject", "rename", name, new)
        except (DreamBoothError, ValueError) as error:
            field.show_error(str(error))
            field.focus()
            return
        go(f"/subjects/{new}")

    field = Field("New name", name, hint="Lower-case letters, digits, - and _.")
    with tag("div", classes="acts"):
        button("Rename", rename, classes="main")
        link("Keep the name", f"/subjects/{name}", classes="act")


def _show_removal(site: Site, name: str) -> None:
    tag(
        "p",
        "This takes the subject out of params.yaml. Its results and registered versions stay.",
        classes="lead",
    )
    chosen = {"photos": False}

    async def remove() -> None:
        options = ["--photos"] if chosen["photos"] else []
        await commands.call(site, "subject", "remove", name, *options)
        go("/")

    checkbox("Also delete the copies of its photos", lambda is_on: chosen.update(photos=is_on))
    with tag("div", classes="acts"):
        button("Remove", remove, classes="danger")
        link("Keep it", f"/subjects/{name}", classes="act")
