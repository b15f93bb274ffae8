"""The settings: every option, its limits, and what it affects. Torch-free.

`params.yaml` is where values live; this module says which values are allowed. A default exists only
where it means "off". Each field is marked with its Effect: RESULT fields are part of the
fingerprint of the stages that read them; OUTPUT fields choose what is published, not how it is
made; NONE fields change neither and may stand only in the section `runtime`.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace


class Effect(StrEnum):
    """What changing a field does."""

    RESULT = "result"
    OUTPUT = "output"
    NONE = "none"


def setting(doc: str, *, effect: Effect = Effect.RESULT, **kwargs: Any) -> Any:
    """A field with its description and effect; `default=` only where it means "off"."""
    return Field(description=doc, json_schema_extra={"effect": effect.value}, **kwargs)


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
Word = Annotated[str, Field(pattern=r"^\S+( \S+)*$", max_length=60)]


class BaseModelSettings(Section):
    """The pretrained pipeline that is personalised."""

    pretrained_model_name_or_path: str = setting("Hub id, or folder of a saved pipeline.")
    revision: str | None = setting("Commit or branch of a hub id.", default=None)
    variant: str | None = setting("File variant of a hub id, such as fp16.", default=None)


class ComputeSettings(Section):
    """On what the stages compute; part of every fingerprint, as it changes bits."""

    device: Literal["auto", "cpu", "cuda"] = setting("auto: the GPU when there is one.")
    num_threads: PositiveInt = setting("Threads of each stage process on the CPU.")
    deterministic: bool = setting("Use deterministic kernels only.")


class DataSettings(Section):
    """The data gate and the transform of photos to training images."""

    resolution: PositiveInt = setting("Side of the square training images, in pixels.")
    center_crop: bool = setting("Crop the centre; otherwise crops_per_image random crops.")
    crops_per_image: PositiveInt = setting("Views per photo when center_crop is off.")
    random_flip: bool = setting("Also train on mirrored views.")
    background: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = setting(
        "Colour behind transparent pixels, such as #ffffff."
    )
    min_side: PositiveInt = setting("Photos with a shorter side than this are rejected, pixels.")
    max_megapixels: Annotated[float, Field(gt=0, le=178)] = setting(
        "Photos with more are rejected unread (178: Pillow's own limit)."
    )
    near_duplicate_distance: NonNegativeInt = setting(
        "Photos whose 64-bit perceptual hashes differ in at most this many bits are duplicates."
    )
    min_contrast: NonNegativeFloat = setting(
        "Photos whose grey levels have a smaller standard deviation (of 255) are blank."
    )
    blur_threshold: NonNegativeFloat = setting("Warn below this variance of the Laplacian.")
    max_aspect_ratio: Annotated[float, Field(ge=1)] = setting("Warn above this long:short ratio.")
    min_photos: PositiveInt = setting("Warn with fewer accepted photos.")
    max_photos: PositiveInt = setting("Warn with more accepted photos.")

    @model_validator(mode="after")
    def _photo_counts_are_ordered(self) -> DataSettings:
        if self.min_photos > self.max_photos:
            raise ValueError("min_photos is greater than max_photos")
        return self


class PriorSettings(Section):
    """Prior preservation: class images and their weight in the loss."""

    prior_loss_weight: NonNegativeFloat = setting("Lambda in L = E[instance] + lambda E[class].")
    num_class_images: PositiveInt = setting("How many class images.", effect=Effect.OUTPUT)
    num_inference_steps: PositiveInt = setting("Sampling steps of a class image.")
    guidance_scale: NonNegativeFloat = setting("Guidance of the class images.")
    sample_batch_size: PositiveInt = setting("Class images are made in fixed blocks of this size.")
    seed: NonNegativeInt = setting("Seed of the class images; image i has its own seed.")


class LoraSettings(Section):
    """Low-rank adapters instead of a full fine-tune."""

    rank: PositiveInt = setting("Rank r of the update.")
    lora_alpha: PositiveFloat = setting("Scale: the update is multiplied by alpha / rank.")
    lora_dropout: Fraction = setting("Dropout on the adapter's input.")
    lora_layers: tuple[str, ...] = setting("Names of the U-Net's modules that get an adapter.")


LrScheduler = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]


class TrainSettings(Section):
    """The training run; names are those of the seed's command line."""

    method: Literal["full", "lora"] = setting("Fine-tune the whole U-Net, or LoRA adapters.")
    learning_rate: PositiveFloat = setting("Peak learning rate of AdamW.")
    max_train_steps: PositiveInt = setting("Optimizer updates.")
    checkpointing_steps: PositiveInt = setting("Publish every so many.", effect=Effect.OUTPUT)
    train_batch_size: PositiveInt = setting("Instance images per device and micro-step.")
    gradient_accumulation_steps: PositiveInt = setting("Micro-steps per optimizer update.")
    lr_scheduler: LrScheduler = setting("Shape of the learning rate over the updates.")
    lr_warmup_steps: NonNegativeInt = setting("Updates of linear warm-up.")
    lr_num_cycles: PositiveInt = setting("Restarts of cosine_with_restarts.", default=1)
    lr_power: PositiveFloat = setting("Power of polynomial.", default=1.0)
    adam_beta1: Fraction = setting("AdamW beta 1.")
    adam_beta2: Fraction = setting("AdamW beta 2.")
    adam_weight_decay: NonNegativeFloat = setting("AdamW decoupled weight decay.")
    adam_epsilon: PositiveFloat = setting("AdamW epsilon.")
    max_grad_norm: PositiveFloat | None = setting("Clip the global gradient norm; null: never.")
    mixed_precision: Literal["no", "bf16", "fp16"] = setting("Compute type; weights stay fp32.")
    gradient_checkpointing: bool = setting("Recompute activations to save memory.")
    snr_gamma: PositiveFloat | None = setting("min-SNR gamma; null: off.", default=None)
    offset_noise: NonNegativeFloat = setting("Strength of offset noise; 0: off.", default=0.0)
    seed: NonNegativeInt = setting("Seed of sample, crop, noise and timestep.")
    lora: LoraSettings | None = setting("Adapters; needed when method is lora.", default=None)
    num_processes: PositiveInt = setting("Processes that accelerate launches.")
    checkpoints_total_limit: PositiveInt = setting("Resume states kept.", effect=Effect.OUTPUT)

    @model_validator(mode="after")
    def _warm_up_is_heeded(self) -> TrainSettings:
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            raise ValueError(
                "lr_scheduler constant has no warm-up: use constant_with_warmup, "
                "or set lr_warmup_steps to 0"
            )
        return self

    @model_validator(mode="after")
    def _lora_has_its_section(self) -> TrainSettings:
        if self.method == "lora" and self.lora is None:
            raise ValueError("method is lora, but the section train.lora is missing or null")
        return self


