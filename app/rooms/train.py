"""The room Train: start, watch, save, stop and continue the run of a subject."""

from __future__ import annotations

import re
import shutil
from typing import Any

from nicegui import run, ui

from app import commands, pictures, runs, watching
from app.layout import button, link, problem, room, say, tag
from app.runs import Status
from app.site import Site
from app.watching import Training
from dreambooth_core import config, environment
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.pipeline.live_scores import ScoredRow
from dreambooth_core.records import SCORES, STEP_0
from dreambooth_core.workspace import STAGES

_POLL_S = 1.0
_GIB = 2**30
_SAMPLES = 6

_AHEAD = "Each checkpoint appears here as soon as it is scored."
_SCORED_LATER = "The checkpoints were scored after the training: the room Result shows them."

_SINCE = re.compile(r"since \S+ (\d\d:\d\d)")

_PHASES = {
    "idle": "No run is at work.",
    "queued": "Waiting in the queue.",
    "starting": "Starting.",
    "stopping": "Stopping. The run saves its work first.",
}


def add_to(site: Site) -> None:
    """Add the pages."""

    @ui.page("/train")
    def all_subjects() -> None:
        with room(site, "Train", current="/train"):
            try:
                names = list(config.load_settings(site.workspace.params).subjects)
            except DreamBoothError as error:
                problem(error)
                return
            _Overview(site, names)

    @ui.page("/train/{name}")
    def one(name: str) -> None:
        with room(site, name, current="/train", eyebrow="Train"):
            try:
                config.load_view(site.workspace, name)
            except DreamBoothError as error:
                problem(error)
                return
            _Watch(site, name)


class _Overview:
    """A row per subject: what its run does now."""

    def __init__(self, site: Site, names: list[str]) -> None:
        self._site = site
        self._cells: dict[str, Any] = {}
        if not names:
            tag("p", "No subjects yet: add one from its photos.", classes="lead")
            link("Add a subject", "/", classes="act main")
            return
        with tag("div", classes="scroll", tabindex="0"), tag("table"):
            with tag("thead"), tag("tr"):
                for title in ("Subject", "State", "Selected"):
                    tag("th", title, scope="col")
            with tag("tbody"):
                for name in names:
                    with tag("tr"):
                        with tag("th", scope="row"):
                            link(name, f"/train/{name}")
                        self._cells[name] = tag("td", "")
                        tag("td", watching.selected(site, name) or "none yet")
        ui.timer(2 * _POLL_S, self._poll)

    async def _poll(self) -> None:
        found = await run.io_bound(self._look) or {}
        for name, text in found.items():
            if self._cells[name].text != text:
                self._cells[name].set_text(text)

    def _look(self) -> dict[str, str]:
        return {
            name: _sentence(self._site, name, runs.status(self._site, name)) for name in self._cells
        }


def _sentence(site: Site, name: str, status: Status) -> str:
    """The present work of the run, in words."""
    if status.phase == "queued" and status.ahead is not None:
        return f"Waiting in the queue for the run of {status.ahead}."
    if status.phase != "running":
        return _PHASES[status.phase]
    stage = watching.stage_now(site, name)
    return f"Running: {stage}." if stage else "Running."


