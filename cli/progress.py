"""Shows the progress of a run: live bars in a terminal, plain lines in a file."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from dreambooth_core import ports
from tasks.progress import StageTime, spell

_LINE_EVERY_S = 5.0


class TerminalReporter:
    """A Reporter with one bar per stage; in a file, a line every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._throttle = ports.Throttle(_LINE_EVERY_S)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def progress(self, stage: str) -> ports.Progress:
        """The Progress of a stage, with its own bar."""

        def show(done: int, total: int, text: str = "") -> None:
            if not self._console.is_terminal:
                if self._throttle.is_due():
                    self._console.print(f"  {stage} {done}/{total} {text}".rstrip())
                return
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, text="")
            self._bars.update(self._tasks[stage], completed=done, total=total, text=text)

        return show

    def finished(self, time: StageTime) -> None:
        """Replace the bar by a permanent line."""
        for name in [n for n in self._tasks if n == time.stage or time.stage == "evaluate"]:
            self._bars.remove_task(self._tasks.pop(name))
        self._console.print(f"{time.stage:<13} {spell(time)}")
