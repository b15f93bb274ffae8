"""The flags of each script: names, types, defaults and limits. Torch-free.

Names, meanings and defaults are those of the guide's scripts, so that its commands run as printed.
A flag that equals a setting of params.yaml has its name, and `TrainSettings` defines its limits.
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
    model_validator,
)

from dreambooth_core.config import Beta, Fraction, LrScheduler, Section

Tracker = Literal["tensorboard", "wandb", "comet_ml", "all", "none"]
Resolution = Annotated[int, Field(ge=8)]
"""Pixels: the VAE makes one place of 8 x 8 of them."""


def flag(doc: str, **kwargs: Any) -> Any:
    """A flag with its line of help; without `default=` it must be given."""
    return Field(description=doc, **kwargs)


class ScriptFlags(Section):
    """What all scripts have in common."""

    model_config = ConfigDict(allow_inf_nan=False)

    pretrained_model_name_or_path: str = flag("Hub id, or folder of a saved pipeline.")
    revision: str | None = flag("Commit or branch of a hub id.", default=None)
    variant: str | None = flag("Variant of the weight files, such as fp16.", default=None)
    instance_data_dir: str = flag("Folder with the photos of the subject.")
    class_data_dir: str | None = flag("Folder of the class images; made if missing.", default=None)
    instance_prompt: str = flag("Prompt with the identifier: a photo of sks dog.")
    class_prompt: str | None = flag("Prompt of the class images: a photo of dog.", default=None)
    with_prior_preservation: bool = flag("Add the prior-preservation loss.", default=False)
    prior_loss_weight: NonNegativeFloat = flag("Weight of the prior loss.", default=1.0)
    num_class_images: PositiveInt = flag("Class images; missing ones are made.", default=100)
    prior_generation_precision: Literal["no", "fp32", "fp16", "bf16"] | None = flag(
        "Compute type of the class images; default: fp16 on a GPU, else fp32.", default=None
    )
    sample_batch_size: PositiveInt = flag("Class images made at once.", default=4)
    output_dir: str = flag("Folder of checkpoints and of the result.", default="dreambooth-model")
    seed: NonNegativeInt | None = flag("Seed; default: a random one, which is told.", default=None)
    resolution: Resolution = flag("Side of the training images, in pixels.", default=512)
    center_crop: bool = flag("Crop the centre instead of random squares.", default=False)
    train_text_encoder: bool = flag("Train the text encoder as well.", default=False)
    train_batch_size: PositiveInt = flag("Instance images per device and micro-step.", default=4)
    num_train_epochs: PositiveInt = flag("Epochs, when max_train_steps is not given.", default=1)
    max_train_steps: PositiveInt | None = flag("Optimizer updates.", default=None)
    checkpointing_steps: PositiveInt = flag("Save checkpoint-N every so many.", default=500)
    checkpoints_total_limit: PositiveInt | None = flag("Checkpoints kept.", default=None)
    resume_from_checkpoint: str | None = flag(
        "Resume from this checkpoint of output_dir: a name, or latest.", default=None
    )
    gradient_accumulation_steps: PositiveInt = flag("Micro-steps per update.", default=1)
    gradient_checkpointing: bool = flag("Recompute activations to save memory.", default=False)
    learning_rate: PositiveFloat = flag("Peak learning rate.", default=5e-6)
    scale_lr: bool = flag("Multiply the rate by devices, accumulation and batch.", default=False)
    lr_scheduler: LrScheduler = flag("Shape of the learning rate.", default="constant")
    lr_warmup_steps: NonNegativeInt = flag("Updates of linear warm-up.", default=500)
    lr_num_cycles: PositiveInt = flag("Restarts of cosine_with_restarts.", default=1)
    lr_power: PositiveFloat = flag("Power of polynomial.", default=1.0)
    use_8bit_adam: bool = flag("Keep AdamW's moments in 8 bits (bitsandbytes).", default=False)
    adam_beta1: Beta = flag("AdamW beta 1.", default=0.9)
    adam_beta2: Beta = flag("AdamW beta 2.", default=0.999)
    adam_weight_decay: NonNegativeFloat = flag("AdamW decoupled weight decay.", default=1e-2)
    adam_epsilon: PositiveFloat = flag("AdamW epsilon.", default=1e-8)
    max_grad_norm: PositiveFloat = flag("Clip the global gradient norm.", default=1.0)
    mixed_precision: Literal["no", "fp16", "bf16"] | None = flag(
        "Compute type; default: that of accelerate's configuration.", default=None
    )
    allow_tf32: bool = flag("Let a GPU multiply fp32 matrices in TF32.", default=False)
    enable_xformers_memory_efficient_attention: bool = flag(
        "Attention by xFormers instead of torch's own SDPA.", default=False
    )
    validation_prompt: str | None = flag("Draw pictures of it while training.", default=None)
    num_validation_images: PositiveInt = flag("Pictures of the validation prompt.", default=4)
    report_to: Tracker = flag("Where curves and pictures go.", default="tensorboard")
    logging_dir: str = flag("Folder of the tracker's files, below output_dir.", default="logs")
    push_to_hub: bool = flag("Upload the result to the hub.", default=False)
    hub_token: str | None = flag("Token of the hub; better: `hf auth login`.", default=None)
    hub_model_id: str | None = flag("Repository; default: output_dir's name.", default=None)
    dataloader_num_workers: NonNegativeInt = flag(
        "No effect: images are read once, then come from the latent cache.", default=0
    )
    local_rank: int = flag("No effect: the launcher's environment says it.", default=-1)


class _SdFlags(ScriptFlags):
    """What the two Stable Diffusion scripts share beyond that."""

    tokenizer_name: str | None = flag("Tokenizer, if not the model's own.", default=None)
    pre_compute_text_embeddings: bool = flag(
        "Accepted: this is always done when the text encoder is not trained.", default=False
    )
    tokenizer_max_length: PositiveInt | None = flag(
        "Tokens of a prompt; default: the tokenizer's.", default=None
    )
    text_encoder_use_attention_mask: bool = flag(
        "Give the text encoder the attention mask.", default=False
    )
    text_encoder_lr: PositiveFloat | None = flag(
        "Peak rate of the text encoder; default: learning_rate.", default=None
    )


class DreamBoothFlags(_SdFlags):
    """train_dreambooth.py: full fine-tuning of the U-Net, and of the text encoder if asked for."""

    set_grads_to_none: bool = flag("Accepted: gradients are always set to None.", default=False)
    offset_noise: bool = flag("Add offset noise of strength 0.1.", default=False)
    snr_gamma: PositiveFloat | None = flag("min-SNR gamma.", default=None)
    validation_steps: PositiveInt = flag("Draw validation pictures every so many.", default=100)
    validation_scheduler: Literal["DPMSolverMultistepScheduler", "DDPMScheduler"] = flag(
        "Sampler of the validation pictures.", default="DPMSolverMultistepScheduler"
    )
    skip_save_text_encoder: bool = flag("Leave the text encoder out of the result.", default=False)


class _LoraFlags(Section):
    """What the two LoRA scripts add."""

    rank: PositiveInt = flag("Rank of the update.", default=4)
    lora_alpha: PositiveFloat | None = flag("Scale alpha / rank; default: rank.", default=None)
    lora_dropout: Fraction = flag("Dropout on the adapter's input.", default=0.0)
    lora_layers: str = flag(
        "Modules of the U-Net with an adapter, separated by commas.",
        default="to_k,to_q,to_v,to_out.0",
    )
    validation_epochs: PositiveInt = flag(
        "Draw validation pictures after the first epoch, every so many from there on, and at the "
        "end.",
        default=50,
    )
    image_interpolation_mode: Literal["lanczos", "bilinear"] = flag(
        "Accepted: pictures are scaled bilinearly over the whole source area.", default="lanczos"
    )


class DreamBoothLoraFlags(_SdFlags, _LoraFlags):
    """train_dreambooth_lora.py: adapters of the U-Net, and of the text encoder if asked for."""

    output_dir: str = flag(
        "Folder of checkpoints and of the result.", default="lora-dreambooth-model"
    )
    learning_rate: PositiveFloat = flag("Peak learning rate.", default=5e-4)


class DreamBoothLoraSdxlFlags(ScriptFlags, _LoraFlags):
    """train_dreambooth_lora_sdxl.py: the same for Stable Diffusion XL."""

    output_dir: str = flag(
        "Folder of checkpoints and of the result.", default="lora-dreambooth-model"
    )
    resolution: Resolution = flag("Side of the training images, in pixels.", default=1024)
    learning_rate: PositiveFloat = flag("Peak learning rate.", default=1e-4)
    text_encoder_lr: PositiveFloat = flag("Peak rate of the text encoders.", default=5e-6)
    adam_weight_decay: NonNegativeFloat = flag("AdamW decoupled weight decay.", default=1e-4)
    snr_gamma: PositiveFloat | None = flag("min-SNR gamma.", default=None)
    random_flip: bool = flag("Also train on mirrored photos.", default=False)
    repeats: PositiveInt = flag("How often each photo counts in an epoch.", default=1)
    use_dora: bool = flag("Also train each column's length (DoRA).", default=False)
    optimizer: Literal["AdamW", "adamw", "adamW"] = flag("AdamW.", default="AdamW")
    output_kohya_format: bool = flag("Also write the adapter in kohya's format.", default=False)


class DreamBoothFlaxFlags(_SdFlags):
    """train_dreambooth_flax.py: train_dreambooth.py's training through JAX, on all its devices."""

    output_dir: str = flag(
        "Folder of checkpoints and of the result.", default="text-inversion-model"
    )
    seed: NonNegativeInt | None = flag("Seed.", default=0)
    save_steps: PositiveInt | None = flag(
        "Another name of checkpointing_steps, which it replaces.", default=None
    )
    offset_noise: bool = flag("Add offset noise of strength 0.1.", default=False)
    snr_gamma: PositiveFloat | None = flag("min-SNR gamma.", default=None)
    validation_steps: PositiveInt = flag("Draw validation pictures every so many.", default=100)

    @model_validator(mode="before")
    @classmethod
    def _save_steps_count(cls, values: dict[str, Any]) -> dict[str, Any]:
        if "save_steps" in values:
            return {**values, "checkpointing_steps": values["save_steps"]}
        return values