class EvaluateSettings(Section):
    """How checkpoints are scored; equal for all rows that are compared."""

    suite: str = setting("Prompt suite: a shipped name (pocket, objects, live) or a text file.")
    images_per_prompt: PositiveInt = setting("Seeds per prompt.")
    num_class_prompt_images: PositiveInt = setting("Images of the class prompt, for PRES.")
    seed: NonNegativeInt = setting("Seed of the evaluation images.")
    num_inference_steps: PositiveInt = setting("Sampling steps of an evaluation image.")
    guidance_scale: NonNegativeFloat = setting("Guidance of the evaluation images.")
    sample_batch_size: PositiveInt = setting("Images per sampling batch (it changes bits).")
    clip: str = setting("CLIP scorer: hub id or folder.")
    dino: str = setting("DINO scorer: hub id or folder.")
    bootstrap_samples: PositiveInt = setting("Resamples of the 95 % intervals.")


class SelectSettings(Section):
    """The rule that chooses the best checkpoint within a run."""

    max_clip_t_loss: Fraction = setting("Tolerated loss of CLIP-T, as a part of the text range.")
    max_pres_gain: Fraction = setting(
        "Tolerated rise of PRES, as a part of the way from step 0 to the real photos."
    )


class RegistrySettings(Section):
    """Names in the model registry."""

    model_name_prefix: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")] = setting(
        "A subject's model is called <prefix>-<subject>."
    )


