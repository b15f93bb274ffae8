"""The sections of params.yaml: every setting with its limits and its effect.

Only settings that can be off have a default. RESULT fields are part of the fingerprint of the
stages that read them. OUTPUT fields select what is published, not how it is computed. NONE fields
change neither; only the section `runtime` may have them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from dreambooth_core.config import compatibility, words
from dreambooth_core.config.fields import Beta, Effect, Fraction, Section, setting
from dreambooth_core.config.judging import Choice, CompareSettings
from dreambooth_core.config.runtime import RuntimeSettings


class BaseModelSettings(Section):
    """The pretrained pipeline to fine-tune."""

    pretrained_model_name_or_path: str = setting("Hub id, or folder of a saved pipeline.")
    revision: str | None = setting("Commit, tag or branch of a hub id.", default=None)
    variant: str | None = setting("Variant of the weight files, such as fp16.", default=None)


class ComputeSettings(Section):
    """The hardware and kernels. They affect the bits of every result."""

    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto uses the GPU if there is one, otherwise the CPU."
    )
    num_threads: PositiveInt = setting("CPU threads per stage process.")
    deterministic: bool = setting("Use only deterministic kernels: repeatable, but often slower.")


class DataSettings(Section):
    """The checks of the photos, and their transform to training images."""

    resolution: PositiveInt = setting(
        "Side of all images in pixels: 512 for SD 1.x, 1024 for SDXL."
    )
    center_crop: bool = setting("Crop the centre. If false, cache crops_per_image random crops.")
    crops_per_image: PositiveInt = setting("Random crops per photo if center_crop is false.")
    random_flip: bool = setting("Also train on mirrored photos. Turn off for text or logos.")
    captions: bool = setting(
        "Use one caption per photo, from photo.txt next to it or from metadata.jsonl.",
        default=False,
    )
    caption_rate: Annotated[float, Field(gt=0, le=1)] = setting(
        "Share of the training rows that use their photo's caption; the others use the instance "
        "prompt. 1: all.",
        default=1.0,
    )
    masks: Literal["files", "auto"] | None = setting(
        "Learn the subject alone, not its background: where masks/photo.png or alpha say it is "
        "(files), or where the base model sees it (auto). Null learns whole photos.",
        default=None,
    )
    background: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = setting(
        "Colour behind transparent pixels, such as #ffffff."
    )
    min_side: PositiveInt = setting("Reject photos whose shorter side has fewer pixels.")
    max_megapixels: Annotated[float, Field(gt=0, le=178)] = setting(
        "Reject larger photos without decoding them. Pillow's own limit is 178."
    )
    near_duplicate_distance: NonNegativeInt = setting(
        "Reject near duplicates: 64-bit perceptual hashes that differ in at most N bits."
    )
    min_contrast: NonNegativeFloat = setting(
        "Reject blank photos: a smaller standard deviation of the grey levels (0 to 255)."
    )
    blur_threshold: NonNegativeFloat = setting(
        "Warn about blurry photos: a smaller variance of the Laplacian. Raise it to be stricter."
    )
    max_aspect_ratio: Annotated[float, Field(ge=1)] = setting(
        "Warn about photos with a larger ratio of long side to short side."
    )
    min_photos: PositiveInt = setting("Warn if fewer photos are accepted.")
    max_photos: PositiveInt = setting("Warn if more photos are accepted.")

    @model_validator(mode="wrap")
    @classmethod
    def _check_rules(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        return compatibility.check(cls, values, handler, compatibility.DATA_RULES)


Solver = Literal["dpm++"]


class PriorSettings(Section):
    """Prior preservation: class images keep the model from forgetting the class. Null: off."""

    prior_loss_weight: NonNegativeFloat = setting("Weight of the class images' loss; 1 is usual.")
    num_class_images: PositiveInt = setting(
        "Number of class images. The guide recommends 200 to 300.", effect=Effect.OUTPUT
    )
    solver: Solver | None = setting(
        "Sampler of the class images: dpm++ (DPM-Solver++ 2M), or null for the base model's own.",
        default=None,
    )
    num_inference_steps: PositiveInt = setting("Sampling steps per class image: more take longer.")
    guidance_scale: NonNegativeFloat = setting(
        "Guidance scale: how closely images follow the prompt."
    )
    sample_batch_size: PositiveInt = setting(
        "Class images generated at once. Lower it to save memory; it changes the pixels slightly."
    )
    seed: NonNegativeInt = setting("Seed of the class images. Each image derives its own.")


class LoraSettings(Section):
    """Low-rank adapters, instead of training all weights."""

    rank: PositiveInt = setting("Rank of the adapters. A higher rank has more capacity.")
    lora_alpha: PositiveFloat = setting("Scale of the adapters: their output times alpha / rank.")
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = setting(
        "Dropout on the adapters' input; 0 disables it."
    )
    lora_layers: tuple[str, ...] = setting("U-Net layers that get an adapter, by name ending.")
    text_encoder_layers: tuple[str, ...] = setting(
        "Text encoder layers that get an adapter, if trained.",
        default=("q_proj", "k_proj", "v_proj", "out_proj"),
    )
    use_dora: bool = setting("Use DoRA: also train the weights' magnitudes.", default=False)
    learning_rate: PositiveFloat | None = setting(
        "Peak learning rate of the adapters. Null uses train.learning_rate.", default=None
    )


LrScheduler = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]


WeightDtype = Literal["fp32", "bf16"]
Optimizer = Literal["adamw", "adafactor"]
Strategy = Literal["single", "ddp", "deepspeed", "fsdp"]


class TrainSettings(Section):
    """The training run. Fields have the names of the guide's flags."""

    method: Literal["full", "lora"] = setting("Train all weights (full), or LoRA adapters.")
    train_text_encoder: bool = setting("Also train the text encoders.", default=False)
    init_from: words.Weights | None = setting(
        "Start from models:/NAME@champion, or a checkpoint's folder. Null: from the base model.",
        default=None,
    )
    learning_rate: PositiveFloat = setting("Peak learning rate. Lower it if training diverges.")
    text_encoder_lr: PositiveFloat | None = setting(
        "Peak learning rate of the text encoders. Null uses learning_rate.", default=None
    )
    text_encoder_stop_step: PositiveInt | None = setting(
        "Freeze the text encoders after N steps. Null trains them to the end.", default=None
    )
    max_train_steps: PositiveInt = setting("Number of training steps. Too many overfit.")
    checkpointing_steps: PositiveInt = setting(
        "Save and score a checkpoint every N steps.", effect=Effect.OUTPUT
    )
    train_batch_size: PositiveInt = setting("Photos per process and micro-step.")
    gradient_accumulation_steps: PositiveInt = setting(
        "Micro-steps per step. Raise it for a larger batch in the same memory."
    )
    lr_scheduler: LrScheduler = setting("Course of the learning rate over the steps.")
    lr_warmup_steps: NonNegativeInt = setting("Steps of linear warm-up; 0 with `constant`.")
    lr_num_cycles: PositiveInt = setting("Cycles of the schedule cosine_with_restarts.", default=1)
    lr_power: PositiveFloat = setting("Exponent of the schedule polynomial.", default=1.0)
    optimizer: Optimizer = setting("AdamW, or Adafactor to save memory.", default="adamw")
    use_8bit_adam: bool = setting("Store AdamW's state in 8 bits (bitsandbytes).", default=False)
    adam_beta1: Beta = setting("AdamW beta 1: decay of the gradients' average.")
    adam_beta2: Beta = setting("AdamW beta 2: decay of the squared gradients' average.")
    adam_weight_decay: NonNegativeFloat = setting("Decoupled weight decay of the optimizer.")
    adam_epsilon: PositiveFloat = setting("AdamW epsilon, for numerical stability.")
    max_grad_norm: PositiveFloat | None = setting(
        "Clip the norm of all gradients to this value. Null disables clipping."
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = setting(
        "Compute type: fp32 (no), bf16 or fp16. bf16 is the safer choice if the GPU supports it."
    )
    weight_dtype: WeightDtype = setting(
        "Type of the trained weights. bf16 halves their memory and uses stochastic rounding.",
        default="fp32",
    )
    allow_tf32: bool = setting("Use TF32 for fp32 on a GPU: faster, less exact.", default=False)
    gradient_checkpointing: bool = setting("Save memory by recomputing activations; slower.")
    fused_backward: bool = setting(
        "Save memory: update each weight during the backward pass and free its gradient.",
        default=False,
    )
    enable_xformers_memory_efficient_attention: bool = setting(
        "Use xFormers for attention instead of PyTorch's SDPA.", default=False
    )
    compile_blocks: bool = setting(
        "Compile the U-Net's blocks with torch.compile. Pays off only in long runs.",
        default=False,
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = setting(
        "Publish an exponential moving average of the weights, often 0.999. Null disables it.",
        default=None,
    )
    snr_gamma: PositiveFloat | None = setting(
        "Gamma of min-SNR loss weighting, often 5. Null disables it.", default=None
    )
    offset_noise: NonNegativeFloat = setting(
        "Strength of offset noise, often 0.1, for very dark and bright images; 0: none.",
        default=0.0,
    )
    seed: NonNegativeInt = setting("Seed of the order of photos, crops, noise and timesteps.")
    lora: LoraSettings | None = setting(
        "LoRA adapters. Required if method is lora, otherwise without effect.", default=None
    )
    num_processes: PositiveInt = setting("Processes on all machines together, one per GPU.")
    accelerate_config: str | None = setting(
        "Launch file in infra/accelerate, without .yaml. Null launches on this machine only.",
        default=None,
    )
    strategy: Strategy | None = setting(
        "How an update runs. Must match the launch; null derives it.", default=None
    )
    checkpoints_total_limit: PositiveInt = setting(
        "Number of resume states to keep.", effect=Effect.OUTPUT
    )

    @property
    def uses_fused_adamw(self) -> bool:
        """Whether torch's fused AdamW updates all weights at once after the backward pass."""
        is_plain = self.weight_dtype == "fp32" and not (self.use_8bit_adam or self.fused_backward)
        return self.optimizer == "adamw" and is_plain

    @property
    def peak_rate(self) -> float:
        """The peak learning rate: the adapters' own if set, otherwise `learning_rate`."""
        own = self.lora.learning_rate if self.method == "lora" and self.lora else None
        return own or self.learning_rate

    @model_validator(mode="wrap")
    @classmethod
    def _check_rules(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        return compatibility.check(cls, values, handler, compatibility.TRAIN_RULES)


class EvaluateSettings(Section):
    """How checkpoints are scored. Only scores with equal settings are comparable."""

    suite: str = setting("Prompt suite: pocket, objects, live, or the path of a text file.")
    images_per_prompt: PositiveInt = setting(
        "Images per prompt, one per round of scoring; at least 32 images per complete row. "
        "More narrow the intervals."
    )
    racing: bool = setting(
        "Draw further rounds of images only for checkpoints that can still be selected.",
        default=False,
    )
    num_class_prompt_images: PositiveInt = setting("Images of the class prompt, for PRES.")
    seed: NonNegativeInt = setting("Seed of the evaluation images.")
    num_inference_steps: PositiveInt = setting("Sampling steps per evaluation image.")
    guidance_scale: NonNegativeFloat = setting(
        "Guidance scale: how closely images follow the prompt."
    )
    sample_batch_size: PositiveInt = setting(
        "Images generated at once. Lower it to save memory; it changes the pixels slightly."
    )
    clip: str = setting("CLIP model for the scores: hub id or folder.")
    dino: str = setting("DINO model for the scores: hub id or folder.")
    bootstrap_samples: PositiveInt = setting("Bootstrap resamples for the 95 % intervals.")


class SelectSettings(Section):
    """The rule that selects the best checkpoint of a run."""

    max_clip_t_loss: Fraction = setting("Accepted loss of CLIP-T, as a fraction of the text range.")
    max_pres_gain: Fraction = setting(
        "Accepted gain of PRES, as a fraction of the distance from step 0 to the real photos."
    )
    early_stopping_patience: PositiveInt | None = setting(
        "Score checkpoints during the training, and stop it after this many without a gain. "
        "Null trains to the last step.",
        default=None,
    )


class RegistrySettings(Section):
    """Names in the model registry."""

    model_name_prefix: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=60)] = setting(
        "Models are registered as PREFIX-SUBJECT."
    )


class Versions(Section):
    """The version of each stage's code. A change of its output raises it; old results are stale."""

    validate_: PositiveInt = setting("Version of the code of the data gate.", alias="validate")
    class_images: PositiveInt = setting("Version of the code of class image generation.")
    cache: PositiveInt = setting("Version of the code of the latent cache.")
    train: PositiveInt = setting("Version of the code of training.")
    evaluate: PositiveInt = setting("Version of the code of scoring.")
    select: PositiveInt = setting("Version of the code of checkpoint selection.")
    confirm: PositiveInt = setting("Version of the code of the confirmation on fresh seeds.")
    register_: PositiveInt = setting("Version of the code of registration.", alias="register")
    report: PositiveInt = setting("Version of the code of the run page.")

    def of(self, stage: str) -> int:
        """The version of a stage by its name on the command line."""
        dumped: dict[str, int] = self.model_dump(by_alias=True)
        return dumped[stage.replace("-", "_")]


class SubjectSettings(Section):
    """One subject: its photos, its words, and its overrides of other sections."""

    instance_dir: words.PhotoFolder = setting("Folder of the subject's photos.")
    identifier: words.Identifier = setting(
        "One rare word that stands for the subject, such as sks."
    )
    class_noun: words.Noun = setting("Ordinary word or words for its class, such as dog.")
    prompts: words.SuitePath | None = setting(
        "Prompt suite of this subject. Null uses evaluate.suite."
    )
    overrides: dict[str, dict[str, Any]] = setting(
        "This subject's values for other sections, such as {train: {learning_rate: 1.0e-5}}."
    )
    choice: Choice | None = setting(
        "Checkpoint chosen by hand; `dreambooth choose` writes it. Null: the rule selects.",
        default=None,
    )

    @property
    def instance_prompt(self) -> str:
        """The prompt of the instance images (paper, section 3.2)."""
        return f"a photo of {self.identifier} {self.class_noun}".rstrip()

    @property
    def class_prompt(self) -> str:
        """The prompt of the class images (paper, section 3.3)."""
        return f"a photo of {self.class_noun}".rstrip()


OVERRIDABLE = ("data", "prior", "train", "evaluate", "select")


class _SharedSettings(Section):
    """The sections that hold for every subject."""

    base_model: BaseModelSettings
    compute: ComputeSettings
    data: DataSettings
    prior: PriorSettings | None
    train: TrainSettings
    evaluate: EvaluateSettings
    select: SelectSettings
    compare: CompareSettings = CompareSettings()
    registry: RegistrySettings
    runtime: RuntimeSettings
    versions: Versions


class Settings(_SharedSettings):
    """The content of params.yaml. `for_subject` returns the settings of one subject."""

    subjects: Annotated[dict[words.Name, SubjectSettings], AfterValidator(words.check_distinct)] = (
        Field(description="The subjects by name: photos, words, overrides.")
    )


class SubjectView(_SharedSettings):
    """The settings of one subject with its overrides applied, for the stages."""

    name: str
    subject: SubjectSettings

    @property
    def model_name(self) -> str:
        """The name of the subject's registered model."""
        return f"{self.registry.model_name_prefix}-{self.name}"
