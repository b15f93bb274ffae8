"""Options of the training that do not go together, each with its reason. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dreambooth_core.config.sections import TrainSettings

DEEPSPEED_PREFIX = "deepspeed"
"""Names of accelerate configurations that begin so launch DeepSpeed."""
FSDP_PREFIX = "fsdp"
"""The same for FSDP2."""


def uses_deepspeed(train: TrainSettings) -> bool:
    """Whether the training is launched with DeepSpeed."""
    return (train.accelerate_config or "").startswith(DEEPSPEED_PREFIX)


def uses_fsdp(train: TrainSettings) -> bool:
    """Whether the training is launched with FSDP2."""
    return (train.accelerate_config or "").startswith(FSDP_PREFIX)


def updates_in_one_kernel(train: TrainSettings) -> bool:
    """Whether torch's fused AdamW updates all weights at once, after the backward pass."""
    plain = train.optimizer == "adamw" and train.weight_dtype == "fp32" and not train.use_8bit_adam
    return plain and not train.fused_backward


def impossible(train: TrainSettings) -> list[str]:
    """Every pair of options that cannot work, as a sentence that says why and what to do."""
    rules = [
        *_text_encoder(train),
        *_optimizer(train),
        *_weights(train),
        *_fused_backward(train),
        *_launch(train),
    ]
    return [sentence for broken, sentence in rules if broken]


_Rule = tuple[bool, str]


def _text_encoder(train: TrainSettings) -> list[_Rule]:
    frozen = not train.train_text_encoder
    return [
        (
            frozen and train.text_encoder_lr is not None,
            "text_encoder_lr is set, but train_text_encoder is off: turn it on, or set null",
        ),
        (
            frozen and train.text_encoder_stop_step is not None,
            "text_encoder_stop_step is set, but train_text_encoder is off: turn it on, or set null",
        ),
    ]


def _optimizer(train: TrainSettings) -> list[_Rule]:
    return [
        (
            train.optimizer != "adamw" and train.use_8bit_adam,
            f"use_8bit_adam needs optimizer adamw, found {train.optimizer}",
        ),
    ]


def _weights(train: TrainSettings) -> list[_Rule]:
    return [
        (
            train.weight_dtype == "bf16" and train.mixed_precision != "bf16",
            "weight_dtype bf16 computes in bf16: set mixed_precision to bf16, found "
            f"{train.mixed_precision!r}",
        ),
    ]


def _fused_backward(train: TrainSettings) -> list[_Rule]:
    if not train.fused_backward:
        return []
    return [
        (
            train.max_grad_norm is not None,
            "fused_backward cannot clip by the global norm, which is known only when every "
            "gradient is there: set max_grad_norm to null",
        ),
        (
            train.gradient_accumulation_steps > 1,
            "fused_backward updates in every backward pass: set gradient_accumulation_steps to 1",
        ),
        (
            train.mixed_precision == "fp16",
            "fused_backward has no place for the gradient scaler of fp16: use bf16",
        ),
        (
            train.num_processes > 1 or train.accelerate_config is not None,
            "fused_backward updates before processes could share gradients: use one process and "
            "no accelerate_config",
        ),
    ]


def _launch(train: TrainSettings) -> list[_Rule]:
    deepspeed, fsdp = uses_deepspeed(train), uses_fsdp(train)
    return [
        (
            deepspeed and train.use_8bit_adam,
            "8-bit Adam does not work with DeepSpeed, which replaces it by its own optimizer when "
            "it offloads: set use_8bit_adam to false",
        ),
        (
            deepspeed and train.optimizer != "adamw",
            f"DeepSpeed is run with AdamW here, found optimizer {train.optimizer}",
        ),
        (
            (deepspeed or fsdp) and train.weight_dtype == "bf16",
            "weight_dtype bf16 (stochastic rounding) is for one device: use fp32 weights with "
            f"{train.accelerate_config}",
        ),
        (
            (deepspeed or fsdp) and train.ema_decay is not None,
            f"ema_decay averages whole weights, which {train.accelerate_config} splits: set null",
        ),
        (
            (deepspeed or fsdp) and train.compile_blocks,
            f"compile_blocks was not proved under {train.accelerate_config}, which wraps the "
            "network: set it to false",
        ),
        (
            deepspeed and train.text_encoder_stop_step is not None,
            "DeepSpeed updates all parameters or none: set text_encoder_stop_step to null",
        ),
        (
            fsdp and train.num_processes == 1,
            f"{train.accelerate_config} splits weights over processes, and num_processes is 1",
        ),
        (
            fsdp and train.mixed_precision == "fp16",
            f"{train.accelerate_config} has no gradient scaler for fp16: use bf16",
        ),
        (
            fsdp and (train.use_8bit_adam or train.optimizer != "adamw"),
            "FSDP2 is run with AdamW in fp32 here: set optimizer adamw, use_8bit_adam false",
        ),
    ]