class RuntimeSettings(Section):
    """What never changes a result: logging, limits of time, sizes of tables."""

    log_every_steps: PositiveInt = setting("Metrics every so many updates.", effect=Effect.NONE)
    stop_grace_s: PositiveFloat = setting(
        "Seconds a stopped trainer has to save.", effect=Effect.NONE
    )
    keep_store_days: PositiveInt = setting("Age for `dreambooth clean`.", effect=Effect.NONE)
    keep_store_gib: PositiveFloat = setting("Size for `dreambooth clean`.", effect=Effect.NONE)


class Versions(Section):
    """The version of each stage's code: raised when its output moves, so old results are stale."""

    validate_: PositiveInt = setting("The data gate.", alias="validate")
    class_images: PositiveInt = setting("Class-image generation.")
    cache: PositiveInt = setting("The latent cache.")
    train: PositiveInt = setting("The training.")
    evaluate: PositiveInt = setting("The scores.")
    select: PositiveInt = setting("The selection.")
    register_: PositiveInt = setting("The registration.", alias="register")
    report: PositiveInt = setting("The page.")

    def of(self, stage: str) -> int:
        """The version of a stage, named as on the command line."""
        dumped: dict[str, int] = self.model_dump(by_alias=True)
        return dumped[stage.replace("-", "_")]


class SubjectSettings(Section):
    """One subject: its photos, its words, and its own values of other sections' fields."""

    instance_dir: str = setting("Folder of the instance images.")
    identifier: Word = setting("The rare word that is bound to the subject, such as sks.")
    class_noun: Word = setting("The ordinary word for it, such as dog.")
    prompts: str | None = setting("A prompt suite of its own; null: evaluate.suite.")
    overrides: dict[str, dict[str, Any]] = setting(
        "Fields of other sections with this subject's values: {train: {learning_rate: 1.0e-5}}."
    )

    @property
    def instance_prompt(self) -> str:
        """The prompt of the instance images (paper, section 3.2)."""
        return f"a photo of {self.identifier} {self.class_noun}"

    @property
    def class_prompt(self) -> str:
        """The prompt of the class images (paper, section 3.3)."""
        return f"a photo of {self.class_noun}"


_OVERRIDABLE = ("data", "prior", "train", "evaluate", "select")


class Settings(Section):
    """The whole of params.yaml. `for_subject` gives one subject's view with its overrides."""

    base_model: BaseModelSettings
    compute: ComputeSettings
    data: DataSettings
    prior: PriorSettings | None
    train: TrainSettings
    evaluate: EvaluateSettings
    select: SelectSettings
    registry: RegistrySettings
    runtime: RuntimeSettings
    versions: Versions
    subjects: dict[Name, SubjectSettings]


class SubjectView(Section):
    """The settings of one subject, its overrides applied: what stages are given."""

    name: str
    subject: SubjectSettings
    base_model: BaseModelSettings
    compute: ComputeSettings
    data: DataSettings
    prior: PriorSettings | None
    train: TrainSettings
    evaluate: EvaluateSettings
    select: SelectSettings
    registry: RegistrySettings
    runtime: RuntimeSettings
    versions: Versions

    @property
    def model_name(self) -> str:
        """The subject's registered model."""
        return f"{self.registry.model_name_prefix}-{self.name}"


_SUBJECT_WORDS = ("subject.identifier", "subject.class_noun")

