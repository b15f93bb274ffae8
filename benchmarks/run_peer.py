"""Run a training script of diffusers' examples as it is, on a machine without torchvision.

    python benchmarks/run_peer.py SCRIPT ARGUMENTS...

The scripts need five transforms of torchvision and nothing else of it. Where it is not installed,
they get these, on Pillow, which is what torchvision's own do for Pillow images. They must not be
visible while transformers is imported: it would believe torchvision to be there.
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


def _crop(size: int, place: Callable[[int], int]) -> Transform:
    def apply(image: Image.Image) -> Image.Image:
        left, top = (place(side - size) for side in image.size)
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


def _stand_in() -> types.ModuleType:
    transforms = types.ModuleType("torchvision.transforms")
    members = {
        "InterpolationMode": types.SimpleNamespace(
            BILINEAR=Image.Resampling.BILINEAR, LANCZOS=Image.Resampling.LANCZOS
        ),
        "Compose": _compose,
        "Resize": lambda size, interpolation=Image.Resampling.BILINEAR: _resize(
            size, interpolation
        ),
        "CenterCrop": lambda size: _crop(size, lambda room: room // 2),
        "RandomCrop": lambda size: _crop(size, lambda room: random.randint(0, room)),
        "ToTensor": lambda: _to_tensor,
        "Normalize": _normalize,
    }
    for name, member in members.items():
        setattr(transforms, name, member)
    return transforms


def _install_stand_in() -> None:
    import diffusers  # noqa: F401 - they look for torchvision when they are imported
    import transformers
    from transformers.utils import import_utils

    import_utils.is_torchvision_available()
    assert transformers.__version__
    package, transforms = types.ModuleType("torchvision"), _stand_in()
    package.transforms = transforms  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": package, "torchvision.transforms": transforms}


if __name__ == "__main__":
    if importlib.util.find_spec("torchvision") is None:
        _install_stand_in()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
