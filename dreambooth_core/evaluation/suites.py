"""Prompt suites (text files with one prompt per line) and the plan of evaluation images."""

from __future__ import annotations

import string
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from dreambooth_core import files
from dreambooth_core.config import EvaluateSettings, SubjectSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.numerics.seeding import derive_seed

MIN_IMAGES = 32
"""Fewer images per row of scores are too noisy: such settings raise an error."""

_FIELDS = {"identifier", "class_noun"}
_SEED_BITS = 0x7FFF_FFFF  # seeds a person can type, and every JSON reader can hold exactly


@dataclass(frozen=True, kw_only=True)
class PromptSuite:
    """A frozen list of prompt templates with `{identifier}` and `{class_noun}`."""

    name: str
    templates: tuple[str, ...]

    def prompts(self, *, identifier: str, class_noun: str) -> tuple[str, ...]:
        """The prompts of the images."""
        return tuple(
            render(t, identifier=identifier, class_noun=class_noun) for t in self.templates
        )

    def scored_texts(self, *, class_noun: str) -> tuple[str, ...]:
        """The prompts without the identifier: the texts that CLIP-T scores the images against."""
        return self.prompts(identifier="", class_noun=class_noun)


def render(template: str, *, identifier: str, class_noun: str) -> str:
    """Fill in a template, without a double space for an empty identifier."""
    return " ".join(template.format(identifier=identifier, class_noun=class_noun).split())


def shipped_suites() -> list[str]:
    """Names of the suites in the package."""
    names = [entry.name for entry in _shipped_folder().iterdir()]
    return sorted(name.removesuffix(".txt") for name in names if name.endswith(".txt"))


def _shipped_folder() -> Traversable:
    return resources.files("dreambooth_core.evaluation") / "suites"


def load_suite(name: str, *, root: Path) -> PromptSuite:
    """A shipped suite by name, or a text file (its path relative to `root`).

    Raises SettingsError with the shipped suites if there is no such suite or file, and with the
    lines that are not prompts.
    """
    if name in shipped_suites():
        text = (_shipped_folder() / f"{name}.txt").read_text("utf-8")
        return parse_suite(text, name=name)
    path = root / name
    try:
        return parse_suite(path.read_text("utf-8"), name=path.stem)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            "unknown prompt suite",
            got=f"{name!r} ({getattr(error, 'strerror', None) or 'not UTF-8 text'})",
            allowed=f"{', '.join(shipped_suites())}, or the path of a text file",
            hint="set evaluate.suite, or the subject's prompts",
        ) from None


def parse_suite(text: str, *, name: str) -> PromptSuite:
    """Parse one prompt per line; blank lines and lines that start with # do not count.

    Raises SettingsError with all bad lines.
    """
    templates: list[str] = []
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        template = " ".join(line.split())
        if not template or template.startswith("#"):
            continue
        problem = _problem_of(template) or ("stands twice" if template in templates else None)
        if problem:
            problems.append(f"line {number} {problem}: {template!r}")
        templates.append(template)
    if len(templates) < 2 and not problems:
        problems.append(f"it holds {len(templates)} prompts, and CLIP-T needs two to tell apart")
    if problems:
        raise SettingsError(
            f"prompt suite {name!r} cannot be used",
            got="; ".join(problems),
            allowed="prompts such as 'a photo of {identifier} {class_noun} on the beach'",
        )
    return PromptSuite(name=name, templates=tuple(templates))


def _problem_of(template: str) -> str | None:
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError:
        return "has an unmatched brace"
    fields = [field for _, field, _, _ in parsed if field is not None]
    if any(spec or conversion for _, _, spec, conversion in parsed) or set(fields) - _FIELDS:
        return "has another field than {identifier} and {class_noun}"
    if set(fields) != _FIELDS:
        return "lacks {identifier} or {class_noun}"
    return None