STAGE_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "validate": ("data",),
    "class-images": (
        *("base_model", "compute", "data.resolution", "subject.class_noun"),
        *("prior.num_class_images", "prior.num_inference_steps", "prior.guidance_scale"),
        *("prior.sample_batch_size", "prior.seed"),
    ),
    "cache": (
        *("base_model", "compute", "data.resolution", "data.center_crop"),
        *("data.crops_per_image", "data.random_flip", *_SUBJECT_WORDS),
    ),
    "train": ("base_model", "compute", "prior.prior_loss_weight", "train", *_SUBJECT_WORDS),
    "evaluate": (
        *("base_model", "compute", "evaluate", "data.resolution"),
        *("subject.prompts", *_SUBJECT_WORDS),
    ),
    "select": ("select",),
    "register": ("registry", "base_model"),
    "report": (),
}
"""Which settings each stage reads (it reads its version and its subject's overrides besides)."""


def dvc_params(stage: str) -> list[str]:
    """The keys of params.yaml that `dvc.yaml` must list for a stage, in its `foreach` spelling.

    The section `prior` may be null, and DVC refuses keys that are not there: it is listed whole.
    """
    keys = {
        "prior" if key.startswith("prior.") else key.replace("subject.", "subjects.${key}.", 1)
        for key in STAGE_SETTINGS[stage]
    }
    if any(key.split(".")[0] in _OVERRIDABLE for key in keys):
        keys.add("subjects.${key}.overrides")
    return sorted({*keys, f"versions.{stage.replace('-', '_')}"})


def settings_of(view: SubjectView, stage: str) -> dict[str, Any]:
    """The RESULT fields that a stage reads, by dotted key: its part of the fingerprint."""
    values: dict[str, Any] = {f"versions.{stage}": view.versions.of(stage)}
    for key in STAGE_SETTINGS[stage]:
        values[key] = _result_fields(view, key)
    if stage == "train" and view.train.lr_scheduler == "constant":
        # 400 steps can become 800: with a constant rate no earlier step depends on the last.
        values["train"].pop("max_train_steps")
    return values


def _result_fields(view: SubjectView, key: str) -> Any:
    section: Any = view
    for part in key.split("."):
        if section is None:
            return None
        field = type(section).model_fields[part]
        if part != "subject" and effect_of(field) is not Effect.RESULT:
            return None
        section = getattr(section, part)
    return _without_other_effects(section) if isinstance(section, Section) else section


def effect_of(field: Any) -> Effect:
    """The Effect that a field is marked with."""
    return Effect((field.json_schema_extra or {}).get("effect", Effect.RESULT.value))


def _without_other_effects(section: Section) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if effect_of(field) is not Effect.RESULT:
            continue
        value = getattr(section, name)
        kept[name] = _without_other_effects(value) if isinstance(value, Section) else value
    return kept


# ---- loading ------------------------------------------------------------------------------------


def read_yaml(path: Path) -> Any:
    """The content of a YAML 1.2 file (so that 5e-6 is a number). Raises SettingsError."""
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"{path.name} does not exist in {path.parent}",
            hint="run from the project's folder, or write one with `dreambooth preset use pocket`",
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path.name} is not valid YAML", got=str(error)) from None


def load_settings(path: Path) -> Settings:
    """Read and check a settings file. Raises SettingsError with every error at once."""
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise SettingsError(f"{path.name} must hold sections", got=type(raw).__name__)
    problems = [*_problems(Settings, raw), *_override_problems(raw)]
    if problems:
        raise SettingsError("\n".join(f"{path.name}: {line}" for line in problems))
    return Settings.model_validate(raw)


