"""What is not trained through JAX is refused before it starts, with the reason."""

import pytest

from dreambooth_core.config import TrainSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.jax.refusals import refuse_what_jax_cannot
from tests.unit.training import tiny


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_8bit_adam": True}, "use_8bit_adam: bitsandbytes has no kernels for JAX"),
        ({"enable_xformers_memory_efficient_attention": True}, "xFormers needs CUDA"),
        ({"mixed_precision": "fp16"}, "TPUs compute in bf16: use bf16"),
        ({"method": "lora", "lora": tiny.LORA}, r"train_dreambooth_lora\.py trains them"),
        ({"optimizer": "adafactor"}, "optimizer adafactor: only adamw"),
        ({"ema_decay": 0.99}, "ema_decay"),
        ({"compile_blocks": True}, "compile_blocks: XLA compiles the whole update itself"),
        ({"num_processes": 2}, "JAX uses all devices of its host in one process"),
    ],
)
def test_unsupported_setting_raises_with_its_reason(settings, reason):
    with pytest.raises(SettingsError, match=reason):
        refuse_what_jax_cannot(TrainSettings(**{**tiny.FULL, **settings}))


def test_all_reasons_are_told_at_once():
    train = TrainSettings(**{**tiny.FULL, "use_8bit_adam": True, "ema_decay": 0.99})
    with pytest.raises(SettingsError, match=r"use_8bit_adam.*; ema_decay"):
        refuse_what_jax_cannot(train)


def test_what_is_served_is_not_refused():
    served = {"snr_gamma": 5.0, "gradient_checkpointing": True, "mixed_precision": "bf16"}
    refuse_what_jax_cannot(TrainSettings(**{**tiny.FULL, **served}))
