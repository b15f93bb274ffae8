"""A user without a mouse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_MOST_TABS = 250
_WAIT_MS = 120_000


class Keyboard:
    """Moves with Tab, presses with Enter, and types, as far as a page allows it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self._choosers: list[Any] = []
        page.on("filechooser", self._keep)

    def _keep(self, chooser: Any) -> None:
        self._choosers.append(chooser)

    def reach(self, control: Any) -> None:
        """Press Tab until a control has the focus, and see that the focus is marked."""
        control.wait_for(state="attached", timeout=_WAIT_MS)
        for _ in range(_MOST_TABS):
            if control.evaluate("(it) => it === document.activeElement"):
                assert control.evaluate(_IS_MARKED), f"no mark of the focus: {control}"
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {control}")

    def press(self, role: str, name: str, *, within: str = "body") -> None:
        """Press a button, or follow a link."""
        place = self.page.locator(within)
        self.reach(place.get_by_role(role, name=name, exact=True).first)
        self.page.keyboard.press("Enter")

    def type(self, label: str, text: str) -> None:
        """Replace the text of a field."""
        self.reach(self.page.get_by_label(label, exact=True))
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(text)

    def upload(self, label: str, paths: list[Path]) -> None:
        """Open the dialog of a file field, and choose files in it."""
        self.reach(self.page.get_by_label(label, exact=True))
        self.page.keyboard.press("Enter")
        for _ in range(_WAIT_MS // 100):
            if self._choosers:
                break
            self.page.wait_for_timeout(100)
        self._choosers.pop().set_files(paths)

    def say_why(self, action: str, why: str) -> None:
        """Give a reason in the form that has the focus."""
        self.page.wait_for_function("document.activeElement.tagName === 'INPUT'")
        self.page.keyboard.type(why)
        self.press("button", action, within=".ask")


_IS_MARKED = """(it) => {
  const shown = it.type === "file" ? it.parentElement : it;
  const look = getComputedStyle(shown);
  return look.outlineStyle !== "none" && parseFloat(look.outlineWidth) > 0;
}"""
