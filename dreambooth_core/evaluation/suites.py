"""Prompt suites (text files with one prompt per line) and the plan of evaluation images."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

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


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """The images of a row of scores, the same for every checkpoint, run and version.

    `seeds` holds one seed per suite image, prompt by prompt: image s of prompt p has
    `seeds[p * images_per_prompt + s]`.
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
        """Images of the suite: the n of a row."""
        return len(self.seeds)

    @property
    def requests(self) -> list[tuple[str, int]]:
        """(prompt, seed) of every image: those of the suite, then those of the class prompt."""
        repeated = [p for p in self.prompts for _ in range(self.images_per_prompt)]
        suite = list(zip(repeated, self.seeds, strict=True))
        return suite + [(self.class_prompt, seed) for seed in self.class_seeds]

    @property
    def prompt_indices(self) -> list[int]:
        """The prompt's index of every suite image."""
        return [p for p in range(len(self.prompts)) for _ in range(self.images_per_prompt)]

    def sampling_key(self, model_sha256: str) -> str:
        """The key of the images: a hash of the model and of everything that sampling depends on."""
        sampling = [self.requests, self.sampler, self.steps, self.guidance]
        return files.digest_of([model_sha256, *sampling, self.resolution, self.batch_size])


def make_plan(
    settings: EvaluateSettings,
    *,
    suite: PromptSuite,
    subject: SubjectSettings,
    sampler: str,
    resolution: int,
) -> EvaluationPlan:
    """The plan of `settings` for a subject's words.

    The seed of image s of prompt p depends on (evaluate.seed, "evaluate", p, s), that of image i
    of the class prompt on (evaluate.seed, "evaluate-class", i). Raises SettingsError for fewer
    than MIN_IMAGES images per row.
    """
    each = settings.images_per_prompt
    check_counts(settings, num_prompts=len(suite.templates))
    return EvaluationPlan(
        suite=suite.name,
        prompts=suite.prompts(identifier=subject.identifier, class_noun=subject.class_noun),
        scored_texts=suite.scored_texts(class_noun=subject.class_noun),
        images_per_prompt=each,
        seeds=_seeds(settings.seed, "evaluate", shape=(len(suite.templates), each)),
        class_prompt=subject.class_prompt,
        class_seeds=_seeds(
            settings.seed, "evaluate-class", shape=(settings.num_class_prompt_images,)
        ),
        sampler=sampler,
        steps=settings.num_inference_steps,
        guidance=settings.guidance_scale,
        resolution=resolution,
        batch_size=settings.sample_batch_size,
    )


def _seeds(seed: int, role: str, *, shape: Sequence[int]) -> tuple[int, ...]:
    indices: list[tuple[int, ...]] = [()]
    for size in shape:
        indices = [(*index, i) for index in indices for i in range(size)]
    return tuple(derive_seed(seed, role, *index) & _SEED_BITS for index in indices)


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
