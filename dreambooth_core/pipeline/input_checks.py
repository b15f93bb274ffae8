"""What the settings name, checked before any stage runs: models, suites, folders, counts.

Torch-free. The stages make the same checks where they use these things.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dreambooth_core.config import SubjectView
from dreambooth_core.data.listing import list_folder
from dreambooth_core.errors import DataError, Problem, SettingsError
from dreambooth_core.evaluation import scorer_files, suites
from dreambooth_core.evaluation.scorer_files import Role
from dreambooth_core.models import identifier, sides, source
from dreambooth_core.models.families import pipeline_family
from dreambooth_core.pipeline import prompt_checks
from dreambooth_core.planning import shapes

_BASE_MODEL = "base_model.pretrained_model_name_or_path"
_USES_BASE = ("class-images", "cache", "train", "evaluate", "register")
_POCKET = "assets/pocket-"
_FEW_RESAMPLES = 200
_FEW_CLASS_IMAGES = 8
_ROLES: tuple[Role, ...] = ("clip", "dino")


@dataclass(frozen=True)
class Check:
    """A check and the stages that would fail without it."""

    stages: tuple[str, ...]
    run: Callable[[], object]
    """Raises SettingsError."""
    is_early: bool = False
    """Whether earlier stages make the check too. It must not open files that they do not name."""


def checks(root: Path, view: SubjectView) -> Iterator[Check]:
    """The checks of a subject's settings."""
    yield Check(("validate",), lambda: _photo_folder(root, view))
    yield Check(("train",), lambda: _checkpoints(view), is_early=True)
    yield Check(_USES_BASE, lambda: base_folder(root, view), is_early=True)
    yield Check(_USES_BASE, lambda: _base_files(root, view))
    yield Check(_USES_BASE, lambda: _prompts(root, view))
    yield Check(("class-images", "cache", "evaluate"), lambda: _resolution(root, view))
    yield Check(("train",), lambda: _layers(root, view))
    yield Check(("evaluate",), lambda: _images(root, view), is_early=True)
    for role in _ROLES:
        yield Check(("evaluate",), lambda role=role: _scorer(root, view, role), is_early=True)
        yield Check(("evaluate",), lambda role=role: _scorer_files(root, view, role))
    yield Check(("evaluate",), lambda: _scored_texts(root, view))


def problems_of(check: Check, view: SubjectView) -> list[Problem]:
    """The mistakes that a check finds, each with the key of the setting to change."""
    try:
        check.run()
    except SettingsError as error:
        return [replace(each, key=_place(each.key, view)) for each in error.problems]
    return []


def _place(key: str | None, view: SubjectView) -> str | None:
    """The key, in the subject's overrides if the value is from there."""
    section, _, field = (key or "").partition(".")
    if field.partition(".")[0] in view.subject.overrides.get(section, {}):
        return f"subjects.{view.name}.overrides.{key}"
    return key


def warnings(root: Path, view: SubjectView) -> list[str]:
    """Consequences of valid settings that their author may not expect."""
    found = (
        *_length_warnings(view),
        *_sample_warnings(view),
        *_scorer_warnings(view),
        *_side_warnings(root, view),
        *_identifier_warnings(root, view),
        *_word_warnings(root, view),
    )
    return [f"{_place(key, view)}: {text}" for key, text in found]


def _identifier_warnings(root: Path, view: SubjectView) -> Iterator[tuple[str, str]]:
    found = identifier.tokenizers_on_disk(view.base_model, root)
    for text in identifier.split_identifier(view.subject.identifier, found):
        yield f"subjects.{view.name}.identifier", text


def base_folder(root: Path, view: SubjectView) -> Path | None:
    """The base model's folder; None for a hub id. Raises SettingsError."""
    try:
        return source.named_folder(view.base_model, root)
    except SettingsError as error:
        raise _keyed(error, _BASE_MODEL) from None


def _keyed(error: SettingsError, key: str) -> SettingsError:
    return SettingsError.of(replace(each, key=each.key or key) for each in error.problems)


def _usable_folder(root: Path, view: SubjectView) -> Path | None:
    """The base model's folder, or None for a hub id and a folder that has its own error."""
    try:
        _base_files(root, view)
        return base_folder(root, view)
    except SettingsError:
        return None


def _base_files(root: Path, view: SubjectView) -> None:
    try:
        folder = base_folder(root, view)
    except SettingsError:
        return  # `base_folder` is a check, too
    if folder is None:
        return
    try:
        pipeline_family(folder)
        source.check_pipeline(folder, view.base_model.variant)
    except SettingsError as error:
        raise _keyed(error, _BASE_MODEL) from None


def _prompts(root: Path, view: SubjectView) -> None:
    if _usable_folder(root, view) is not None or _is_hub_id(root, view):
        prompt_checks.check_drawn(view, root)


def _is_hub_id(root: Path, view: SubjectView) -> bool:
    try:
        return base_folder(root, view) is None
    except SettingsError:
        return False


def _scored_texts(root: Path, view: SubjectView) -> None:
    try:
        folder = _scorer(root, view, "clip")
        _scorer_files(root, view, "clip")
    except SettingsError:
        return  # these are checks, too
    if folder is not None:
        prompt_checks.check_scored(view, root, folder)


def _resolution(root: Path, view: SubjectView) -> None:
    text = sides.side_problem(view.data.resolution, _usable_folder(root, view))
    if text is not None:
        raise SettingsError(text, key="data.resolution")


