"""The room Registry: the versions of a subject, any two side by side, promotion and rollback."""

from __future__ import annotations

from functools import partial
from typing import Any

from nicegui import run, ui

from app import pictures, versions
from app.layout import button, link, say, tag, unbroken
from app.parts import Select, add_pages, ask_reason, facts, reading, redrawn
from app.residents import Residents, residents_of
from app.site import Site
from app.versions import CHAMPION, Versions

_LINEAGE = {
    "checkpoint": "checkpoint",
    "sha256": "weights",
    "data_sha256": "photos",
    "base_model": "base model",
    "base_model_sha256": "weights of the base model",
    "settings_sha256": "settings",
    "git_commit": "code (git)",
    "init_from": "started from",
    "dreambooth.fingerprint": "fingerprint",
    "prefect.flow_run": "Prefect run",
}
_DECISIONS = {
    "chosen": "Chosen by hand",
    "promoted": "Promoted",
    "restored": "Restored",
    "rolled_back": "Rolled back",
}
_PASSED = "passed"


def add_to(site: Site) -> None:
    """Add the pages."""
    residents = residents_of(site)
    add_pages(site, "/registry", lambda name: _Room(site, residents, name).show())


class _Room:
    def __init__(self, site: Site, residents: Residents, name: str) -> None:
        self._site, self._registry, self._name = site, residents.registry, name
        self._champion: int | None = None

    def show(self) -> None:
        self._place = reading()
        ui.timer(0.05, self._draw, once=True)

    async def _draw(self) -> None:
        found = await versions.shown_in(self._place, self._registry, self._name)
        if found is None:
            return
        pages = await run.io_bound(self._pages, found) or {}
        with redrawn(self._place):
            self._show_state(found)
            with tag("div", classes="versions"):
                for row in reversed(found.rows):
                    self._show_version(row, pages.get(row["version"]))
            if len(found.rows) > 1:
                _Comparison(found)

    def _pages(self, found: Versions) -> dict[int, str]:
        folder = self._site.workspace.places(self._name).version_pages
        paths = {row["version"]: folder / f"{row['version']}.html" for row in found.rows}
        return {n: pictures.url_of(self._site, path) for n, path in paths.items() if path.is_file()}

    def _show_state(self, found: Versions) -> None:
        champion = self._champion = found.with_alias(CHAMPION)
        text = f"Version {champion} is the champion: it is in use." if champion else "No champion."
        tag("p", text, classes="lead")
        self._reason = tag("div")
        earlier = found.earlier_champion
        if champion is not None and earlier is not None:
            title = f"Put version {earlier} back in use"
            ask = partial(ask_reason, self._reason, title, "Roll back", self._roll_back)
            with tag("div", classes="acts"):
                button(f"Roll back to version {earlier}", ask)

    def _show_version(self, row: dict[str, Any], page: str | None) -> None:
        is_champion = CHAMPION in row["aliases"]
        classes = "version champion" if is_champion else "version"
        with tag("article", classes=classes, aria_label=versions.title_of(row)):
            with tag("h2"):
                tag("span", f"Version {row['version']}")
                for alias in row["aliases"]:
                    tag("span", alias, classes="badge good" if alias == CHAMPION else "badge plain")
                if not row["qualified"]:
                    tag("span", "does not qualify", classes="badge bad")
            _show_scores(row)
            if row["verdict"]:
                tag("p", unbroken(row["verdict"]["why"]))
            for text in (*_decisions(row["tags"]), *_votes(row)):
                tag("p", unbroken(text), classes="small")
            with tag("details"):
                tag("summary", "Lineage")
                facts(_lineage(row))
            self._show_actions(row, page, is_champion=is_champion)

    def _show_actions(self, row: dict[str, Any], page: str | None, *, is_champion: bool) -> None:
        number = row["version"]
        acts, reason = tag("div", classes="acts"), tag("div")
        with acts:
            if not is_champion and row["tags"].get("parity") == _PASSED:
                title, act = f"Make version {number} the champion", partial(self._promote, number)
                ask = partial(ask_reason, reason, title, "Promote", act)
                button("Promote", ask, aria_label=f"Promote version {number}")
            if page is not None:
                shown = link("Page of its run", page, classes="act")
                shown.props["target"] = "_blank"
                shown.props["aria-label"] = f"Page of the run of version {number}"

    async def _promote(self, number: int, why: str) -> None:
        await self._call("promote", self._name, str(number), f"--why={why}")

    async def _roll_back(self, why: str) -> None:
        await self._call("rollback", self._name, f"--why={why}")

    async def _call(self, *words: str) -> None:
        """Change the champion, unless it is no longer the one on the page."""
        seen = [] if self._champion is None else [f"--if-champion={self._champion}"]
        try:
            done = await self._registry.call(*words, *seen)
        finally:
            await self._draw()
        ui.run_javascript("window.scrollTo({top: 0})")
        say(f"Version {done['champion']} is the champion now.")


