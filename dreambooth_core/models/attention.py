"""Which kernels compute attention, and matrix products in fp32."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

from dreambooth_core.environment import is_installed
from dreambooth_core.errors import SettingsError

_SETTING = "train.enable_xformers_memory_efficient_attention"
_DEFAULT = "turn it off: the default, PyTorch's SDPA, needs no package"


def check_xformers(device: torch.device) -> None:
    """Raise SettingsError where xFormers is not installed, or there is no GPU; imports nothing."""
    is_here = is_installed("xformers")
    if device.type != "cuda":
        besides = "" if is_here else ", and xFormers is not installed"
        raise SettingsError(
            "needs a GPU", key=_SETTING, got=f"device {device.type}{besides}", hint=_DEFAULT
        )
    if not is_here:
        raise SettingsError(
            "needs xFormers, which is not installed",
            key=_SETTING,
            hint=f"{_DEFAULT}; or `pip install xformers` in the version made for your torch",
        )


def use_xformers(unet: UNet2DConditionModel, *, device: torch.device) -> None:
    """Attention by xFormers. Raises SettingsError where it is missing or cannot run."""
    check_xformers(device)
    try:
        unet.enable_xformers_memory_efficient_attention()
    except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
        raise SettingsError(
            "xFormers is installed, but cannot run on this device",
            key=_SETTING,
            got=f"{type(error).__name__}: {error}",
            hint=_DEFAULT,
        ) from error


def allow_tf32(*, allowed: bool) -> None:
    """Whether a GPU may multiply fp32 matrices in TF32, for all of this process."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
