"""Faster kernels: xFormers attention, TF32 matrix products, regional torch.compile."""

from __future__ import annotations

import importlib.util

import torch
from diffusers import UNet2DConditionModel

from dreambooth_core.environment import is_installed
from dreambooth_core.errors import SettingsError


def compile_blocks(unet: UNet2DConditionModel, *, device: torch.device) -> None:
    """Compile the transformer blocks; names and weights stay unchanged.

    The first forward pass compiles. Equal blocks share their code (diffusers' regional
    compilation), which takes a fraction of the time of compiling the whole network. Raises
    SettingsError if torch.compile lacks a compiler.
    """
    check_compiler(device)
    unet.compile_repeated_blocks(dynamic=False)


def check_compiler(device: torch.device) -> None:
    """Raise SettingsError if torch.compile lacks a compiler for the device."""
    missing = _missing(device)
    if missing:
        raise SettingsError(
            f"torch.compile needs {missing} to compile for {device.type}",
            key="train.compile_blocks",
            got="not found on this machine",
            hint="install it, or turn compile_blocks off: losses agree to 1e-5",
        )


def _missing(device: torch.device) -> str | None:
    """Return the missing compiler: g++, or on a GPU also Triton; None if none is missing."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # torch.compile's own choice
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "a C++ compiler (g++)"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton"
    return None


_XFORMERS = "train.enable_xformers_memory_efficient_attention"
_DEFAULT = "turn it off: the default, PyTorch's SDPA, needs no package"


def check_xformers(device: torch.device) -> None:
    """Raise SettingsError without xFormers or without a GPU. Does not import xFormers."""
    installed = is_installed("xformers")
    if device.type != "cuda":
        also_missing = "" if installed else ", and xFormers is not installed"
        raise SettingsError(
            "needs a GPU", key=_XFORMERS, got=f"device {device.type}{also_missing}", hint=_DEFAULT
        )
    if not installed:
        raise SettingsError(
            "needs xFormers, which is not installed",
            key=_XFORMERS,
            hint=f"{_DEFAULT}; or `pip install xformers` in the version built for your torch",
        )


def use_xformers(unet: UNet2DConditionModel, *, device: torch.device) -> None:
    """Switch attention to xFormers. Raises SettingsError if it is missing or cannot run."""
    check_xformers(device)
    try:
        unet.enable_xformers_memory_efficient_attention()
    except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
        raise SettingsError(
            "xFormers is installed, but cannot run on this device",
            key=_XFORMERS,
            got=f"{type(error).__name__}: {error}",
            hint=_DEFAULT,
        ) from error


def allow_tf32(*, allowed: bool) -> None:
    """Allow or forbid TF32 in fp32 matrix products on GPUs, for the whole process."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
