"""The space of a search: which settings vary, and between which values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dreambooth_core import config
from dreambooth_core.config import SubjectView
from dreambooth_core.config.changes import Changes, changed_view
from dreambooth_core.errors import Problem, SettingsError
from dreambooth_core.workspace import Workspace

FLAG = "--param"
SECTIONS = ("train", "prior")
"""The sections that a search may change. Others decide how trials are judged or what they see."""

_EXAMPLE = f"{FLAG} train.learning_rate=1e-5..1e-3, {FLAG} train.lora.rank=4,8,16"
_LOG_FROM = 4.0
"""A range of positive numbers is searched by magnitude if its ends differ by this factor."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; whole ones, `step` apart, if there is a step."""

    low: float
    high: float
    step: int | None = None

    @property
    def by_magnitude(self) -> bool:
        """Whether a factor matters more than a difference, as for a learning rate."""
        return self.step is None and self.low > 0 and self.high / self.low >= _LOG_FROM

    @property
    def ends(self) -> tuple[float, ...]:
        """The values that stand for all others in a check."""
        return (self.low, self.high)

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return self.step is None or (value - self.low) % self.step == 0


@dataclass(frozen=True)
class Choices:
    """A few values; a single one fixes the setting."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that stand for all others in a check."""
        return self.values

    def __contains__(self, value: object) -> bool:
        return value in self.values


Candidates = Range | Choices
Space = Mapping[str, Candidates]
"""The candidates of each searched setting, by dotted key."""


def make_space(workspace: Workspace, view: SubjectView, assignments: Sequence[str]) -> Space:
    """The default space, with the candidates that the assignments name.

    Raises SettingsError with every mistake at once.
    """
    given: dict[str, Candidates] = {}
    problems: list[Problem] = []
    for text in assignments:
        try:
            key, candidates = _parse(text, view)
            if key in given:
                raise SettingsError(f"{FLAG} names {key} twice")
            given[key] = candidates
        except SettingsError as error:
            problems += error.problems
    for key, candidates in given.items():
        problems += _problems(workspace, view.name, key, candidates)
    if problems:
        raise SettingsError.of(dict.fromkeys(problems))
    defaults = {
        key: _allowed(workspace, view.name, key, candidates)
        for key, candidates in _defaults(view)
        if key not in given
    }
    space = {**{key: found for key, found in defaults.items() if found is not None}, **given}
    if all(len(candidates.ends) < 2 for candidates in space.values()):
        raise SettingsError(
            "the search has nothing to vary: every setting is fixed", hint=f"for example {_EXAMPLE}"
        )
    return space


def to_json(space: Space) -> dict[str, Any]:
    """The space as plain JSON."""
    return {
        key: list(candidates.values) if isinstance(candidates, Choices) else asdict(candidates)
        for key, candidates in space.items()
    }


def value_of(view: SubjectView, key: str) -> Any:
    """The value of a setting by its dotted key; None if a section on the way is null."""
    value: Any = view
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


def _defaults(view: SubjectView) -> Iterator[tuple[str, Candidates]]:
    """Yield the space around the present settings."""
    train = view.train
    has_own_rate = train.method == "lora" and train.lora and train.lora.learning_rate
    rate = "train.lora.learning_rate" if has_own_rate else "train.learning_rate"
    yield rate, Range(train.peak_rate / 4, train.peak_rate * 4)
    yield "train.max_train_steps", _steps(train.max_train_steps, train.checkpointing_steps)
    if train.method == "lora" and train.lora:
        ranks = {max(1, train.lora.rank // 2), train.lora.rank, 2 * train.lora.rank}
        yield "train.lora.rank", Choices(tuple(sorted(ranks)))
    if view.prior and view.prior.prior_loss_weight:
        weight = view.prior.prior_loss_weight
        yield "prior.prior_loss_weight", Range(weight / 4, weight * 2)
    yield "train.train_text_encoder", Choices((False, True))


def _steps(steps: int, every: int) -> Range:
    """Half to twice the steps, so that the last step is a checkpoint wherever it now is one."""
    step = every if steps % every == 0 else 1
    low = steps - step * (steps // 2 // step)
    return Range(low, 2 * steps, step) if low >= 1 else Range(step, 2 * steps, step)


def _parse(text: str, view: SubjectView) -> tuple[str, Candidates]:
    """A setting and its candidates from KEY=LOW..HIGH, KEY=A,B or KEY=VALUE."""
    key, sign, value = (part.strip() for part in text.partition("="))
    if not (key and sign and value):
        raise SettingsError(
            f"{FLAG} takes KEY=LOW..HIGH, KEY=A,B,... or KEY=VALUE", got=text, hint=_EXAMPLE
        )
    if key.split(".")[0] not in SECTIONS:
        raise SettingsError(
            f"{FLAG} cannot search {key}: trials compare only with equal photos, prompts and rules",
            allowed=", ".join(f"{section}.*" for section in SECTIONS),
        )
    if ".." not in value:
        return key, Choices(tuple(_scalar(key, part) for part in value.split(",")))
    low, high = (_scalar(key, part) for part in value.split("..", 1))
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)):
        raise SettingsError(f"{FLAG} {key}: a range needs two numbers", got=value, hint=_EXAMPLE)
    if not low < high:
        raise SettingsError(f"{FLAG} {key}: the range is empty", got=value, hint=_EXAMPLE)
    if isinstance(low, int) and isinstance(high, int) and _is_whole(value_of(view, key)):
        return key, _whole_range(low, high, view, key)
    return key, Range(float(low), float(high))


def _whole_range(low: int, high: int, view: SubjectView, key: str) -> Range:
    every = view.train.checkpointing_steps
    are_checkpoints = low % every == 0 and high % every == 0
    is_steps = key == "train.max_train_steps"
    return Range(low, high, every if is_steps and are_checkpoints else 1)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _scalar(key: str, text: str) -> Any:
    try:
        return config.parse_yaml(text)
    except SettingsError:
        raise SettingsError(f"{FLAG} {key}: not a value", got=text.strip(), hint=_EXAMPLE) from None


def _problems(
    workspace: Workspace, subject: str, key: str, candidates: Candidates
) -> list[Problem]:
    """What the settings' own rules say against the candidates."""
    found = (_refusals(workspace, subject, {key: value}) for value in candidates.ends)
    return [replace(problem, file=FLAG) for problem in itertools.chain(*found)]


def _allowed(
    workspace: Workspace, subject: str, key: str, candidates: Candidates
) -> Candidates | None:
    """The default candidates that suit the other settings; None if too few are left."""

    def is_fine(value: Any) -> bool:
        return not _refusals(workspace, subject, {key: value})

    if isinstance(candidates, Range):
        return candidates if all(map(is_fine, candidates.ends)) else None
    kept = tuple(filter(is_fine, candidates.values))
    return Choices(kept) if len(kept) > 1 else None


def _refusals(workspace: Workspace, subject: str, changes: Changes) -> tuple[Problem, ...]:
    try:
        changed_view(workspace, subject, changes, source=FLAG)
    except SettingsError as error:
        return error.problems
    return ()
