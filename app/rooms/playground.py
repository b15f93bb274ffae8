"""The playground of the room Judge: sample any prompt with any version, and keep the pictures."""

from __future__ import annotations

from typing import Any

from nicegui import run

from app import pictures, results, versions
from app.layout import Field, button, say, tag
from app.parts import Select, redrawn
from app.residents import Resident
from app.results import MadePicture
from app.site import Site
from app.versions import Versions

_NUMBERS = {
    "seed": ("Seed", "Same seed, same noise."),
    "steps": ("Steps", "Empty: those of the evaluation."),
    "guidance": ("Guidance", "Empty: that of the evaluation."),
    "strength": ("Strength", "0: base model, 1: trained, 2: exaggerated."),
}


class Playground:
    """A form, and the pictures made in the app."""

    def __init__(
        self, site: Site, drawing: Resident, name: str, found: Versions, prompts: list[str]
    ) -> None:
        self._site, self._drawing, self._name, self._versions = site, drawing, name, found
        with tag("section"):
            tag("h2", "Playground")
            with tag("div", classes="playground"):
                with tag("div", classes="wide"):
                    self._prompt = Field(
                        "Prompt to draw", prompts[0] if prompts else "", on_change=None, hint=""
                    )
                self._version = Select("Version", found.titles, next(iter(found.titles)))
                values = {"seed": "0", "steps": "", "guidance": "", "strength": "1"}
                self._numbers = {
                    key: Field(label, values[key], on_change=None, hint=hint, inputmode="decimal")
                    for key, (label, hint) in _NUMBERS.items()
                }
            with tag("div", classes="acts"):
                button("Draw", self._draw, classes="main")
                self._state = tag("p", "", classes="small", role="status")
            self._made = tag("div", classes="made", data_sheet="made")

    async def _draw(self) -> None:
        self._state.set_text("Drawing.")
        given = {key: field.value.strip() for key, field in self._numbers.items()}
        try:
            made = await self._drawing.call(
                *("generate", "--model", self._uri(), f"--prompt={self._prompt.value}"),
                *(f"--{key}={value}" for key, value in given.items() if value),
                *("--num", "1", "--batch-size", "1", "--no-sheet"),
                *("--out", str(results.pictures_folder(self._site, self._name))),
            )
        finally:
            self._state.set_text("")
        await self.refresh()
        say(f"Drawn: {made['images'][0]}")

    def _uri(self) -> str:
        return versions.uri_of(self._versions.row(int(self._version.value)))

    async def refresh(self) -> None:
        """Show the pictures that are there."""
        found = await run.io_bound(results.made_pictures, self._site, self._name)
        if self._made.is_deleted:
            return
        with redrawn(self._made):
            for index, made in enumerate(found or []):
                self._show(made, index)

    def _show(self, made: MadePicture, index: int) -> None:
        record: dict[str, Any] = made.record
        model = record["model"]
        settings = {
            "": f"version {model['version']}" if "version" in model else model["name"],
            "seed ": record["seed"],
            "steps ": record["steps"],
            "guidance ": f"{record['guidance']:g}",
            "strength ": f"{record['strength']:g}" if "strength" in record else "",
        }
        text = ", ".join(f"{key}{value}" for key, value in settings.items() if value != "")
        with tag("figure"):
            with tag(
                "button", classes="picture", type="button", data_row="0", data_column=str(index),
                data_name=record["prompt"], data_caption=text,
            ):  # fmt: skip
                tag("img", src=pictures.url_of(self._site, made.path), alt=record["prompt"])
            with tag("figcaption"):
                tag("strong", record["prompt"])
                tag("span", text)