_IF_ONLY = "it belongs to DeepFloyd IF, which is not trained here"
_HUB_DATA = "photos are read from a folder here: save them to one and give --instance_data_dir"
_OWN_VAE = (
    "leave it out: photos are encoded by the model's own VAE in fp32 here, and a VAE mended for "
    "fp16 is needed only to draw in fp16; to train with quite another VAE, save the pipeline with "
    "it and give that folder as --pretrained_model_name_or_path"
)
TRACKER_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet_ml": "comet_ml"}
"""What --report_to can name, and the package that each needs."""
_PRODIGY = "only AdamW is offered"
_IF_FLAGS = {"validation_images": _IF_ONLY, "class_labels_conditioning": _IF_ONLY}


@dataclass(frozen=True)
class Script:
    """One script: its name, its flags, what it trains, and flags that it refuses with a reason."""

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
        "adam_weight_decay_text_encoder": "--adam_weight_decay (1e-4 unless given) holds for the "
        "adapters of all networks here, where the well-known script gives the text encoders' 1e-3",
        "do_edm_style_training": "the EDM formulation is not offered",
        **dict.fromkeys(
            (
                *("prodigy_beta3", "prodigy_decouple", "prodigy_use_bias_correction"),
                "prodigy_safeguard_warmup",
            ),
            _PRODIGY,
        ),
    },
)