class _Watch:
    """The page of one subject: it reads the files of the run every second."""

    def __init__(self, site: Site, name: str) -> None:
        self._site, self._name = site, name
        self._drawn: tuple[int, int] | None = None
        self._shown_facts: list[str] = []
        self._shown_stages: list[tuple[str, bool, bool]] = []
        self._rows: dict[str, Any] = {}
        self._phase: str | None = None
        self._said = tag("p", "", classes="lead", role="status")
        self._bar = tag("progress", max=1, value=0, aria_label="steps done", classes="steps")
        with tag("div", classes="acts"):
            self._start = button("Start training", self._begin, classes="main")
            self._save = button("Save now", self._save_now)
            self._stop = button("Stop", self._end)
            self._page = link(
                "Open the report", f"/files/work/{name}/report/index.html", classes="act"
            )
            self._page.props["target"] = "_blank"
        self._failure = tag("div")
        self._facts = tag("dl", classes="facts")
        with tag("section"):
            tag("h2", "Stages")
            self._stages = tag("ol", classes="stages")
        with tag("section"):
            tag("h2", "Loss")
            self._curve = ui.html("", sanitize=False).classes("card wide curve")
        with tag("section"):
            tag("h2", "Checkpoints")
            self._hint = tag("p", "", classes="small")
            self._list = tag("div", classes="checkpoints")
        self._timer = ui.timer(_POLL_S, self._poll)

    async def _begin(self) -> None:
        say(await run.io_bound(runs.start, self._site, self._name) or "")
        self._failure.clear()
        await self._poll()

    async def _save_now(self) -> None:
        saved = await commands.call(self._site, "save", self._name)
        say(f"Saved at step {saved['step']}. The training continues.")

    async def _end(self) -> None:
        say(await run.io_bound(runs.stop, self._site, self._name) or "")
        await self._poll()

    async def _poll(self) -> None:
        found = await run.io_bound(_look, self._site, self._name)
        if found is None or self._said.is_deleted:
            return
        status, training = found["status"], found["training"]
        _set(self._said, found["sentence"])
        self._show_buttons(status.phase, found)
        stage = found["stage"] if status.phase == "running" else None
        self._save.set_visibility(bool(stage and stage.startswith("train ")))
        self._show_facts(found["facts"])
        if training is not None:
            self._bar.props["value"] = training.step / training.total
            self._bar.update()
        self._show_stages(found, is_running=status.phase == "running")
        if training is not None and training.key != self._drawn:
            self._show_training(training)

    def _show_buttons(self, phase: str, found: dict[str, Any]) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        is_idle = phase == "idle"
        begun = found["training"] is not None and "train" not in found["stages"]
        self._start.set_text("Continue training" if begun else "Start training")
        self._start.set_visibility(is_idle)
        self._stop.set_visibility(not is_idle)
        self._page.set_visibility("report" in found["stages"])
        self._hint.set_text(_SCORED_LATER if is_idle and "evaluate" in found["stages"] else _AHEAD)
        self._failure.clear()
        if is_idle and found["error"]:
            with self._failure:
                problem(found["error"])

    def _show_facts(self, facts: dict[str, str]) -> None:
        texts = [text for pair in facts.items() for text in pair]
        if self._shown_facts == texts:
            return
        self._shown_facts = texts
        self._facts.clear()
        with self._facts:
            for name, value in facts.items():
                with tag("div"):
                    tag("dt", name)
                    tag("dd", value)

    def _show_stages(self, found: dict[str, Any], *, is_running: bool) -> None:
        done, now = found["stages"], found["stage"] if is_running else None
        present = next((stage for stage in STAGES if now and now.startswith(stage)), None)
        # An earlier run may have left outputs of the stages ahead.
        ahead = STAGES[STAGES.index(present) + 1 :] if present else ()
        state = [
            (stage, stage in done and stage not in ahead, stage == present) for stage in STAGES
        ]
        if self._shown_stages == state:
            return
        self._shown_stages = state
        self._stages.clear()
        with self._stages:
            for stage, is_done, is_now in state:
                classes = "now" if is_now else "ready" if is_done else ""
                words = "now" if is_now else "done" if is_done else "to do"
                with tag("li", classes=classes):
                    tag("span", stage)
                    tag("span", words, classes="small")

    def _show_training(self, training: Training) -> None:
        from dreambooth_core.report import curves

        self._drawn = training.key
        if len(training.losses) > 1:
            points = curves.smooth(training.losses)
            label = f"training loss, {points[-1].value:.4f} at step {points[-1].step}"
            self._curve.set_content(str(curves.line_chart(points, label=label)))
        names = [each.row.name for each in training.scored]
        if any(name not in names for name in self._rows):
            self._list.clear()  # another training
            self._rows.clear()
        for each in training.scored:
            if each.row.name not in self._rows:
                with self._list:
                    self._rows[each.row.name] = _show_checkpoint(self._site, each)
        self._hint.set_visibility(not training.scored)


def _show_checkpoint(site: Site, scored: ScoredRow) -> Any:
    row = scored.row
    title = "Before training" if row.name == STEP_0 else row.name
    with tag("article", classes="checkpoint") as card:
        tag("h3", title)
        with tag("dl", classes="facts scores"):
            for key, mean in row.means().items():
                with tag("div"):
                    tag("dt", SCORES[key])
                    tag("dd", f"{mean:.3f}")
        with tag("div", classes="strip"):
            for image, prompt in list(zip(scored.images, scored.prompts, strict=True))[:_SAMPLES]:
                with tag("figure"):
                    source = pictures.url_of(site, site.workspace.root / image)
                    tag("img", src=source, alt=f"{title}: {prompt}", loading="lazy")
                    tag("figcaption", prompt, classes="small")
    return card


def _look(site: Site, name: str) -> dict[str, Any]:
    status = runs.status(site, name)
    training = watching.training_of(site, name)
    stage = watching.stage_now(site, name)
    is_running = status.phase == "running"
    sentence = _sentence(site, name, status)
    if status.phase == "idle":
        best = watching.selected(site, name)
        sentence = f"Selected: {best}." if best else sentence
    return {
        "status": status,
        "training": training,
        "stage": stage,
        "sentence": sentence,
        "stages": watching.finished_stages(site, name),
        "error": watching.error_of(site, name),
        "facts": _facts(site, name, training if is_running else None, status),
    }


def _facts(site: Site, name: str, training: Training | None, status: Status) -> dict[str, str]:
    facts: dict[str, str] = {}
    if training is not None:
        facts["Step"] = f"{training.step} of {training.total}"
        if training.rate is not None and training.left_s is not None:
            facts["Speed"] = f"{training.rate:.1f} steps/s"
            facts["Left in training"] = f"{training.left_s // 60} min {training.left_s % 60:02d} s"
    if status.holder is not None:
        facts["Memory of the run"] = f"{runs.memory_of(site, name) / _GIB:.1f} GiB"
        since = _SINCE.search(status.holder)
        facts["At work"] = f"since {since[1]}" if since else status.holder
    facts["Free memory"] = f"{environment.available_bytes() / _GIB:.0f} GiB"
    facts["Free disk"] = f"{shutil.disk_usage(site.workspace.root).free / _GIB:.0f} GiB"
    return facts


def _set(element: Any, text: str) -> None:
    if element.text != text:
        element.set_text(text)
