"""Faster kernels: xFormers attention, TF32 matrix products, regional torch.compile."""

from __future__ import annotations

import importlib.util

import torch
from diffusers import UNet2DConditionModel

from dreambooth_core.environment import is_installed
from dreambooth_core.errors import SettingsError

_SETTING = "train.compile_blocks"


def compile_blocks(unet: UNet2DConditionModel, *, device: torch.device) -> None:
    """Have torch.compile's code run the transformer blocks; names and weights stay as they are.

    It compiles when the first rows come. Regions instead of the whole network: blocks that are
    alike share their code, so it takes a fraction of the time (diffusers' regional compilation).
    Raises SettingsError where what torch.compile needs is missing.
    """
    check_compiler(device)
    unet.compile_repeated_blocks(dynamic=False)


def check_compiler(device: torch.device) -> None:
    """Raise SettingsError where what torch.compile needs for the device is missing."""
    missing = _missing(device)
    if missing:
        raise SettingsError(
            f"torch.compile needs {missing} to compile for {device.type}",
            key=_SETTING,
            got="not found on this machine",
            hint="install it, or turn compile_blocks off: losses are the same to 1e-5",
        )


def _missing(device: torch.device) -> str | None:
    """What turns graphs into kernels: a C++ compiler, and on a GPU Triton too."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # torch.compile's own choice
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "a C++ compiler (g++)"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton"
    return None


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
