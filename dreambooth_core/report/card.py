"""The model card of a registered version: Markdown, the same bytes for the same records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dreambooth_core.records import (
    REAL,
    STEP_0,
    BaseModelIdentity,
    Interval,
    Method,
    ScoreRow,
    Scores,
    Selection,
)
from dreambooth_core.report import KINDS

_MARKDOWN = "\\`*_{}[]<>()#+!|"


@dataclass(frozen=True, kw_only=True)
class CardContent:
    """The content of a version's card. `lineage` holds names with hashes, in order.

    `confirmed` is the row of the selected checkpoint on fresh seeds.
    """

    model_name: str
    subject: str
    identifier: str
    class_noun: str
    base_model: BaseModelIdentity
    method: Method
    scores: Scores
    confirmed: ScoreRow
    selection: Selection
    lineage: Mapping[str, str] = field(default_factory=dict)


def render_card(content: CardContent) -> str:
    """Render the card as Markdown with the hub's metadata block; escapes user texts."""
    return f"{_metadata(content)}\n\n{render_text(content)}"


def render_text(content: CardContent) -> str:
    """Render the card as Markdown without the metadata; escapes user texts."""
    prompt = f"a photo of {content.identifier} {content.class_noun}"
    quality = (
        "It keeps to the limits of the selection."
        if content.selection.qualified
        else "**It does not keep to the limits of the selection**, so it is never promoted."
    )
    parts = [
        f"# {_plain(content.model_name)}",
        f"The subject `{content.subject}`, taught to `{_code(content.base_model.name)}` by "
        f"DreamBooth ({_method(content.method)}). Say `{_code(prompt)}` to see it. {quality}",
        "## Scores",
        _table(content),
        f"Means with bootstrap 95 % intervals over {content.confirmed.n} images. The checkpoint's "
        "are on fresh seeds, which had no part in its selection. "
        f"{_harness(content.scores)}",
        "## Why this checkpoint",
        _plain(content.selection.rule),
        "## Lineage",
        _lineage(content),
        "## Limits",
        f"It was trained on a handful of photos of one {_plain(content.class_noun)}: expect "
        "their poses and backgrounds to come back. It inherits the licence, the biases and the "
        "failures of its base model. Do not use it to depict people without their consent.",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(content: CardContent) -> str:
    tags = ["dreambooth", "text-to-image", *(["lora"] if content.method == "lora" else [])]
    lines = [
        "---",
        f"base_model: {_quoted(content.base_model.name)}",
        "library_name: diffusers",
        f"instance_prompt: {_quoted(f'a photo of {content.identifier} {content.class_noun}')}",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
    ]
    return "\n".join(lines)


def _method(method: Method) -> str:
    return "low-rank adapters" if method == "lora" else "full fine-tune of the U-Net"


def _table(content: CardContent) -> str:
    rows = {row.name: row for row in content.scores.rows}
    shown = [rows.get(STEP_0), content.confirmed, rows.get(REAL)]
    head = ["row", *(kind.name for kind in KINDS)]
    lines = [head, ["---", *("---:" for _ in KINDS)]]
    lines += [
        [_row_name(row), *(_cell(getattr(row, kind.key)) for kind in KINDS)] for row in shown if row
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _row_name(row: ScoreRow) -> str:
    note = {STEP_0: " (base model)", REAL: " (the photos)"}.get(row.name)
    return f"{row.name}{note}" if note else f"**{row.name}**"


def _cell(value: Interval | None) -> str:
    return f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})" if value else "–"


def _harness(scores: Scores) -> str:
    harness = scores.harness
    scorers = ", ".join(f"{s.name} = `{_code(s.backbone)}`" for s in harness.scorers.values())
    return (
        f"Suite `{harness.suite}`, {harness.sampler}, {harness.steps} steps, guidance "
        f"{harness.guidance:g}, {harness.resolution} px; scorers {scorers}. PRES is better when "
        "lower; DIV is the mean distance of DINO patches (not LPIPS). Numbers compare only within "
        "one harness."
    )


def _lineage(content: CardContent) -> str:
    base = content.base_model
    entries = {
        "Base model": f"{base.name}{f' at {base.revision}' if base.revision else ''}",
        "Base model sha256": base.sha256,
        **content.lineage,
    }
    return "\n".join(f"- {_plain(name)}: `{_code(value)}`" for name, value in entries.items())


def _plain(text: str) -> str:
    """Escape a text for Markdown and HTML."""
    return "".join(f"\\{letter}" if letter in _MARKDOWN else letter for letter in text)


def _code(text: str) -> str:
    """Escape a text for use between backticks."""
    return text.replace("`", "'")


def _quoted(text: str) -> str:
    """Quote a YAML string."""
    return "'" + text.replace("'", "''") + "'"
