"""The flags of each script: names, types, defaults and limits. Torch-free.

Names, meanings and defaults match the guide's scripts, so that its commands run as printed. A flag
with the name of a setting of params.yaml means the same; `TrainSettings` defines its limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from dreambooth_core.config import Beta, Fraction, LrScheduler, Section

Tracker = Literal["tensorboard", "wandb", "comet_ml", "all", "none"]
Resolution = Annotated[int, Field(ge=8)]
"""In pixels; the VAE encodes 8 x 8 of them as one latent."""


_OUTPUT_DIR = "Folder of the checkpoints and the result."
_PATHS = (
    *("pretrained_model_name_or_path", "instance_data_dir", "class_data_dir"),
    *("output_dir", "logging_dir", "tokenizer_name"),
)
_LEARNING_RATE = "Peak learning rate. Lower it if training diverges."
_RESOLUTION = "Side of the square training images, in pixels."
_OFFSET_NOISE = "Add offset noise of strength 0.1."
_SNR_GAMMA = "Gamma of min-SNR loss weighting, often 5. Default: no weighting."
_VALIDATION_STEPS = "Generate validation images every N steps."


def flag(doc: str, **kwargs: Any) -> Any:
    """A flag with its help text. Without `default=` it is required."""
    return Field(description=doc, **kwargs)


class ScriptFlags(Section):
    """The flags that all scripts share."""

    model_config = ConfigDict(allow_inf_nan=False)

    pretrained_model_name_or_path: str = flag("Base model: hub id, or folder of a saved pipeline.")
    revision: str | None = flag("Commit, tag or branch of a hub id.", default=None)
    variant: str | None = flag("Variant of the weight files, such as fp16.", default=None)
    instance_data_dir: str = flag("Folder with photos of the subject.")
    class_data_dir: str | None = flag(
        "Folder of the class images. Missing images are generated.", default=None
    )
    instance_prompt: str = flag("Prompt of the photos, such as 'a photo of sks dog'.")
    class_prompt: str | None = flag(
        "Prompt of the class images, such as 'a photo of dog'.", default=None
    )
    with_prior_preservation: bool = flag(
        "Also train on images of the class, to prevent overfitting and language drift.",
        default=False,
    )
    prior_loss_weight: NonNegativeFloat = flag("Weight of the class images' loss.", default=1.0)
    num_class_images: PositiveInt = flag("Number of class images to use.", default=100)
    prior_generation_precision: Literal["no", "fp32", "fp16", "bf16"] | None = flag(
        "Compute type of class image generation. Default: fp16 on a GPU, fp32 otherwise.",
        default=None,
    )
    sample_batch_size: PositiveInt = flag(
        "Class images generated at once. Lower it to save memory.", default=4
    )
    output_dir: str = flag(_OUTPUT_DIR, default="dreambooth-model")
    seed: NonNegativeInt | None = flag(
        "Seed for reproducible training. Default: a random seed, which is logged.", default=None
    )
    resolution: Resolution = flag(_RESOLUTION, default=512)
    center_crop: bool = flag("Crop photos at the centre instead of randomly.", default=False)
    train_text_encoder: bool = flag("Also train the text encoders.", default=False)
    train_batch_size: PositiveInt = flag("Photos per process and micro-step.", default=4)
    num_train_epochs: PositiveInt = flag(
        "Number of epochs. Ignored if --max_train_steps is set.", default=1
    )
    max_train_steps: PositiveInt | None = flag(
        "Number of training steps (optimizer updates). Default: --num_train_epochs decides.",
        default=None,
    )
    checkpointing_steps: PositiveInt = flag("Save a checkpoint every N steps.", default=500)
    checkpoints_total_limit: PositiveInt | None = flag(
        "Number of checkpoints to keep. Default: all.", default=None
    )
    resume_from_checkpoint: str | None = flag(
        "Resume from a checkpoint of output_dir: its name, or latest.", default=None
    )
    gradient_accumulation_steps: PositiveInt = flag(
        "Micro-steps per step. Raise it for a larger batch in the same memory.", default=1
    )
    gradient_checkpointing: bool = flag(
        "Save memory by recomputing activations. Training is slower.", default=False
    )
    learning_rate: PositiveFloat = flag(_LEARNING_RATE, default=5e-6)
    scale_lr: bool = flag(
        "Multiply the learning rate by the number of processes, the accumulation steps and the "
        "batch size.",
        default=False,
    )
    lr_scheduler: LrScheduler = flag("Learning rate schedule.", default="constant")
    lr_warmup_steps: NonNegativeInt = flag(
        "Steps of linear warm-up. No effect with the constant schedule.", default=500
    )
    lr_num_cycles: PositiveInt = flag("Cycles of cosine_with_restarts.", default=1)
    lr_power: PositiveFloat = flag("Exponent of the polynomial schedule.", default=1.0)
    use_8bit_adam: bool = flag(
        "Save memory by storing AdamW's state in 8 bits. Needs bitsandbytes.", default=False
    )
    adam_beta1: Beta = flag("AdamW beta 1: decay of the gradients' average.", default=0.9)
    adam_beta2: Beta = flag("AdamW beta 2: decay of the squared gradients' average.", default=0.999)
    adam_weight_decay: NonNegativeFloat = flag("Decoupled weight decay.", default=1e-2)
    adam_epsilon: PositiveFloat = flag("AdamW epsilon, for numerical stability.", default=1e-8)
    max_grad_norm: PositiveFloat = flag(
        "Clip the norm of all gradients to this value.", default=1.0
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = flag(
        "Compute type; no means fp32. Default: that of `accelerate config`.", default=None
    )
    allow_tf32: bool = flag("Use TF32 for fp32 on a GPU: faster, less exact.", default=False)
    enable_xformers_memory_efficient_attention: bool = flag(
        "Use xFormers for attention instead of PyTorch's SDPA. Needs xformers.", default=False
    )
    validation_prompt: str | None = flag(
        "Generate validation images of this prompt during training.", default=None
    )
    num_validation_images: PositiveInt = flag("Images per validation.", default=4)
    report_to: Tracker = flag("Tracker for curves and validation images.", default="tensorboard")
    logging_dir: str = flag("Folder of the tracker's files, inside output_dir.", default="logs")
    push_to_hub: bool = flag("Upload the result to the hub.", default=False)
    hub_token: str | None = flag(
        "Access token of the hub. Prefer `hf auth login`, which keeps it out of the shell's "
        "history.",
        default=None,
    )
    hub_model_id: str | None = flag(
        "Repository to upload to. Default: the name of output_dir.", default=None
    )
    dataloader_num_workers: NonNegativeInt = flag(
        "No effect: training reads cached latents, not images.", default=0
    )
    local_rank: int = flag("No effect: the launcher sets the rank in the environment.", default=-1)

    @field_validator(*_PATHS, check_fields=False)
    @classmethod
    def _not_empty(cls, path: str | None) -> str | None:
        """An empty path would mean the current folder."""
        if path is not None and not path.strip():
            raise ValueError("the path is empty")
        return path


class _SdFlags(ScriptFlags):
    """The flags of the scripts for Stable Diffusion 1.x and 2.x."""

    tokenizer_name: str | None = flag(
        "Tokenizer: hub id or folder. Default: the model's own.", default=None
    )
    pre_compute_text_embeddings: bool = flag(
        "No effect: text embeddings are always precomputed if the text encoder is not trained.",
        default=False,
    )
    tokenizer_max_length: PositiveInt | None = flag(
        "Maximum number of tokens per prompt. Default: the tokenizer's limit.", default=None
    )
    text_encoder_use_attention_mask: bool = flag(
        "Mask padding tokens in the text encoder.", default=False
    )
    text_encoder_lr: PositiveFloat | None = flag(
        "Peak learning rate of the text encoder. Default: --learning_rate.", default=None
    )


class DreamBoothFlags(_SdFlags):
    """train_dreambooth.py: train all weights of the U-Net, and optionally of the text encoder."""

    set_grads_to_none: bool = flag("No effect: gradients are always set to None.", default=False)
    offset_noise: bool = flag(_OFFSET_NOISE, default=False)
    snr_gamma: PositiveFloat | None = flag(_SNR_GAMMA, default=None)
    validation_steps: PositiveInt = flag(_VALIDATION_STEPS, default=100)
    validation_scheduler: Literal["DPMSolverMultistepScheduler", "DDPMScheduler"] = flag(
        "Sampler of the validation images.", default="DPMSolverMultistepScheduler"
    )
    skip_save_text_encoder: bool = flag("Save the result without text encoder.", default=False)


class _LoraFlags(Section):
    """The flags of the LoRA scripts."""

    rank: PositiveInt = flag("Rank of the adapters. A higher rank has more capacity.", default=4)
    lora_alpha: PositiveFloat | None = flag(
        "Scale of the adapters: their output times alpha / rank. Default: the rank.", default=None
    )
    lora_dropout: Fraction = flag("Dropout on the adapters' input.", default=0.0)
    lora_layers: str = flag(
        "U-Net layers that get an adapter, separated by commas.",
        default="to_k,to_q,to_v,to_out.0",
    )
    validation_epochs: PositiveInt = flag(
        "Generate validation images after the first epoch, every N epochs from then on, and at "
        "the end.",
        default=50,
    )
    image_interpolation_mode: Literal["lanczos", "bilinear"] = flag(
        "No effect: photos are always resized with antialiased bilinear filtering.",
        default="lanczos",
    )


class DreamBoothLoraFlags(_SdFlags, _LoraFlags):
    """train_dreambooth_lora.py: train adapters of the U-Net, optionally of the text encoder."""

    output_dir: str = flag(_OUTPUT_DIR, default="lora-dreambooth-model")
    learning_rate: PositiveFloat = flag(_LEARNING_RATE, default=5e-4)


class DreamBoothLoraSdxlFlags(ScriptFlags, _LoraFlags):
    """train_dreambooth_lora_sdxl.py: train adapters of Stable Diffusion XL."""

    output_dir: str = flag(_OUTPUT_DIR, default="lora-dreambooth-model")
    resolution: Resolution = flag(_RESOLUTION, default=1024)
    learning_rate: PositiveFloat = flag(_LEARNING_RATE, default=1e-4)
    text_encoder_lr: PositiveFloat = flag("Peak learning rate of the text encoders.", default=5e-6)
    adam_weight_decay: NonNegativeFloat = flag("Decoupled weight decay.", default=1e-4)
    snr_gamma: PositiveFloat | None = flag(_SNR_GAMMA, default=None)
    random_flip: bool = flag("Also train on mirrored photos.", default=False)
    repeats: PositiveInt = flag("How often an epoch repeats each photo.", default=1)
    use_dora: bool = flag("Use DoRA: also train the weights' magnitudes.", default=False)
    optimizer: Literal["AdamW", "adamw", "adamW"] = flag("Only AdamW.", default="AdamW")
    output_kohya_format: bool = flag("Also save the adapter in kohya's format.", default=False)


class DreamBoothFlaxFlags(_SdFlags):
    """train_dreambooth_flax.py: train all weights with JAX, on all devices of this host."""

    output_dir: str = flag(_OUTPUT_DIR, default="text-inversion-model")
    seed: NonNegativeInt | None = flag("Seed for reproducible training.", default=0)
    save_steps: PositiveInt | None = flag("Alias of --checkpointing_steps.", default=None)
    offset_noise: bool = flag(_OFFSET_NOISE, default=False)
    snr_gamma: PositiveFloat | None = flag(_SNR_GAMMA, default=None)
    validation_steps: PositiveInt = flag(_VALIDATION_STEPS, default=100)

    @model_validator(mode="before")
    @classmethod
    def _save_steps_count(cls, values: dict[str, Any]) -> dict[str, Any]:
        if "save_steps" in values:
            return {**values, "checkpointing_steps": values["save_steps"]}
        return values


_IF_ONLY = "it belongs to DeepFloyd IF, which these scripts do not train"
_HUB_DATA = "save the photos to a folder and pass it as --instance_data_dir"
_OWN_VAE = (
    "omit it: the model's own VAE encodes photos in fp32, and a VAE fixed for fp16 is needed only "
    "to sample in fp16; to train with another VAE, save the pipeline with it and pass that folder "
    "as --pretrained_model_name_or_path"
)
TRACKER_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet_ml": "comet_ml"}
"""The trackers of --report_to, and the package that each needs."""
_PRODIGY = "AdamW is the only optimizer"
_IF_FLAGS = {"validation_images": _IF_ONLY, "class_labels_conditioning": _IF_ONLY}


@dataclass(frozen=True)
class Script:
    """One script: its name, flags and method, and the flags that it refuses, with the reason."""

    name: str
    flags: type[ScriptFlags]
    method: Literal["full", "lora"]
    refused: Mapping[str, str]
    engine: Literal["torch", "jax"] = "torch"


DREAMBOOTH = Script(
    name="train_dreambooth.py",
    flags=DreamBoothFlags,
    method="full",
    refused=_IF_FLAGS,
)
DREAMBOOTH_FLAX = Script(
    name="train_dreambooth_flax.py",
    flags=DreamBoothFlaxFlags,
    method="full",
    refused={"pretrained_vae_name_or_path": _OWN_VAE},
    engine="jax",
)
DREAMBOOTH_LORA = Script(
    name="train_dreambooth_lora.py",
    flags=DreamBoothLoraFlags,
    method="lora",
    refused=_IF_FLAGS,
)
DREAMBOOTH_LORA_SDXL = Script(
    name="train_dreambooth_lora_sdxl.py",
    flags=DreamBoothLoraSdxlFlags,
    method="lora",
    refused={
        **dict.fromkeys(("dataset_name", "dataset_config_name", "image_column"), _HUB_DATA),
        "caption_column": "per-image captions are a setting of params.yaml: data.captions",
        "cache_dir": "set HF_HOME in the environment",
        "pretrained_vae_model_name_or_path": _OWN_VAE,
        "adam_weight_decay_text_encoder": "--adam_weight_decay (default 1e-4) applies to the "
        "adapters of all networks; the guide's script uses 1e-3 for the text encoders",
        "do_edm_style_training": "the EDM formulation is not supported",
        **dict.fromkeys(
            (
                *("prodigy_beta3", "prodigy_decouple", "prodigy_use_bias_correction"),
                "prodigy_safeguard_warmup",
            ),
            _PRODIGY,
        ),
    },
)
