"""Run an unchanged training script of diffusers' examples on a machine without torchvision.

    python -m benchmarks.run_baseline SCRIPT ARGUMENTS...

The scripts use only five transforms of torchvision. If it is missing, this module provides them on
Pillow, as torchvision does for Pillow images. They are installed after the import of transformers,
which would otherwise assume that torchvision is available.
"""

from __future__ import annotations

import importlib.util
import random
import runpy
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

Transform = Callable[[Any], Any]


def _resize(size: int, interpolation: Image.Resampling) -> Transform:
    """Scale the shorter side to `size`."""

    def apply(image: Image.Image) -> Image.Image:
        scale = size / min(image.size)
        width, height = (max(size, int(side * scale)) for side in image.size)
        return image.resize((width, height), interpolation)

    return apply


def _crop(size: int, offset: Callable[[int], int]) -> Transform:
    def apply(image: Image.Image) -> Image.Image:
        left, top = (offset(side - size) for side in image.size)
        return image.crop((left, top, left + size, top + size))

    return apply


def _to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


def _normalize(mean: Sequence[float], std: Sequence[float]) -> Transform:
    return lambda pixels: (pixels - mean[0]) / std[0]


def _compose(transforms: Sequence[Transform]) -> Transform:
    def apply(image: Any) -> Any:
        for transform in transforms:
            image = transform(image)
        return image

    return apply


def _make_transforms() -> types.ModuleType:
    transforms = types.ModuleType("torchvision.transforms")
    members = {
        "InterpolationMode": types.SimpleNamespace(
            BILINEAR=Image.Resampling.BILINEAR, LANCZOS=Image.Resampling.LANCZOS
        ),
        "Compose": _compose,
        "Resize": lambda size, interpolation=Image.Resampling.BILINEAR: _resize(
            size, interpolation
        ),
        "CenterCrop": lambda size: _crop(size, lambda margin: margin // 2),
        "RandomCrop": lambda size: _crop(size, lambda margin: random.randint(0, margin)),
        "ToTensor": lambda: _to_tensor,
        "Normalize": _normalize,
    }
    for name, member in members.items():
        setattr(transforms, name, member)
    return transforms


def _install_transforms() -> None:
    import diffusers  # noqa: F401 - looks for torchvision at import
    import transformers
    from transformers.utils import import_utils

    import_utils.is_torchvision_available()
    assert transformers.__version__
    package, transforms = types.ModuleType("torchvision"), _make_transforms()
    package.transforms = transforms  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": package, "torchvision.transforms": transforms}


if __name__ == "__main__":
    if importlib.util.find_spec("torchvision") is None:
        _install_transforms()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
