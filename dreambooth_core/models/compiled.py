"""Compiling what a U-Net repeats: one kernel sequence for many blocks, in place."""

from __future__ import annotations

import importlib.util

import torch
from diffusers import UNet2DConditionModel

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