def _layers(root: Path, view: SubjectView) -> None:
    folder = _usable_folder(root, view)
    if folder is not None and view.train.method == "lora":
        model = shapes.shapes_of(view.base_model.pretrained_model_name_or_path, folder)
        if model is not None:
            model.trained(view.train)


def _photo_folder(root: Path, view: SubjectView) -> None:
    folder, key = root / view.subject.instance_dir, f"subjects.{view.name}.instance_dir"
    if folder.exists() and not folder.is_dir():
        raise SettingsError("not a folder", key=key, got=view.subject.instance_dir)
    is_tracked = folder.with_name(f"{folder.name}.dvc").is_file()
    if not folder.exists() and not is_tracked:
        raise SettingsError(
            "this folder does not exist, and DVC does not track it",
            key=key,
            got=view.subject.instance_dir,
            hint="put 3 to 6 photos there, or name their folder",
        )
    if folder.is_dir():
        _require_photos(folder, view, key)


def _require_photos(folder: Path, view: SubjectView, key: str) -> None:
    try:
        listing = list_folder(folder, subject=view.name)
    except DataError as error:
        raise SettingsError(error.what, key=key, got=error.got, hint=error.hint) from None
    if not listing.photos:
        raise SettingsError(
            "no photo in this folder",
            key=key,
            got=f"{view.subject.instance_dir} with {len(listing.skipped)} other entries",
            hint=f"put 3 to 6 photos there; `dreambooth validate {view.name}` lists every entry",
        )


def _checkpoints(view: SubjectView) -> None:
    every, steps = view.train.checkpointing_steps, view.train.max_train_steps
    if every > steps:
        raise SettingsError(
            f"{every}, but the training has {steps} steps, so there would be one checkpoint and "
            "nothing to select from",
            key="train.checkpointing_steps",
            hint=f"set {max(1, steps // 5)}, for checkpoints at every fifth of the training",
        )


def _images(root: Path, view: SubjectView) -> None:
    own = view.subject.prompts
    key = f"subjects.{view.name}.prompts" if own else "evaluate.suite"
    try:
        suite = suites.load_suite(own or view.evaluate.suite, root=root)
    except SettingsError as error:
        raise _keyed(error, key) from None
    suites.check_counts(view.evaluate, num_prompts=len(suite.templates))


def _scorer(root: Path, view: SubjectView, role: Role) -> Path | None:
    return scorer_files.scorer_folder(role, getattr(view.evaluate, role), root)


def _scorer_files(root: Path, view: SubjectView, role: Role) -> None:
    try:
        folder = _scorer(root, view, role)
    except SettingsError:
        return  # `_scorer` is a check, too
    if folder is not None:
        scorer_files.check_scorer_files(role, getattr(view.evaluate, role), folder)


def _length_warnings(view: SubjectView) -> Iterator[tuple[str, str]]:
    train = view.train
    steps = train.max_train_steps
    if train.checkpointing_steps == steps:
        yield (
            "train.checkpointing_steps",
            f"{steps}, as many as the training has: there is one checkpoint and nothing to select "
            "from",
        )
    if train.lr_warmup_steps >= steps:
        yield (
            "train.lr_warmup_steps",
            f"{train.lr_warmup_steps} of {steps} steps: the learning rate never reaches its peak",
        )
    if train.text_encoder_stop_step is not None and train.text_encoder_stop_step >= steps:
        yield (
            "train.text_encoder_stop_step",
            f"{train.text_encoder_stop_step} of {steps} steps: no effect",
        )


def _sample_warnings(view: SubjectView) -> Iterator[tuple[str, str]]:
    evaluate = view.evaluate
    if evaluate.bootstrap_samples < _FEW_RESAMPLES:
        yield (
            "evaluate.bootstrap_samples",
            f"{evaluate.bootstrap_samples}: too few for 95 % intervals, which decide promotions; "
            "2000 are usual",
        )
    if evaluate.num_class_prompt_images < _FEW_CLASS_IMAGES:
        yield (
            "evaluate.num_class_prompt_images",
            f"{evaluate.num_class_prompt_images}: too few to see whether the class is forgotten "
            "(PRES); 24 are usual",
        )


def _scorer_warnings(view: SubjectView) -> Iterator[tuple[str, str]]:
    if view.base_model.pretrained_model_name_or_path.startswith(_POCKET):
        return
    for role in _ROLES:
        name = getattr(view.evaluate, role)
        if name.startswith(_POCKET):
            yield (
                f"evaluate.{role}",
                f"{name} knows only the pocket models' drawings, so its scores mean nothing for "
                f"another base model; use {scorer_files.EXAMPLES[role]}",
            )


def _side_warnings(root: Path, view: SubjectView) -> Iterator[tuple[str, str]]:
    folder = _usable_folder(root, view)
    own = shapes.trained_side(view.base_model.pretrained_model_name_or_path, folder)
    side = view.data.resolution
    if own is not None and (side < own / 2 or side > own * 2):
        yield (
            "data.resolution",
            f"{side}, but the base model was trained at {own}: images far from that size are poor",
        )


def _word_warnings(root: Path, view: SubjectView) -> Iterator[tuple[str, str]]:
    """A small base model lists what it can draw; a class noun outside the list is a surprise."""
    base, noun = view.base_model.pretrained_model_name_or_path, view.subject.class_noun
    things = source.known_words(base, root, "thing")
    if things is not None and set(noun.lower().split()).isdisjoint(things):
        yield (
            f"subjects.{view.name}.class_noun",
            f"the base model {base} does not know {noun!r} and will draw something else; it knows "
            f"{', '.join(things)}. Use one of these words, or a base model of photographs: "
            "`dreambooth preset list`",
        )
