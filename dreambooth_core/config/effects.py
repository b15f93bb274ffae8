"""The settings that each stage reads, for its fingerprint and its entry in dvc.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth_core.config.sections import OVERRIDABLE, Effect, Section, SubjectView

_SUBJECT = "subjects.${key}"
"""The entry of a subject in params.yaml, with dvc.yaml's `foreach` variable."""

_SUBJECT_WORDS = ("subject.identifier", "subject.class_noun")

STAGE_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "validate": ("data",),
    "class-images": (
        *("base_model", "compute", "data.resolution", "subject.class_noun"),
        *("prior.num_class_images", "prior.solver", "prior.num_inference_steps"),
        *("prior.guidance_scale", "prior.sample_batch_size", "prior.seed"),
    ),
    "cache": (
        *("base_model", "compute", "data.resolution", "data.center_crop"),
        *("data.crops_per_image", "data.random_flip", "data.caption_rate", "data.masks"),
        *_SUBJECT_WORDS,
    ),
    "train": ("base_model", "compute", "prior.prior_loss_weight", "train", *_SUBJECT_WORDS),
    "evaluate": (
        *("base_model", "compute", "evaluate", "select", "data.resolution"),
        *("subject.prompts", *_SUBJECT_WORDS),
    ),
    "select": ("select", "subject.choice"),
    "confirm": (
        *("base_model", "compute", "evaluate", "data.resolution"),
        *("subject.prompts", *_SUBJECT_WORDS),
    ),
    "register": ("registry", "base_model"),
    "report": (),
}
"""The settings that each stage reads, besides its version and its subject's overrides."""


_DECIDING = {"train": ("evaluate", "select", "data.resolution", "subject.prompts")}
"""Settings that decide about a stage's output without changing its work: those that stop a training
early. Its checkpoints stay in the store, so a change costs no training twice."""


def dvc_params(stage: str) -> list[str]:
    """The keys of params.yaml that `dvc.yaml` must list for a stage, with its `foreach` variable.

    DVC refuses missing keys. `prior` may be null and older files have no `choice`, so that the
    whole section or subject is listed.
    """
    keys = {_dvc_key(key) for key in (*STAGE_SETTINGS[stage], *_DECIDING.get(stage, ()))}
    if _SUBJECT not in keys and any(key.split(".")[0] in OVERRIDABLE for key in keys):
        keys.add(f"{_SUBJECT}.overrides")
    return sorted({*keys, f"versions.{stage.replace('-', '_')}"})


def _dvc_key(key: str) -> str:
    if key.startswith("prior."):
        return "prior"
    return _SUBJECT if key == "subject.choice" else key.replace("subject.", f"{_SUBJECT}.", 1)


def settings_of(view: SubjectView, stage: str) -> dict[str, Any]:
    """The RESULT fields that a stage reads, by dotted key, for its fingerprint."""
    values: dict[str, Any] = {f"versions.{stage}": view.versions.of(stage)}
    for key in STAGE_SETTINGS[stage]:
        values[key] = _result_fields(view, key)
    if view.data.masks is None:
        # Absent while off, so that results without masks stay valid.
        values.pop("data.masks", None)
        values.get("data", {}).pop("masks", None)
    values.get("data", {}).pop("caption_rate", None)  # the data gate does not read it
    if view.data.caption_rate == 1:
        values.pop("data.caption_rate", None)
    if view.subject.choice is None:
        values.pop("subject.choice", None)
    if stage == "train":
        values["train"].pop("init_from")  # its content counts, which the stage adds
        values["train"].pop("strategy")  # follows from accelerate_config and num_processes
        if view.train.method == "full":
            values["train"]["lora"] = None  # unused until method becomes lora
        if view.train.lr_scheduler == "constant":
            # At a constant rate, the steps of a run do not depend on its length, so it can grow.
            values["train"].pop("max_train_steps")
    return values


def _result_fields(view: SubjectView, key: str) -> Any:
    section: Any = view
    for part in key.split("."):
        if not isinstance(section, Section):
            return None
        field = type(section).model_fields[part]
        if part != "subject" and effect_of(field) is not Effect.RESULT:
            return None
        section = getattr(section, part)
    return _without_other_effects(section) if isinstance(section, Section) else section


def effect_of(field: Any) -> Effect:
    """The Effect of a field."""
    extra: dict[str, str] = field.json_schema_extra or {}
    return Effect(extra.get("effect", Effect.RESULT.value))


def _without_other_effects(section: Section) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if effect_of(field) is not Effect.RESULT:
            continue
        value = getattr(section, name)
        kept[name] = _without_other_effects(value) if isinstance(value, Section) else value
    return kept
