"""The room Settings: a form of params.yaml, the presets, and the plan of a run."""

from __future__ import annotations

import asyncio
import functools
import json
import operator
from typing import Any

from nicegui import run, ui

from app import commands
from app.layout import Field, button, checkbox, problem, room, say, tag
from app.parts import Select, facts
from app.setting_fields import SettingField
from app.site import Site
from dreambooth_core import config
from dreambooth_core.config import OVERRIDABLE, reference
from dreambooth_core.errors import DreamBoothError, Problem
from dreambooth_core.workspace import STAGES

_BASIC = (
    *("base_model.pretrained_model_name_or_path", "data.resolution", "data.captions"),
    *("data.masks", "prior.num_class_images", "train.method", "train.max_train_steps"),
    *("train.checkpointing_steps", "train.learning_rate", "train.train_batch_size"),
    *("train.mixed_precision", "train.lora.rank", "train.lora.learning_rate", "evaluate.suite"),
    "select.early_stopping_patience",
)
"""The settings that a first user may want to change."""

_ELSEWHERE = ("subjects", "versions")
_QUIET_S = 0.8
_GIB = 1024


def add_to(site: Site) -> None:
    """Add the page."""

    @ui.page("/settings")
    async def settings() -> None:
        with room(site, "Settings", current="/settings"):
            try:
                raw = config.read_yaml(site.workspace.params)
                subjects = list(config.load_settings(site.workspace.params).subjects)
            except DreamBoothError as error:
                problem(error)
                return
            with tag("div", classes="beside"):
                with tag("div"):
                    form = _Form(site, config.flatten(raw))
                with tag("aside", aria_label="Plan"):
                    form.plan = _Plan(site, subjects)
            ui.timer(0.1, form.plan.show, once=True)


class _Form:
    """The fields. Changes wait for Save; the file's own check marks mistakes at once."""

    def __init__(self, site: Site, values: dict[str, Any]) -> None:
        self._site, self._changes = site, dict[str, Any]()
        self._word, self._shows_all = "", False
        self.plan: _Plan | None = None
        tag("p", "Settings of all subjects, in params.yaml.", classes="lead")
        with tag("div", classes="search"):
            Field("Search", on_change=self._search, hint="A key or a word, such as noise.")
        checkbox("Show every setting", lambda is_on: self._show_all(is_on=is_on))
        self._problems = tag("div")
        self._fields: dict[str, SettingField] = {}
        self._sections: dict[str, Any] = {}
        for name, meaning in reference.section_meanings().items():
            if name not in _ELSEWHERE:
                self._show_section(name, meaning, values)
        with tag("div", classes="savebar") as self._bar:
            self._count = tag("p", "", role="status")
            with tag("div", classes="acts"):
                button("Save", self._save, classes="main")
                button("Undo", ui.navigate.reload)
        self._bar.set_visibility(False)
        self._filter()

    def _show_section(self, name: str, meaning: str, values: dict[str, Any]) -> None:
        entries = [each for each in reference.entries() if each.section == name]
        with tag("section") as box:
            tag("h2", name)
            tag("p", meaning, classes="small")
            for entry in entries:
                is_open = _parent(entry.key) in {_parent(key) for key in values}
                if entry.is_section:
                    is_on = any(key.startswith(f"{entry.key}.") for key in values)
                    self._fields[entry.key] = SettingField(entry, is_on, self._switch)
                elif entry.key in values or (entry.has_default and is_open):
                    value = values.get(entry.key, entry.default)
                    self._fields[entry.key] = SettingField(entry, value, self._change)
        self._sections[name] = box

    async def _search(self, word: str) -> None:
        self._word = word.strip()
        self._filter()

    def _show_all(self, *, is_on: bool) -> None:
        self._shows_all = is_on
        self._filter()

    def _filter(self) -> None:
        """Show the matches of the search, else the basic settings or all."""
        shown = set[str]()
        for key, field in self._fields.items():
            is_wanted = (
                field.matches(self._word) if self._word else self._shows_all or key in _BASIC
            )
            is_shown = is_wanted or key in self._changes
            field.box.set_visibility(is_shown)
            shown |= {field.entry.section} if is_shown else set()
        for name, box in self._sections.items():
            box.set_visibility(name in shown)

    async def _switch(self, key: str, value: Any) -> None:
        """Turn a section on, with the values of a preset, or off."""
        inner = f"{key}."
        self._changes = {k: v for k, v in self._changes.items() if not k.startswith(inner)}
        for name, field in self._fields.items():
            if name.startswith(inner):
                field.enable(is_enabled=value is not None)
        section = await run.io_bound(_shipped, self._site, key) if value else None
        await self._change(key, section)

    async def _change(self, key: str, value: Any) -> None:
        self._changes[key] = value
        found = await run.io_bound(_problems, self._site, self._changes) or []
        self._show(found)
        if self.plan is not None and not found:
            await self.plan.show(self._changes)

    def _show(self, found: list[Problem]) -> None:
        texts: dict[str, str] = {}
        for each in found:
            texts.setdefault(each.key or "", each.text)
        for key, field in self._fields.items():
            field.show_error(texts.get(key))
        self._problems.clear()
        with self._problems:
            for each in found:
                if each.key not in self._fields:
                    problem(str(each))
        count = len(self._changes)
        self._bar.set_visibility(True)
        wrong = f", {len(found)} wrong" if found else ""
        self._count.set_text(f"{count} change{'s' if count > 1 else ''} not saved{wrong}")
        self._filter()

    async def _save(self) -> None:
        found = await run.io_bound(_problems, self._site, self._changes) or []
        if found:
            self._show(found)
            say("Nothing is saved: correct the marked settings first.", is_problem=True)
            return
        changes = dict(self._changes)
        await run.io_bound(_save, self._site, changes)
        if any(self._fields[key].entry.is_section for key in changes):
            ui.navigate.reload()  # with the fields of the section, or without
            return
        self._changes.clear()
        self._bar.set_visibility(False)
        say("Saved in params.yaml.")
        if self.plan is not None:
            await self.plan.show()


