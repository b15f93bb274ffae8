"""Rules for combinations of settings. Torch-free.

Each rule is a function. Its parameters have the names of the fields that it checks; the first is
the field to change. It returns an error message, or None if the combination is valid.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails

from dreambooth_core.config.yaml_files import mapping

Rule = Callable[..., str | None]
_Section = TypeVar("_Section", bound=BaseModel)
_SPLITTING = {"deepspeed": "DeepSpeed", "fsdp": "FSDP"}
"""The strategies that shard the training state over processes."""


def _photo_counts(*, max_photos: int, min_photos: int) -> str | None:
    if min_photos > max_photos:
        return f"less than min_photos, which is {min_photos}"
    return None


def _caption_rate(*, caption_rate: float, captions: bool) -> str | None:
    if caption_rate < 1 and not captions:
        return "no effect while captions is off: turn it on, or set caption_rate to 1"
    return None


DATA_RULES: tuple[Rule, ...] = (_photo_counts, _caption_rate)


def _warm_up(*, lr_warmup_steps: int, lr_scheduler: str) -> str | None:
    if lr_scheduler == "constant" and lr_warmup_steps > 0:
        return (
            "lr_scheduler constant has no warm-up: use constant_with_warmup, or set "
            "lr_warmup_steps to 0"
        )
    return None


def _lora_section(*, lora: object, method: str) -> str | None:
    if method == "lora" and lora is None:
        return "method is lora, but this section is missing or null"
    return None


def _text_encoder_lr(*, text_encoder_lr: float | None, train_text_encoder: bool) -> str | None:
    if text_encoder_lr is not None and not train_text_encoder:
        return (
            "no effect while train_text_encoder is off: turn it on, or set text_encoder_lr to null"
        )
    return None


def _text_encoder_stop(
    *, text_encoder_stop_step: int | None, train_text_encoder: bool
) -> str | None:
    if text_encoder_stop_step is not None and not train_text_encoder:
        return (
            "no effect while train_text_encoder is off: turn it on, or set "
            "text_encoder_stop_step to null"
        )
    return None


def _8bit_adam_is_adamw(*, use_8bit_adam: bool, optimizer: str) -> str | None:
    if use_8bit_adam and optimizer != "adamw":
        return f"use_8bit_adam needs optimizer adamw, found {optimizer}"
    return None


def _bf16_weights_compute_in_bf16(*, weight_dtype: str, mixed_precision: str) -> str | None:
    if weight_dtype == "bf16" and mixed_precision != "bf16":
        return (
            "weight_dtype bf16 computes in bf16: set mixed_precision to bf16, found "
            f"{mixed_precision!r}"
        )
    return None


def _fused_clipping(*, max_grad_norm: float | None, fused_backward: bool) -> str | None:
    if fused_backward and max_grad_norm is not None:
        return (
            "fused_backward cannot clip by the global norm, which needs all gradients at once: "
            "set max_grad_norm to null"
        )
    return None


def _fused_accumulation(*, gradient_accumulation_steps: int, fused_backward: bool) -> str | None:
    if fused_backward and gradient_accumulation_steps > 1:
        return "fused_backward updates in every backward pass: set gradient_accumulation_steps to 1"
    return None


def _fused_fp16(*, mixed_precision: str, fused_backward: bool) -> str | None:
    if fused_backward and mixed_precision == "fp16":
        return "fused_backward has no gradient scaler for fp16: use bf16"
    return None


def _fused_processes(
    *, fused_backward: bool, num_processes: int, accelerate_config: str | None, strategy: str | None
) -> str | None:
    is_alone = num_processes == 1 and accelerate_config is None and strategy in (None, "single")
    if fused_backward and not is_alone:
        return (
            "fused_backward updates weights before processes can exchange gradients: use one "
            "process and no accelerate_config"
        )
    return None


def _deepspeed_8bit_adam(*, use_8bit_adam: bool, strategy: str | None) -> str | None:
    if strategy == "deepspeed" and use_8bit_adam:
        return (
            "8-bit Adam does not work with DeepSpeed, which replaces it by its own optimizer if it "
            "offloads: set use_8bit_adam to false"
        )
    return None


def _deepspeed_optimizer(*, optimizer: str, strategy: str | None) -> str | None:
    if strategy == "deepspeed" and optimizer != "adamw":
        return f"DeepSpeed supports only adamw here, found {optimizer}"
    return None


def _split_bf16_weights(*, weight_dtype: str, strategy: str | None) -> str | None:
    if strategy in _SPLITTING and weight_dtype == "bf16":
        return (
            "weight_dtype bf16 (stochastic rounding) works on one device only: use fp32 weights "
            f"with {_SPLITTING[strategy]}"
        )
    return None


def _split_ema(*, ema_decay: float | None, strategy: str | None) -> str | None:
    if strategy in _SPLITTING and ema_decay is not None:
        return (
            f"ema_decay averages whole weights, but {_SPLITTING[strategy]} splits them: set "
            "ema_decay to null"
        )
    return None


def _split_compiling(*, compile_blocks: bool, strategy: str | None) -> str | None:
    if strategy in _SPLITTING and compile_blocks:
        return (
            f"compile_blocks is untested with {_SPLITTING[strategy]}, which wraps the network: "
            "set it to false"
        )
    return None


def _deepspeed_text_encoder_stop(
    *, text_encoder_stop_step: int | None, strategy: str | None
) -> str | None:
    if strategy == "deepspeed" and text_encoder_stop_step is not None:
        return "DeepSpeed updates all parameters or none: set text_encoder_stop_step to null"
    return None


def _fsdp_processes(*, num_processes: int, strategy: str | None) -> str | None:
    if strategy == "fsdp" and num_processes == 1:
        return "FSDP splits weights over processes, but num_processes is 1"
    return None


def _fsdp_fp16(*, mixed_precision: str, strategy: str | None) -> str | None:
    if strategy == "fsdp" and mixed_precision == "fp16":
        return "FSDP has no gradient scaler for fp16: use bf16"
    return None


def _fsdp_optimizer(*, optimizer: str, use_8bit_adam: bool, strategy: str | None) -> str | None:
    if strategy == "fsdp" and (use_8bit_adam or optimizer != "adamw"):
        return "FSDP supports only fp32 AdamW here: set optimizer to adamw, use_8bit_adam to false"
    return None


TRAIN_RULES: tuple[Rule, ...] = (
    *(_warm_up, _lora_section, _text_encoder_lr, _text_encoder_stop),
    *(_8bit_adam_is_adamw, _bf16_weights_compute_in_bf16),
    *(_fused_clipping, _fused_accumulation, _fused_fp16, _fused_processes),
    *(_deepspeed_8bit_adam, _deepspeed_optimizer, _deepspeed_text_encoder_stop),
    *(_split_bf16_weights, _split_ema, _split_compiling),
    *(_fsdp_processes, _fsdp_fp16, _fsdp_optimizer),
)


def broken(rules: Sequence[Rule], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the key and the message of each broken rule.

    Skips rules with a field that is missing from `values`.
    """
    for rule in rules:
        reads = tuple(inspect.signature(rule).parameters)
        if values.keys() >= set(reads):
            message = rule(**{name: values[name] for name in reads})
            if message is not None:
                yield reads[0], message


