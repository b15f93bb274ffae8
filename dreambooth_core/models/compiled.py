"""Compiling what a U-Net repeats: one kernel sequence for many blocks, in place."""

from __future__ import annotations

import importlib.util
import shutil

import torch
from diffusers import UNet2DConditionModel
from torch.utils.cpp_extension import get_cxx_compiler

from dreambooth_core.errors import SettingsError

_SETTING = "train.compile_blocks"


def compile_blocks(unet: UNet2DConditionModel, *, device: torch.device) -> None:
    """Have torch.compile's code run the transformer blocks; names and weights stay as they are.

    It compiles when the first rows come. Regions instead of the whole network: blocks that are
    alike share their code, so it takes a fraction of the time (diffusers' regional compilation).
    Raises SettingsError where what torch.compile needs is missing.
    """
    missing = _missing(device)
    if missing:
        raise SettingsError(
            f"{_SETTING} is on, and torch.compile needs {missing} to compile for {device.type}",
            got="not found on this machine",
            hint=f"install it, or set {_SETTING} to false, which changes the speed only",
        )
    unet.compile_repeated_blocks(dynamic=False)


def _missing(device: torch.device) -> str | None:
    """What turns compiled graphs into kernels: Triton on a GPU, else a C++ compiler."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "triton"
    return None if shutil.which(get_cxx_compiler()) else f"a C++ compiler ({get_cxx_compiler()})"
