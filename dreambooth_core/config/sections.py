"""The sections of params.yaml: every option, its limits, and what it affects.

A default exists only where it means "off". Each field is marked with its Effect: RESULT fields are
part of the fingerprint of the stages that read them; OUTPUT fields choose what is published, not
how it is made; NONE fields change neither and may stand only in the section `runtime`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from dreambooth_core.config import compatibility


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
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
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
    captions: bool = setting(
        "Train each photo on its own caption (photo.txt beside it, or metadata.jsonl).",
        default=False,
    )
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

    @model_validator(mode="wrap")
    @classmethod
    def _check_rules(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        return compatibility.check(cls, values, handler, compatibility.DATA_RULES)


Solver = Literal["dpm++"]


class PriorSettings(Section):
    """Prior preservation: class images and their weight in the loss."""

    prior_loss_weight: NonNegativeFloat = setting("Lambda in L = E[instance] + lambda E[class].")
    num_class_images: PositiveInt = setting("How many class images.", effect=Effect.OUTPUT)
    solver: Solver | None = setting(
        "Sampler of the class images: dpm++ (DPM-Solver++ 2M); null: the base model's own.",
        default=None,
    )
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
    text_encoder_layers: tuple[str, ...] = setting(
        "The same for the text encoder's, when train_text_encoder is on.",
        default=("q_proj", "k_proj", "v_proj", "out_proj"),
    )
    use_dora: bool = setting(
        "Also train the length of each row of the updated weights (DoRA).", default=False
    )
    learning_rate: PositiveFloat | None = setting(
        "Peak learning rate of the adapters; null: train.learning_rate.", default=None
    )


LrScheduler = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]


WeightDtype = Literal["fp32", "bf16"]
Optimizer = Literal["adamw", "adafactor"]
Strategy = Literal["single", "ddp", "deepspeed", "fsdp"]


class TrainSettings(Section):
    """The training run; names are those of the seed's command line."""

    method: Literal["full", "lora"] = setting("Fine-tune whole networks, or LoRA adapters.")
    train_text_encoder: bool = setting("Train the text encoder(s) as well.", default=False)
    learning_rate: PositiveFloat = setting("Peak learning rate.")
    text_encoder_lr: PositiveFloat | None = setting(
        "Peak learning rate of the text encoder; null: learning_rate.", default=None
    )
    text_encoder_stop_step: PositiveInt | None = setting(
        "Train the text encoder for so many updates only; null: to the end.", default=None
    )
    max_train_steps: PositiveInt = setting("Optimizer updates.")
    checkpointing_steps: PositiveInt = setting("Publish every so many.", effect=Effect.OUTPUT)
    train_batch_size: PositiveInt = setting("Instance images per device and micro-step.")
    gradient_accumulation_steps: PositiveInt = setting("Micro-steps per optimizer update.")
    lr_scheduler: LrScheduler = setting("Shape of the learning rate over the updates.")
    lr_warmup_steps: NonNegativeInt = setting("Updates of linear warm-up.")
    lr_num_cycles: PositiveInt = setting("Restarts of cosine_with_restarts.", default=1)
    lr_power: PositiveFloat = setting("Power of polynomial.", default=1.0)
    optimizer: Optimizer = setting("adamw, or adafactor (factored state).", default="adamw")
    use_8bit_adam: bool = setting("Keep AdamW's moments in 8 bits.", default=False)
    adam_beta1: Beta = setting("AdamW beta 1.")
    adam_beta2: Beta = setting("AdamW beta 2.")
    adam_weight_decay: NonNegativeFloat = setting("AdamW decoupled weight decay.")
    adam_epsilon: PositiveFloat = setting("AdamW epsilon.")
    max_grad_norm: PositiveFloat | None = setting("Clip the global gradient norm; null: never.")
    mixed_precision: Literal["no", "bf16", "fp16"] = setting("Compute type of the networks.")
    weight_dtype: WeightDtype = setting(
        "Type of the trained weights; bf16: updated with stochastic rounding, no fp32 copy.",
        default="fp32",
    )
    allow_tf32: bool = setting("Let a GPU multiply fp32 matrices in TF32.", default=False)
    gradient_checkpointing: bool = setting("Recompute activations to save memory.")
    fused_backward: bool = setting(
        "Update each weight inside the backward pass and free its gradient at once.", default=False
    )
    enable_xformers_memory_efficient_attention: bool = setting(
        "Attention by xFormers instead of torch's own SDPA.", default=False
    )
    compile_blocks: bool = setting(
        "Compile the U-Net's repeated blocks; pays after as many steps as benchmarks/compiling.py "
        "measures.",
        default=False,
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = setting(
        "Publish an exponential moving average of the weights; null: off.", default=None
    )
    snr_gamma: PositiveFloat | None = setting("min-SNR gamma; null: off.", default=None)
    offset_noise: NonNegativeFloat = setting("Strength of offset noise; 0: off.", default=0.0)
    seed: NonNegativeInt = setting("Seed of sample, crop, noise and timestep.")
    lora: LoraSettings | None = setting("Adapters; needed when method is lora.", default=None)
    num_processes: PositiveInt = setting("Processes that accelerate launches.")
    accelerate_config: str | None = setting(
        "Launch with this file of infra/accelerate (its name without .yaml); null: one machine.",
        default=None,
    )
    strategy: Strategy | None = setting(
        "How processes share the training: single, ddp, deepspeed or fsdp; null: as "
        "accelerate_config and num_processes imply.",
        default=None,
    )
    checkpoints_total_limit: PositiveInt = setting("Resume states kept.", effect=Effect.OUTPUT)

    @property
    def uses_fused_adamw(self) -> bool:
        """Whether torch's fused AdamW updates all weights at once, after the backward pass."""
        is_plain = self.weight_dtype == "fp32" and not (self.use_8bit_adam or self.fused_backward)
        return self.optimizer == "adamw" and is_plain

    @property
    def peak_rate(self) -> float:
        """The peak learning rate of the method: adapters may have their own."""
        own = self.lora.learning_rate if self.method == "lora" and self.lora else None
        return own or self.learning_rate

    @model_validator(mode="wrap")
    @classmethod
    def _check_rules(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        return compatibility.check(cls, values, handler, compatibility.TRAIN_RULES)


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
        "Seconds a stopped trainer has to save (async_checkpointing: twice).", effect=Effect.NONE
    )
    async_checkpointing: bool = setting(
        "Write checkpoints while the updates go on; a kill may cost twice checkpointing_steps.",
        effect=Effect.NONE,
        default=False,
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


OVERRIDABLE = ("data", "prior", "train", "evaluate", "select")


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
