"""The parts of a page that change with the registry: standing, comparison, and what to do next.

They stand between two comments, so that a promotion can replace them in a page whose pictures and
scores are gone from the workspace.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from dreambooth_core.records import Verdict
from dreambooth_core.report import KINDS

_BACKTICKS = re.compile(r"`([^`]+)`")
_PART = re.compile(r"<!-- live (\w+) of (\d+|none) -->.*?<!-- end of live \1 -->", re.DOTALL)


@dataclass(frozen=True)
class Standing:
    """What a version is in the registry: a word, the CSS class of its colour, and a sentence."""

    word: str
    tone: str
    note: str


@dataclass(frozen=True)
class Command:
    """A command to paste, and what it is for."""

    purpose: str
    text: str


@functools.cache
def environment() -> Environment:
    """The templates of the page; they escape all texts."""
    made = Environment(
        loader=PackageLoader("dreambooth_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(score=lambda value: f"{value:.3f}", signed=_signed, code=_code)
    return made


def render_parts(
    version: int | None,
    *,
    standing: Standing,
    verdict: Verdict | None,
    commands: Sequence[Command],
) -> dict[str, Markup]:
    """The live parts of a page, by name."""
    values = {
        "standing": standing,
        "verdict": verdict,
        "differences": _differences(verdict),
        "commands": commands,
    }
    number = "none" if version is None else version
    return {
        part: Markup(f"<!-- live {part} of {number} -->\n{html}<!-- end of live {part} -->")
        for part in ("standing", "comparison", "next")
        for html in [environment().get_template(f"{part}.html.j2").render(**values)]
    }


def version_of(html: str) -> int | None:
    """The version that a page shows; None for a page of unregistered outputs."""
    found = _PART.search(html)
    return None if found is None or found[2] == "none" else int(found[2])


def with_parts(html: str, parts: dict[str, Markup]) -> str:
    """The page with other live parts."""
    return _PART.sub(lambda found: str(parts[found[1]]), html)


def _differences(verdict: Verdict | None) -> list[dict[str, Any]]:
    """The verdict's paired differences, each with a bar in percent of the scale."""
    if verdict is None or not verdict.difference:
        return []
    found = [(kind, verdict.difference.get(kind.key)) for kind in KINDS]
    reach = max(max(abs(d.low), abs(d.high)) for d in verdict.difference.values()) or 1.0
    return [
        {
            "kind": kind,
            "value": value,
            "left": f"{50 + 48 * value.low / reach:.2f}",
            "width": f"{48 * (value.high - value.low) / reach:.2f}",
            "at": f"{50 + 48 * value.mean / reach:.2f}",
            "tone": "good" if value.low > 0 else "bad" if value.high < 0 else "plain",
        }
        for kind, value in found
        if value is not None
    ]


def _code(text: str) -> Markup:
    """A text whose parts between backticks are code."""
    return Markup(_BACKTICKS.sub(r"<code>\1</code>", str(escape(text))))


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