def check(
    section: type[_Section],
    values: Any,
    handler: Callable[[Any], _Section],
    rules: Sequence[Rule],
) -> _Section:
    """Validate a section's fields and rules together, as the body of a `wrap` validator.

    Raises ValidationError with all invalid fields and all broken rules. Pydantic's `after`
    validators would report broken rules only after all fields are fixed.
    """
    wrong: list[InitErrorDetails] = []
    try:
        made = handler(values)
        known = dict(made)
    except ValidationError as error:
        made = None
        wrong = [cast(InitErrorDetails, dict(item)) for item in error.errors(include_url=False)]
        known = _valid_fields(section, values, wrong)
    for key, message in broken(rules, known):
        context = {"error": ValueError(message)}
        wrong.append({"type": "value_error", "loc": (key,), "input": values, "ctx": context})
    if made is None or wrong:
        raise ValidationError.from_exception_data(section.__name__, wrong)
    return made


def _valid_fields(
    section: type[BaseModel], values: Any, wrong: Sequence[InitErrorDetails]
) -> dict[str, Any]:
    """The valid fields, converted to the section's types; none of a value that is no section."""
    if not isinstance(values, dict):
        return {}
    given = mapping(values)
    bad = {str(place) for item in wrong for place in item.get("loc", ())[:1]}
    valid: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        if name not in bad:
            adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, field.annotation))
            is_given = name in given
            valid[name] = adapter.validate_python(given[name]) if is_given else field.get_default()
    return valid
