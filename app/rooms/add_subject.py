"""The way from photos to a new subject: upload, verdicts, words."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any

from nicegui import run, ui

from app import commands, uploads
from app.layout import Field, button, go, link, problem, room, tag
from app.photo_list import PhotoList
from app.site import Site
from dreambooth_core import config, files
from dreambooth_core.config.words import nearest_name
from dreambooth_core.errors import DreamBoothError, SettingsError

_SUGGESTIONS = 5
_IDENTIFIER = "sks"
_FORMATS = "image/*,.heic,.heif,.avif,.txt,.jsonl"


def add_to(site: Site) -> None:
    """Add the page of a draft."""

    @ui.page("/add/{draft}")
    async def add(draft: str, name: str = "") -> None:
        with room(site, "New subject", current="/", eyebrow="Subjects"):
            if not uploads.is_draft(site, draft):
                problem("These photos are not here any more: they were added, or deleted.")
                link("Back to the subjects", "/")
                return
            await _show_draft(site, draft, name)


def drop_zone(draft: str, *, text: str) -> None:
    """A place to drop photos on, or to choose them; `static/app.js` uploads them to the draft."""
    with tag("div", classes="drop", data_drop=draft):
        tag("p", text)
        with tag("div", classes="acts"):
            _choice("Choose photos", "act main", accept=_FORMATS)
            _choice("Choose a folder", "act", webkitdirectory=True)
        tag("p", classes="small progress", role="status")


def _choice(label: str, classes: str, **attributes: Any) -> None:
    with tag("label", label, classes=f"{classes} choose"):
        tag("input", type="file", multiple=True, classes="unseen", **attributes)


async def _show_draft(site: Site, draft: str, proposed: str) -> None:
    words = _Words(site, draft, proposed)
    with tag("section", classes="first"):
        await words.show()
        with tag("div", classes="acts"):
            button("Add the subject", words.submit, classes="main")
            button("Discard the photos", words.discard)
        words.said = tag("div", aria_live="polite")
    with tag("section"):
        tag("h2", "Photos")
        photos = uploads.folder_of(site, draft)
        PhotoList(site, (photos, photos.parent / "looks", ""))
        drop_zone(draft, text="Add more photos: drop them here")


@dataclass(frozen=True)
class _Pieces:
    """How the base model reads an identifier, and words that it reads in one piece."""

    text: str
    suggestions: list[str]


class _Words:
    """The words of a draft, which keeps them for a reload of the page."""

    def __init__(self, site: Site, draft: str, proposed: str) -> None:
        self._site, self._draft = site, draft
        self._file = uploads.folder_of(site, draft).parent / "words.json"
        self._kept = {
            "name": nearest_name(proposed) or "",
            "class_noun": "",
            "identifier": _IDENTIFIER,
            **self._read(),
        }
        self.fields: dict[str, Field] = {}
        self.said: Any = None

    async def show(self) -> None:
        """The fields."""
        with tag("div", classes="fields"):
            self._field("name", "Name", "Lower-case letters, digits, - and _.")
            self._field("class_noun", "Class noun", "What it is, such as dog or mug.")
            self._field("identifier", "Identifier", "A rare word that will stand for it in prompts")
        self._pieces = tag("div", classes="pieces", aria_live="polite")
        await self._show_pieces()

    def _field(self, name: str, label: str, hint: str) -> None:
        async def change(value: str) -> None:
            self._kept[name] = value
            files.write_json(self._file, self._kept)
            shown = self.fields[name]
            if shown.error.text:
                shown.show_error(None)
            if name == "identifier":
                await self._show_pieces()

        self.fields[name] = Field(label, self._kept[name], on_change=change, hint=hint)

    async def _show_pieces(self) -> None:
        word = self._kept["identifier"]
        found = await run.io_bound(_pieces_of, self._site, word)
        if found is None or word != self._kept["identifier"]:
            return
        self._pieces.clear()
        with self._pieces:
            tag("p", found.text, classes="small")
            if found.suggestions:
                with tag("div", classes="acts small-acts"):
                    tag("span", "Words of one token:", classes="small")
                    for each in found.suggestions:
                        button(each, lambda each=each: self._take(each), classes="small-act")

    async def _take(self, word: str) -> None:
        shown = self.fields["identifier"]
        shown.set_value(word)
        self._kept["identifier"] = word
        files.write_json(self._file, self._kept)
        await self._show_pieces()

    async def submit(self) -> None:
        """Add the subject, or show the mistake next to its field."""
        kept = self._kept
        wrong = await run.io_bound(_problems, self._site, kept) or {}
        for name, shown in self.fields.items():
            shown.show_error(wrong.get(name))
        if wrong:
            first = next(iter(wrong))
            self.fields[first].focus()
            return
        self.said.clear()
        with self.said:
            tag("p", "Checking and copying the photos.", classes="small")
        try:
            await commands.call(
                self._site,
                *("subject", "add", kept["name"]),
                f"--class-noun={kept['class_noun']}",
                f"--identifier={kept['identifier']}",
                f"--images={uploads.folder_of(self._site, self._draft)}",
            )
        except DreamBoothError as error:
            self.said.clear()
            with self.said:
                problem(error)
            return
        uploads.delete(self._site, self._draft)
        go(f"/subjects/{kept['name']}")

    def discard(self) -> None:
        """Delete the draft."""
        uploads.delete(self._site, self._draft)
        go("/")

    def _read(self) -> dict[str, str]:
        with contextlib.suppress(OSError, ValueError):
            return json.loads(self._file.read_bytes())
        return {}


def _problems(site: Site, words: dict[str, str]) -> dict[str, str]:
    """Mistakes in the words by field, in the sentences of `subject add`."""
    from cli import subjects  # the data gate's libraries, which would delay the start

    new = subjects.NewSubject(**words)
    found: dict[str, str] = {}
    for each in subjects.entry_of(site.workspace, new)[1]:
        name = (each.key or "--name").removeprefix("--").replace("-", "_")
        found.setdefault(name, each.text)
    names = config.load_settings(site.workspace.params).subjects
    if words["name"] in names:
        found.setdefault("name", f"The subject {words['name']} already exists: choose another name")
    return {name: found[name] for name in words if name in found}


def _pieces_of(site: Site, word: str) -> _Pieces:
    from dreambooth_core.models import identifier

    base = config.load_settings(site.workspace.params).base_model
    tokenizers = identifier.tokenizers_on_disk(base, site.workspace.root)
    if not tokenizers:
        return _Pieces("The base model is not on this machine yet: its tokens are unknown.", [])
    try:
        pieces = max((identifier.pieces_of(word, each) for each in tokenizers), key=len)
        rare = identifier.rare_words(tokenizers, limit=_SUGGESTIONS)
    except SettingsError as error:
        return _Pieces(str(error), [])
    if len(pieces) <= 1:
        return _Pieces(f"The text encoder reads {word} as one token: good.", [])
    text = (
        f"The text encoder reads {word} as {len(pieces)} tokens: {' + '.join(pieces)}. "
        "They also occur in other words, so training changes those words too."
    )
    return _Pieces(text, rare)