def _show_scores(row: dict[str, Any]) -> None:
    with tag("dl", classes="scores"):
        for title, value, bounds in versions.scores_of(row):
            with tag("div"):
                tag("dt", title)
                with tag("dd", value):
                    tag("span", bounds)


def _decisions(tags: dict[str, str]) -> list[str]:
    """Who decided what about a version, when and why, newest first."""
    made = [(tags[f"{key}.when"], key) for key in _DECISIONS if f"{key}.when" in tags]
    return [
        f"{_DECISIONS[key]} by {tags.get(f'{key}.who', 'unknown')}, {when.replace('T', ' ')[:16]}: "
        f"{tags.get(f'{key}.why', '')}"
        for when, key in sorted(made, reverse=True)
    ]


def _votes(row: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for other, told in row["votes"].items():
        ties = f", {told['ties']} ties" if told["ties"] else ""
        decided = told["wins"] + told["losses"]
        found.append(f"Votes: won {told['wins']} of {decided} against version {other}{ties}.")
    return found


def _lineage(row: dict[str, Any]) -> list[tuple[str, str]]:
    tags = row["tags"]
    hashes = [(key.removeprefix("dvc.") + " (DVC)", text) for key, text in sorted(tags.items())
              if key.startswith("dvc.")]  # fmt: skip
    named = [(title, tags.get(key, "")) for key, title in _LINEAGE.items()]
    return [*named, *hashes, ("MLflow run", row["run_id"] or "")]


class _Comparison:
    """Any two versions side by side."""

    def __init__(self, found: Versions) -> None:
        self._found = found
        newest, other = found.rows[-1]["version"], found.rows[-2]["version"]
        first, second = found.pair or (newest, other)
        with tag("section"):
            tag("h2", "Side by side")
            with tag("div", classes="tools"):
                redraw = lambda _value: self._draw()  # noqa: E731 - a handler
                self._first = Select("First version", found.titles, str(first), on_change=redraw)
                self._second = Select("Second version", found.titles, str(second), on_change=redraw)
            self._table = tag("div", classes="scroll", tabindex="0", role="region",
                              aria_label="two versions side by side")  # fmt: skip
        self._draw()

    def _draw(self) -> None:
        from cli.screens import differing

        rows = [self._found.row(int(each.value)) for each in (self._first, self._second)]
        scores = [{title: f"{value} ({bounds})" for title, value, bounds in versions.scores_of(row)}
                  for row in rows]  # fmt: skip
        lines = {title: [s.get(title, "") for s in scores] for title in {**scores[0], **scores[1]}}
        lines |= {"checkpoint": [row["tags"].get("checkpoint", "") for row in rows]}
        lines |= {"photos": [row["tags"].get("data_sha256", "")[:16] for row in rows]}
        lines |= {key: [_spell(v) for v in values] for key, values in differing(rows).items()}
        with redrawn(self._table), tag("table"):
            with tag("thead"), tag("tr"):
                tag("td", "")
                for row in rows:
                    tag("th", versions.title_of(row), scope="col")
            with tag("tbody"):
                for title, values in lines.items():
                    with tag("tr"):
                        tag("th", title, scope="row")
                        for value in values:
                            tag("td", value)


def _spell(value: Any) -> str:
    return "" if value is None else str(value)
