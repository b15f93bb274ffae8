"""The settings that training through JAX does not support, with reasons. Torch- and JAX-free."""

from __future__ import annotations

from dreambooth_core.config import TrainSettings
from dreambooth_core.errors import SettingsError


def refuse_what_jax_cannot(train: TrainSettings) -> None:
    """Raise SettingsError with every unsupported setting and its reason."""
    broken = [sentence for found, sentence in _rules(train) if found]
    if broken:
        raise SettingsError(
            "these settings cannot be trained through JAX",
            got="; ".join(broken),
            hint="change them, or train with train_dreambooth.py",
        )


def _rules(train: TrainSettings) -> list[tuple[bool, str]]:
    return [
        (
            train.use_8bit_adam,
            "use_8bit_adam: bitsandbytes has no kernels for JAX, and optax no 8-bit moments",
        ),
        (
            train.enable_xformers_memory_efficient_attention,
            "enable_xformers_memory_efficient_attention: xFormers needs CUDA; XLA compiles "
            "attention itself",
        ),
        (
            train.mixed_precision == "fp16",
            "mixed_precision fp16: there is no gradient scaler here, and TPUs compute in bf16: "
            "use bf16",
        ),
        (
            train.method == "lora",
            "method lora: adapters are untested with JAX; train_dreambooth_lora.py trains them",
        ),
        (train.optimizer != "adamw", f"optimizer {train.optimizer}: only adamw is built here"),
        (
            train.weight_dtype != "fp32",
            f"weight_dtype {train.weight_dtype}: stochastic rounding is not built here; "
            "mixed_precision bf16 keeps fp32 weights",
        ),
        (
            train.fused_backward,
            "fused_backward: XLA orders backward pass and update by itself",
        ),
        (train.compile_blocks, "compile_blocks: XLA compiles the whole update itself"),
        (train.ema_decay is not None, "ema_decay: the average of the weights is not built here"),
        (
            train.num_processes > 1 or train.strategy not in (None, "single"),
            "num_processes and strategy: JAX uses all devices of its host in one process",
        ),
    ]
