"""The room Result: the checkpoints of the last run as a gallery, a choice by hand, downloads."""

from __future__ import annotations

from functools import partial
from typing import Any

from nicegui import run, ui

from app import commands, downloads, pictures, results
from app.layout import button, link, problem, say, tag
from app.parts import add_pages, ask_reason, redrawn
from app.results import Result
from app.site import Site
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.records import STEP_0, RankedCheckpoint


def add_to(site: Site) -> None:
    """Add the pages."""
    downloads.add_to(site)
    add_pages(site, "/result", lambda name: _Room(site, name).show())


class _Room:
    def __init__(self, site: Site, name: str) -> None:
        self._site, self._name = site, name
        self._round = 0

    async def show(self) -> None:
        self._place = tag("div")
        await self._draw()

    async def _draw(self) -> None:
        try:
            found = await run.io_bound(results.read, self._site, self._name)
        except DreamBoothError as error:
            with redrawn(self._place):
                problem(error)
                link("Train it", f"/train/{self._name}", classes="act main")
            return
        if found is None:
            return
        with redrawn(self._place):
            self._show_selection(found)
            with tag("section"):
                tag("h2", "Pictures")
                self._gallery = tag("div")
                self._show_gallery(found)
            self._show_checkpoints(found)
            downloads.show(self._site, self._name, found.options.training.method)

    def _show_selection(self, found: Result) -> None:
        best = found.options.selection.best
        if best is not None:
            tag("h2", f"Selected: {best}")
        tag("p", found.options.selection.rule, classes="rule")
        pending = self._pending(found)
        if pending:
            with tag("div", classes="notice"):
                tag("p", pending)
                link("Run it now", f"/train/{self._name}", classes="act main")
        with tag("div", classes="acts"):
            if found.page is not None:
                page = link(
                    "Open the page of this run", pictures.url_of(self._site, found.page),
                    classes="act main",
                )  # fmt: skip
                page.props["target"] = "_blank"
            if found.choice is not None:
                button("Let the rule select again", self._choose_by_rule)
        if best is None:
            problem("No checkpoint was selected.")

    def _pending(self, found: Result) -> str | None:
        """The next run's change of the selection, in words."""
        best, choice = found.options.selection.best, found.choice
        if choice is None:
            taken_back = "by hand:" in found.options.selection.rule
            return "The next run selects by the rule again." if taken_back else None
        if not found.choice_holds:
            return None  # the rule's sentence says so
        chosen = f"checkpoint-{choice.step}"
        if chosen == best and choice.why.rstrip(".") in found.options.selection.rule:
            return None
        return (
            f"{choice.who} chose {chosen}: {choice.why}\n"
            "The next run registers it as a version and compares it with the champion."
        )

    def _show_gallery(self, found: Result) -> None:
        rows = list(found.pictures)
        with redrawn(self._gallery):
            with tag("div", classes="tools"):
                tag("p", f"Seed {self._round + 1} of {found.num_rounds}", role="status")
                if found.num_rounds > 1:
                    button("Previous seed", partial(self._turn, found, -1))
                    button("Next seed", partial(self._turn, found, 1))
                tag("p", "Arrow keys move between pictures, Enter enlarges one.", classes="small")
            with tag(
                "div", classes="tall", data_sheet="prompts", tabindex="0", role="region",
                aria_label="pictures by prompt and checkpoint",
                    style=f"--columns: {len(rows)}",
            ), tag("table", classes="grid"):  # fmt: skip
                self._show_heads(found, rows)
                with tag("tbody"):
                    for index, prompt in enumerate(found.prompts):
                        with tag("tr"):
                            tag("th", prompt, scope="row")
                            for column, row in enumerate(rows):
                                self._show_cell(found, row, index, column)

    def _show_heads(self, found: Result, rows: list[str]) -> None:
        best = found.options.selection.best
        with tag("thead"), tag("tr"):
            tag("th", "Prompt", scope="col")
            for row in rows:
                with tag("th", scope="col", classes="chosen" if row == best else ""):
                    tag("span", row.removeprefix("checkpoint-"), classes="head")
                    words = {STEP_0: "base model", best: "selected"}
                    tag("span", words.get(row, ""), classes="aside")

    def _show_cell(self, found: Result, row: str, prompt: int, column: int) -> None:
        chosen = "chosen" if row == found.options.selection.best else ""
        picture = found.picture(row, prompt, self._round)
        with tag("td", classes=chosen):
            if picture is None:
                tag("span", classes="undrawn", title="not drawn: it left the race before")
                return
            score = picture.score
            caption = (
                f"{score.prompt}; seed {score.seed}, DINO {score.dino:.3f}, "
                f"CLIP-T {score.clip_t:.3f}"
            )
            with tag(
                "button", classes=f"picture {chosen}", type="button", data_row=str(prompt),
                data_column=str(column), data_name=row, data_caption=caption,
                tabindex="0" if prompt == column == 0 else "-1",
            ):  # fmt: skip
                url = pictures.url_of(self._site, picture.path)
                tag("img", src=url, alt=f"{row}: {score.prompt}", loading="lazy")

    def _turn(self, found: Result, by: int) -> None:
        self._round = (self._round + by) % found.num_rounds
        self._show_gallery(found)

    def _show_checkpoints(self, found: Result) -> None:
        with tag("section"):
            tag("h2", "Checkpoints")
            tag(
                "p",
                "The rule selects by the scores. If you see what they do not, choose another "
                "checkpoint: the choice is recorded with your reason.",
            )
            with (
                tag("div", classes="scroll", tabindex="0", role="region", aria_label="scores"),
                tag("table", classes="choices"),
            ):
                with tag("thead"), tag("tr"):
                    for title in (
                        "Step",
                        "Choice",
                        "DINO",
                        "CLIP-T",
                        "PRES",
                        "Verdict of the rule",
                    ):
                        tag("th", title, scope="col")
                with tag("tbody"):
                    for one in found.ranked:
                        self._show_checkpoint(found, one)
            self._reason = tag("div")

    def _show_checkpoint(self, found: Result, one: RankedCheckpoint) -> None:
        is_best = one.name == found.options.selection.best
        with tag("tr", classes="chosen" if is_best else ""):
            tag("th", str(one.step), scope="row")
            with tag("td"):
                if is_best:
                    tag("span", "selected", classes="badge good")
                else:
                    label = f"Choose step {one.step}"
                    button("Choose", partial(self._ask, found, one.step), aria_label=label)
            for value in (one.dino, one.clip_t, one.pres):
                tag("td", f"{value:.3f}", classes="num")
            tag("td", f"{'qualifies' if one.qualified else 'does not qualify'}: {one.why}")

    def _ask(self, found: Result, step: int) -> None:
        title = f"Choose the checkpoint at step {step}"
        seen = found.options.checkpoint(found.options.row(step)).sha256
        ask_reason(self._reason, title, "Choose it", partial(self._choose, step, seen))

    async def _choose(self, step: int, seen: str, why: str) -> None:
        """Choose the checkpoint on the page, unless a later run has replaced it."""
        await self._call("choose", self._name, str(step), f"--why={why}", f"--if-weights={seen}")

    async def _choose_by_rule(self) -> None:
        await self._call("choose", self._name, "--by-rule")

    async def _call(self, *words: str) -> None:
        try:
            done: dict[str, Any] = await commands.call(self._site, *words)
        finally:
            await self._draw()
        chosen = done["chosen"]
        ui.run_javascript("window.scrollTo({top: 0})")
        say(f"Chosen: {chosen['name']}." if chosen else "The rule selects again.")
