"""The room Judge: blind pairs of pictures and votes, and a playground for any version."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import run, ui

from app import images, results, versions
from app.layout import Field, button, link, problem, say, tag, unbroken
from app.parts import add_pages, focus, reading, redrawn
from app.residents import Residents, residents_of
from app.rooms.playground import Playground
from app.site import Site
from app.versions import Versions
from dreambooth_core.errors import DreamBoothError

_SEEDS = 1_000_000


def add_to(site: Site) -> None:
    """Add the pages."""
    residents = residents_of(site)
    add_pages(site, "/judge", lambda name: _Room(site, residents, name).show())


@dataclass(frozen=True)
class _Pair:
    """Two pictures of one prompt and seed; the versions in the order of their places."""

    prompt: str
    seed: int
    sides: tuple[int, int]
    files: tuple[Path, ...]
    challenger: int
    champion: int

    def winner(self, side: str) -> str:
        """The role of the winner: challenger, champion or tie."""
        if side == "tie":
            return side
        won = self.sides[0 if side == "left" else 1]
        return "challenger" if won == self.challenger else "champion"


class _Room:
    def __init__(self, site: Site, residents: Residents, name: str) -> None:
        self._site, self._residents, self._name = site, residents, name
        self._pair: _Pair | None = None

    def show(self) -> None:
        self._place = reading()
        ui.timer(0.05, self._fill, once=True)

    async def _fill(self) -> None:
        prompts = await run.io_bound(results.suite_prompts, self._site, self._name)
        found = await versions.shown_in(self._place, self._residents.registry, self._name)
        if found is None:
            return
        self._versions, self._prompts = found, prompts or []
        with redrawn(self._place):
            self._show_duel(found)
            self._playground = Playground(
                self._site, self._residents.drawing, self._name, found, self._prompts
            )
        await self._playground.refresh()
        await self._residents.drawing.warm_up()

    def _show_duel(self, found: Versions) -> None:
        tag(
            "p",
            "Two versions draw the same prompt from the same seed. Which picture is better? You "
            "see which version drew it after your vote.",
            classes="lead",
        )
        if found.pair is None:
            with tag("div", classes="notice"):
                tag("p", "There are no two versions to compare yet, or none is the champion.")
                link("Versions", f"/registry/{self._name}", classes="act")
            return
        self._prompt = Field(
            "Prompt", "", on_change=None, hint="Empty: a prompt of the suite, at random."
        )
        self._duel = tag("div")
        self._summary = tag("div", role="status")
        with self._duel, tag("div", classes="waiting"):
            self._start = button("Show the first pair", self._next, classes="main")
        self._show_preference(*found.pair, _votes(found.row(found.pair[0]), found.pair[1]))

    async def _next(self) -> None:
        """Draw a new pair, in the order in which it is shown: the files do not tell."""
        pair = self._versions.pair
        if pair is None:
            return
        with redrawn(self._duel):
            tag("p", "Drawing two pictures.", classes="waiting", role="status")
        sides = pair if secrets.randbelow(2) else (pair[1], pair[0])
        seed, prompt = secrets.randbelow(_SEEDS), self._prompt.value.strip()
        prompt = prompt or secrets.choice(self._prompts or [self._default_prompt()])
        try:
            files = [await self._draw(number, prompt, seed) for number in sides]
            shown = [await run.io_bound(images.data_url, path) or "" for path in files]
        except DreamBoothError as error:
            with redrawn(self._duel):
                problem(error)
                button("Try again", self._next, classes="main")
            return
        if self._duel.is_deleted:
            return
        self._pair = _Pair(prompt, seed, sides, tuple(files), *pair)
        self._show_pair(self._pair, shown)

    def _default_prompt(self) -> str:
        words = self._versions.rows[-1]["settings"].get("subject", {})
        return f"a photo of {words.get('identifier', 'sks')} {words.get('class_noun', '')}".strip()

    async def _draw(self, number: int, prompt: str, seed: int) -> Path:
        out = results.pictures_folder(self._site, self._name)
        made = await self._residents.drawing.call(
            *("generate", "--model", versions.uri_of(self._versions.row(number))),
            *(f"--prompt={prompt}", "--seed", str(seed), "--num", "1", "--batch-size", "1"),
            *("--no-sheet", "--out", str(out)),
        )
        drawn = Path(made["images"][0])
        results.undecided.add(drawn)
        return drawn

    def _show_pair(self, pair: _Pair, shown: list[str]) -> None:
        with redrawn(self._duel):
            tag("p", pair.prompt, classes="asked")
            with tag("div", data_judge="pair"):
                with tag(
                    "div", classes="duel", tabindex="-1", role="group",
                    aria_label="two pictures of the same prompt",
                ) as both:  # fmt: skip
                    self._figures: list[tuple[Any, Any]] = []
                    for side, url in zip(("left", "right"), shown, strict=True):
                        with tag("figure") as figure:
                            tag("img", src=url, alt=f"the {side} picture of: {pair.prompt}")
                            self._figures.append((figure, tag("figcaption", "")))
                self._show_buttons()
        focus(both)

    def _show_buttons(self) -> None:
        with tag("div", classes="votes") as self._votes:
            for side, text, key in (
                ("left", "Left is better", "←"),
                ("tie", "Tie", "↓"),
                ("right", "Right is better", "→"),
            ):
                act = button("", partial(self._vote, side), classes=side, data_vote=side)
                with act:
                    tag("span", text)
                    tag("kbd", key, aria_hidden="true")

    async def _vote(self, side: str) -> None:
        pair, self._pair = self._pair, None
        if pair is None:  # the vote of a pair counts once
            return
        try:
            told = await self._residents.registry.call(
                *("vote", self._name, pair.winner(side)),
                *("--challenger", str(pair.challenger), "--champion", str(pair.champion)),
                *(f"--prompt={pair.prompt}", "--seed", str(pair.seed)),
            )
        except DreamBoothError:
            self._pair = pair
            raise
        results.undecided.difference_update(pair.files)
        self._reveal(pair, side)
        self._show_preference(pair.challenger, pair.champion, told["preference"])
        await self._playground.refresh()

    def _reveal(self, pair: _Pair, side: str) -> None:
        names = {pair.challenger: "challenger", pair.champion: "champion"}
        sides = zip(("left", "right"), pair.sides, self._figures, strict=True)
        for place, number, (figure, caption) in sides:
            caption.set_text(f"version {number}, {names[number]}")
            if place == side:
                figure.classes("won")
        with redrawn(self._votes):
            after = button("Next pair", self._next, classes="main")
        focus(after)
        say(f"Your vote is recorded: {pair.winner(side)}.")

    def _show_preference(self, challenger: int, champion: int, told: dict[str, Any]) -> None:
        wins, losses, ties, share = (told[k] for k in ("wins", "losses", "ties", "share"))
        with redrawn(self._summary), tag("section"):
            tag("h2", "Votes so far")
            if share is None:
                tag("p", f"No vote prefers one side yet; {ties} ties." if ties else "No votes yet.")
                return
            tag(
                "p",
                f"Version {challenger} won {wins} of {wins + losses} votes against version "
                f"{champion}, the champion{f'; {ties} ties count for neither' if ties else ''}.",
            )
            _show_share(share)
            low, high = (f"{100 * share[key]:.0f} %" for key in ("low", "high"))
            interval = f"95 % interval of its share: {low} to {high}."
            tag("p", unbroken(f"{interval} {_meaning(share)}"))


def _meaning(share: dict[str, float]) -> str:
    if share["low"] > 0.5:
        return "People prefer it to the champion."
    if share["high"] < 0.5:
        return "People prefer the champion."
    return "The votes do not decide yet: the interval includes 50 %."


def _show_share(share: dict[str, float]) -> None:
    low, high, mean = (100 * share[key] for key in ("low", "high", "mean"))
    with tag("div", classes="share", aria_hidden="true"):
        tag("span", classes="range", style=f"left: {low:.1f}%; width: {high - low:.1f}%")
        tag("span", classes="half")
        tag("span", classes="point", style=f"left: {mean:.1f}%")


def _votes(row: dict[str, Any], champion: int) -> dict[str, Any]:
    none = {"wins": 0, "losses": 0, "ties": 0, "share": None}
    return row["votes"].get(str(champion), none)
