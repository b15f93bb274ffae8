"""Options of the training that do not go together, each with its reason. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dreambooth_core.config.rules import Rule, broken

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
    return broken(RULES, train)


def _is_split(train: TrainSettings) -> bool:
    return uses_deepspeed(train) or uses_fsdp(train)


_Train = tuple[Callable[["TrainSettings"], bool], str]

_METHOD: tuple[_Train, ...] = (
    (
        lambda train: train.lr_scheduler == "constant" and train.lr_warmup_steps > 0,
        "lr_scheduler constant has no warm-up: use constant_with_warmup, or set lr_warmup_steps "
        "to 0",
    ),
    (
        lambda train: train.method == "lora" and train.lora is None,
        "method is lora, but the section train.lora is missing or null",
    ),
)
_TEXT_ENCODER: tuple[_Train, ...] = (
    (
        lambda train: not train.train_text_encoder and train.text_encoder_lr is not None,
        "text_encoder_lr is set, but train_text_encoder is off: turn it on, or set null",
    ),
    (
        lambda train: not train.train_text_encoder and train.text_encoder_stop_step is not None,
        "text_encoder_stop_step is set, but train_text_encoder is off: turn it on, or set null",
    ),
)
_WEIGHTS: tuple[_Train, ...] = (
    (
        lambda train: train.optimizer != "adamw" and train.use_8bit_adam,
        "use_8bit_adam needs optimizer adamw, found {0.optimizer}",
    ),
    (
        lambda train: train.weight_dtype == "bf16" and train.mixed_precision != "bf16",
        "weight_dtype bf16 computes in bf16: set mixed_precision to bf16, found "
        "{0.mixed_precision!r}",
    ),
)
_FUSED_BACKWARD: tuple[_Train, ...] = (
    (
        lambda train: train.fused_backward and train.max_grad_norm is not None,
        "fused_backward cannot clip by the global norm, which is known only when every gradient "
        "is there: set max_grad_norm to null",
    ),
    (
        lambda train: train.fused_backward and train.gradient_accumulation_steps > 1,
        "fused_backward updates in every backward pass: set gradient_accumulation_steps to 1",
    ),
    (
        lambda train: train.fused_backward and train.mixed_precision == "fp16",
        "fused_backward has no place for the gradient scaler of fp16: use bf16",
    ),
    (
        lambda train: (
            train.fused_backward
            and (train.num_processes > 1 or train.accelerate_config is not None)
        ),
        "fused_backward updates before processes could share gradients: use one process and no "
        "accelerate_config",
    ),
)
_LAUNCH: tuple[_Train, ...] = (
    (
        lambda train: uses_deepspeed(train) and train.use_8bit_adam,
        "8-bit Adam does not work with DeepSpeed, which replaces it by its own optimizer when it "
        "offloads: set use_8bit_adam to false",
    ),
    (
        lambda train: uses_deepspeed(train) and train.optimizer != "adamw",
        "DeepSpeed is run with AdamW here, found optimizer {0.optimizer}",
    ),
    (
        lambda train: _is_split(train) and train.weight_dtype == "bf16",
        "weight_dtype bf16 (stochastic rounding) is for one device: use fp32 weights with "
        "{0.accelerate_config}",
    ),
    (
        lambda train: _is_split(train) and train.ema_decay is not None,
        "ema_decay averages whole weights, which {0.accelerate_config} splits: set null",
    ),
    (
        lambda train: _is_split(train) and train.compile_blocks,
        "compile_blocks was not proved under {0.accelerate_config}, which wraps the network: set "
        "it to false",
    ),
    (
        lambda train: uses_deepspeed(train) and train.text_encoder_stop_step is not None,
        "DeepSpeed updates all parameters or none: set text_encoder_stop_step to null",
    ),
    (
        lambda train: uses_fsdp(train) and train.num_processes == 1,
        "{0.accelerate_config} splits weights over processes, and num_processes is 1",
    ),
    (
        lambda train: uses_fsdp(train) and train.mixed_precision == "fp16",
        "{0.accelerate_config} has no gradient scaler for fp16: use bf16",
    ),
    (
        lambda train: uses_fsdp(train) and (train.use_8bit_adam or train.optimizer != "adamw"),
        "FSDP2 is run with AdamW in fp32 here: set optimizer adamw, use_8bit_adam false",
    ),
)
RULES: tuple[Rule, ...] = (*_METHOD, *_TEXT_ENCODER, *_WEIGHTS, *_FUSED_BACKWARD, *_LAUNCH)
"""What must not be, with the sentence for it. Each reads no more fields than it is about."""