SeedRole = Literal["evaluate", "confirm"]
"""The use of seeds: `evaluate` seeds select a checkpoint, `confirm` seeds select nothing."""


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """The images of a row of scores, the same for every checkpoint, run and version.

    They come in rounds: each holds one image of every prompt of the suite and an equal share of
    the images of the class prompt. Rows with the same rounds pair by prompt and seed. `seeds` holds
    one seed per suite image, round by round: prompt p has `seeds[r * len(prompts) + p]` in round r.
    """

    suite: str
    prompts: tuple[str, ...]
    scored_texts: tuple[str, ...]
    images_per_prompt: int
    seeds: tuple[int, ...]
    class_prompt: str
    class_seeds: tuple[int, ...]
    sampler: str
    steps: int
    guidance: float
    resolution: int
    batch_size: int

    @property
    def num_images(self) -> int:
        """Images of the suite in all rounds: the n of a complete row."""
        return len(self.seeds)

    @property
    def rounds(self) -> int:
        """Rounds of a complete row."""
        return self.images_per_prompt

    def round(self, number: int) -> tuple[int, list[tuple[str, int]]]:
        """The index of a round's first image, and (prompt, seed) of its images, suite first."""
        num_prompts, num_class = len(self.prompts), len(self.class_seeds)
        suite_first = number * num_prompts
        # Rounded up, so that the first round has a class image even if later ones have none.
        class_first, class_end = (-(-num_class * n // self.rounds) for n in (number, number + 1))
        seeds = self.seeds[suite_first : suite_first + num_prompts]
        requests = list(zip(self.prompts, seeds, strict=True))
        requests += [(self.class_prompt, seed) for seed in self.class_seeds[class_first:class_end]]
        return suite_first + class_first, requests

    def prompt_indices(self, rounds: int) -> list[int]:
        """The prompt's index of every suite image of the first `rounds` rounds."""
        return list(range(len(self.prompts))) * rounds

    def sampling_key(self, model_sha256: str) -> str:
        """The key of the images: a hash of the model and of everything that sampling depends on."""
        requests = [self.round(number) for number in range(self.rounds)]
        sampling = [requests, self.sampler, self.steps, self.guidance]
        return files.digest_of([model_sha256, *sampling, self.resolution, self.batch_size])


def make_plan(
    settings: EvaluateSettings,
    *,
    suite: PromptSuite,
    subject: SubjectSettings,
    sampler: str,
    resolution: int,
    role: SeedRole = "evaluate",
) -> EvaluationPlan:
    """The plan of `settings` for a subject's words.

    The seed of prompt p in round r depends on (evaluate.seed, role, p, r), that of image i of the
    class prompt on (evaluate.seed, role + "-class", i). Raises SettingsError for fewer than
    MIN_IMAGES images per row.
    """
    each = settings.images_per_prompt
    check_counts(settings, num_prompts=len(suite.templates))
    return EvaluationPlan(
        suite=suite.name,
        prompts=suite.prompts(identifier=subject.identifier, class_noun=subject.class_noun),
        scored_texts=suite.scored_texts(class_noun=subject.class_noun),
        images_per_prompt=each,
        seeds=tuple(
            derive_seed(settings.seed, role, p, r) & _SEED_BITS
            for r in range(each)
            for p in range(len(suite.templates))
        ),
        class_prompt=subject.class_prompt,
        class_seeds=tuple(
            derive_seed(settings.seed, f"{role}-class", i) & _SEED_BITS
            for i in range(settings.num_class_prompt_images)
        ),
        sampler=sampler,
        steps=settings.num_inference_steps,
        guidance=settings.guidance_scale,
        resolution=resolution,
        batch_size=settings.sample_batch_size,
    )


def check_counts(settings: EvaluateSettings, *, num_prompts: int) -> None:
    """Raise SettingsError for fewer than MIN_IMAGES images per row."""
    each, total = settings.images_per_prompt, num_prompts * settings.images_per_prompt
    if total < MIN_IMAGES:
        needed = -(-MIN_IMAGES // num_prompts)
        raise SettingsError(
            "too few images in a row of scores",
            key="evaluate.images_per_prompt",
            got=f"{num_prompts} prompts x {each} images = {total}",
            allowed=f"at least {MIN_IMAGES}",
            hint=f"raise it to {needed} or more, or use a longer suite",
        )