def for_subject(settings: Settings, name: str) -> SubjectView:
    """One subject's view of the settings. Raises SettingsError for an unknown subject."""
    if name not in settings.subjects:
        raise SettingsError(
            f"no subject is called {name!r}",
            allowed=", ".join(sorted(settings.subjects)) or "none is there yet",
            hint=_nearest(name, settings.subjects) or "add one with `dreambooth subject add`",
        )
    subject = settings.subjects[name]
    merged = settings.model_dump(by_alias=True, exclude={"subjects"})
    for section, fields in subject.overrides.items():
        merged[section] = {**(merged[section] or {}), **fields}
    return SubjectView.model_validate({**merged, "name": name, "subject": subject})


def load_view(workspace: Workspace, subject: str) -> SubjectView:
    """The settings of `subject` as params.yaml holds them at this moment."""
    return for_subject(load_settings(workspace.params), subject)


def _problems(model: type[BaseModel], raw: Mapping[str, Any], at: str = "") -> list[str]:
    try:
        model.model_validate(raw)
    except ValidationError as error:
        return [_describe(model, dict(item), at) for item in error.errors()]
    return []


def _override_problems(raw: Mapping[str, Any]) -> list[str]:
    """Errors in the subjects' overrides, each with its dotted key."""
    problems: list[str] = []
    subjects = raw.get("subjects")
    for name, subject in subjects.items() if isinstance(subjects, dict) else ():
        overrides = subject.get("overrides") if isinstance(subject, dict) else None
        for section, fields in overrides.items() if isinstance(overrides, dict) else ():
            at = f"subjects.{name}.overrides.{section}"
            if section not in _OVERRIDABLE:
                hint = _nearest(str(section), _OVERRIDABLE)
                allowed = ", ".join(_OVERRIDABLE)
                problems.append(
                    f"{at}: not a section that a subject can override; {hint or allowed}"
                )
            elif isinstance(fields, dict):
                base = raw.get(section)
                merged = {**(base if isinstance(base, dict) else {}), **fields}
                model = _section_model(section)
                already = set(_problems(model, base)) if isinstance(base, dict) else set()
                found = [p for p in _problems(model, merged) if p not in already]
                problems += [f"{at}.{line}" for line in found]
    return problems


def _section_model(section: str) -> type[BaseModel]:
    annotation = Settings.model_fields[section].annotation
    candidates = [annotation, *get_args(annotation)]
    return next(c for c in candidates if isinstance(c, type) and issubclass(c, Section))


def _describe(model: type[BaseModel], error: dict[str, Any], at: str) -> str:
    """One line: dotted key, what is wrong, what was found, and the nearest known name."""
    location = [str(part) for part in error["loc"]]
    key = ".".join([at, *location] if at else location)
    if error["type"] == "extra_forbidden":
        known = _known_names(model, location[:-1])
        hint = _nearest(location[-1], known) or f"known here: {', '.join(sorted(known))}"
        return f"{key}: unknown setting; {hint}"
    if error["type"] == "missing":
        return f"{key}: missing; add it (presets/ holds complete files to copy from)"
    message = error["msg"].removeprefix("Value error, ")
    found = error.get("input")
    return (
        f"{key}: {message}, found {found!r}" if not isinstance(found, dict) else f"{key}: {message}"
    )


def _known_names(model: type[BaseModel], location: Iterable[str]) -> set[str]:
    """Field names of the section at `location` below `model`."""
    current = model
    for part in location:
        field = current.model_fields.get(part)
        if field is None:
            continue  # a subject's own name: its fields follow
        annotation = field.annotation
        nested = [annotation, *get_args(annotation)]
        models = [c for c in nested if isinstance(c, type) and issubclass(c, BaseModel)]
        if models:
            current = models[0]
    return {field.alias or name for name, field in current.model_fields.items()}


def _nearest(name: str, known: Iterable[str]) -> str | None:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {match[0]}?" if match else None


def main(argv: list[str]) -> int:
    """Check settings files (for the pre-commit hook). 0: all good; 2: errors were printed."""
    for name in argv:
        try:
            load_settings(Path(name))
        except SettingsError as error:
            sys.stderr.write(f"{error}\n")
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