def _parent(key: str) -> str:
    return key.rpartition(".")[0]


def _shipped(site: Site, key: str) -> dict[str, Any]:
    """A section's values in the preset of the present base model, else in the first that has it."""
    from cli import presets

    def base_of(settings: Any) -> Any:
        return settings["base_model"]["pretrained_model_name_or_path"]

    present = base_of(config.read_yaml(site.workspace.params))
    texts = [presets.read(site.workspace, name) for name in presets.list_all(site.workspace)]
    known = sorted(map(config.parse_yaml, texts), key=lambda each: base_of(each) != present)
    sections = (functools.reduce(operator.getitem, key.split("."), each) for each in known)
    return next(section for section in sections if section)


def _problems(site: Site, changes: dict[str, Any]) -> list[Problem]:
    from cli import settings_file

    return settings_file.problems_of(site.workspace, changes)


def _save(site: Site, changes: dict[str, Any]) -> None:
    from cli import settings_file

    settings_file.save(site.workspace, changes)


class _Plan:
    """What `dreambooth plan` predicts with the settings on the page."""

    def __init__(self, site: Site, subjects: list[str]) -> None:
        self._site, self._subject = site, next(iter(subjects), None)
        self._asked = 0
        self._changes: dict[str, Any] = {}
        tag("h2", "Plan")
        if self._subject is None:
            tag("p", "Add a subject to see which stages a run would have, and whether it fits.")
        if len(subjects) > 1:
            names = {name: name for name in subjects}
            Select("Subject", names, subjects[0], on_change=self._choose)
        self._state = tag("p", "", classes="small", role="status")
        self._box = tag("div")

    async def _choose(self, subject: str) -> None:
        self._subject = subject
        await self.show(self._changes)

    async def show(self, changes: dict[str, Any] | None = None) -> None:
        """Plan anew with unsaved changes, once they have settled."""
        if self._subject is None:
            return
        self._changes = dict(changes or {})
        self._asked += 1
        mine = self._asked
        self._state.set_text("Planning.")
        await asyncio.sleep(_QUIET_S)
        if mine != self._asked:
            return
        known = {k: v for k, v in self._changes.items() if k.partition(".")[0] in OVERRIDABLE}
        options = [f"--set={key}={json.dumps(value)}" for key, value in known.items()]
        try:
            found = await commands.call(self._site, "plan", self._subject, *options)
        except DreamBoothError as error:
            found = error
        if mine != self._asked or self._box.is_deleted:
            return
        rest = [key for key in self._changes if key not in known]
        self._state.set_text(f"Without {', '.join(rest)}, until it is saved." if rest else "")
        self._box.clear()
        with self._box:
            if isinstance(found, DreamBoothError):
                problem(found)
            else:
                _show_plan(self._site, found)


def _show_plan(site: Site, plan: dict[str, Any]) -> None:
    memory, fits = plan["memory"], plan["memory"]["fits"]
    verdict = {True: "It fits.", False: "It does not fit."}.get(fits, "Whether it fits is unknown.")
    tag("p", verdict, classes="good" if fits else "bad" if fits is False else "")
    peak, runs = memory["peak_mib"], [each for each in STAGES if plan["stages"][each] == "run"]
    facts(
        [
            ("Device", f"{plan['device']}, {memory['have_mib'] / _GIB:.1f} GiB"),
            ("Memory", "not predicted" if peak is None else f"{peak / _GIB:.2f} GiB in training"),
            ("Time", _time_of(plan["time"])),
            ("Runs again", ", ".join(runs) or "nothing: all is up to date"),
        ]
    )
    for warning in plan["warnings"]:
        with tag("div", classes="notice"):
            tag("p", warning)
    tag("h3", "Presets for this machine")
    own = plan["recommended"] or {"name": "", "why": "No preset is known to fit this machine."}
    tag("p", f"{own['name']}: {own['why']}".removeprefix(": "), classes="small")
    with tag("ul", classes="presets"):
        for preset in sorted(plan["presets"], key=lambda each: each["name"] != own["name"]):
            _show_preset(site, preset, is_own=preset["name"] == own["name"])


def _time_of(time: dict[str, Any]) -> str:
    total = time["total_seconds"]
    if not time["stage_seconds"]:
        return ""  # none of the long stages is ahead
    if total is None:
        return "not measured on this device"
    minutes, seconds = divmod(round(total), 60)
    return f"about {minutes} min {seconds:02d} s, as on {time['measured_on']}"


def _show_preset(site: Site, preset: dict[str, Any], *, is_own: bool) -> None:
    fits = {True: "fits", False: "does not fit", None: "unknown"}[preset["fits"]]
    peak = preset["peak_mib"]
    size = "" if peak is None else f", {peak / _GIB:.1f} GiB"

    async def use() -> None:
        await commands.call(site, "preset", "use", preset["name"])
        ui.navigate.reload()

    with tag("li", classes="own" if is_own else ""):
        with tag("div"):
            tag("strong", preset["name"])
            if is_own:
                tag("p", "The one for this machine", classes="good")
            tag("p", f"{preset['base_model']}: {fits}{size}", classes="small")
        button("Use", use, classes="small-act", aria_label=f"Use the preset {preset['name']}")
