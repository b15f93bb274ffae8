"""The numbers of every update: a table that is saved with the state and published as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dreambooth_core.errors import CorruptRecordError

_COLUMNS = ("step", "loss", "loss_instance", "loss_class", "learning_rate", "grad_norm")


@dataclass(frozen=True)
class MetricsRow:
    """One update. `loss_class` is None without class images; `grad_norm` is before clipping."""

    step: int
    loss: float
    loss_instance: float
    loss_class: float | None
    learning_rate: float
    grad_norm: float


def to_csv(rows: Sequence[MetricsRow]) -> str:
    """The table as text. Nine digits name every fp32 number, so the same run gives the same text.

    An empty cell stands for None.
    """
    lines = [",".join(_COLUMNS)]
    for row in rows:
        cells = [getattr(row, column) for column in _COLUMNS[1:]]
        lines.append(",".join([str(row.step), *("" if c is None else f"{c:.9g}" for c in cells)]))
    return "\n".join(lines) + "\n"


def from_csv(text: str, *, last_step: int) -> list[MetricsRow]:
    """The rows of steps 1 to `last_step`. Raises CorruptRecordError when one is missing."""
    header, *lines = text.splitlines() or [""]
    rows = [_parse(line) for line in lines[:last_step]]
    if header != ",".join(_COLUMNS) or [r.step for r in rows] != list(range(1, last_step + 1)):
        raise CorruptRecordError(f"the metrics table does not hold steps 1 to {last_step}")
    return rows


def _parse(line: str) -> MetricsRow:
    step, loss, instance, class_, rate, norm = line.split(",")
    return MetricsRow(
        step=int(step),
        loss=float(loss),
        loss_instance=float(instance),
        loss_class=float(class_) if class_ else None,
        learning_rate=float(rate),
        grad_norm=float(norm),
    )


def averages(rows: Sequence[MetricsRow]) -> dict[str, float]:
    """What goes to the metric sink for an interval: mean losses, the last rate and norm."""
    values = {
        "loss": sum(row.loss for row in rows) / len(rows),
        "loss_instance": sum(row.loss_instance for row in rows) / len(rows),
        "learning_rate": rows[-1].learning_rate,
        "grad_norm": rows[-1].grad_norm,
    }
    class_losses = [row.loss_class for row in rows if row.loss_class is not None]
    if class_losses:
        values["loss_class"] = sum(class_losses) / len(class_losses)
    return values
