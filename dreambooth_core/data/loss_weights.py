"""The weight of each latent position in the loss: the subject counts, its background does not.

Weights have the mean 1 in each view, so a small subject teaches as much as a large one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dreambooth_core import files
from dreambooth_core.config import DataSettings
from dreambooth_core.data import transform
from dreambooth_core.errors import CorruptRecordError, repeat_hint
from dreambooth_core.models.subject_finder import SubjectFinder
from dreambooth_core.models.tensors import tensor_bytes
from dreambooth_core.records import ManifestImage

WEIGHTS_FILE = "weights.safetensors"

_LEAST_SHARE = 0.02
"""A subject that fills less of a view does not get a larger weight."""

# V views, h w latent height and width


class LossWeights:
    """Collects the weights of the photos' views."""

    def __init__(self, settings: DataSettings, finder: SubjectFinder | None) -> None:
        self._settings, self._finder = settings, finder
        self._by_image: dict[str, torch.Tensor] = {}

    def add(self, folder: Path, entry: ManifestImage, moments: Mapping[str, torch.Tensor]) -> None:
        """Add a photo's weights, if it has a mask or the subject must be found."""
        if self._finder is not None:
            mask_Vhw = found_mask(self._finder, moments, self._settings, sha256=entry.sha256)
        elif entry.mask is not None:
            _, _, height, width = moments["mean"].shape
            mask_Vhw = _mask_views(
                folder / entry.mask.file, entry, self._settings, size=(width, height)
            )
        else:
            return
        self._by_image[entry.file] = normalised(mask_Vhw)

    def write(self, out: Path) -> dict[str, str]:
        """Write the weights, if there are any; returns the file's sha256 by its name."""
        if not self._by_image:
            return {}
        data = tensor_bytes(self._by_image)
        files.write_bytes(out / WEIGHTS_FILE, data)
        return {WEIGHTS_FILE: files.sha256_bytes(data)}


def found_mask(
    finder: SubjectFinder,
    moments: Mapping[str, torch.Tensor],
    settings: DataSettings,
    *,
    sha256: str,
) -> torch.Tensor:
    """The mask that the base model finds in the views of an image: [V, h, w], 0 or 1."""
    target_V2 = torch.full((len(moments["size"]), 2), float(settings.resolution))
    time_ids_V6 = torch.cat([moments["size"], target_V2], dim=1)
    return finder.find(moments["mean"], time_ids_V6, seed=int(sha256[:15], 16))


def normalised(mask_Vhw: torch.Tensor) -> torch.Tensor:
    """The mask with mean 1 in each view; a view without the subject stays 0."""
    return mask_Vhw / mask_Vhw.mean((1, 2), keepdim=True).clamp(min=_LEAST_SHARE)


def _mask_views(
    path: Path, entry: ManifestImage, settings: DataSettings, *, size: tuple[int, int]
) -> torch.Tensor:
    """The mask in the views of its photo, at the latents' (width, height): [V, h, w] in 0..1."""
    if not path.is_file() or entry.mask is None or files.sha256_file(path) != entry.mask.sha256:
        raise CorruptRecordError(
            f"{path.name} differs from the mask in its manifest",
            hint=repeat_hint(path, delete=True),
        )
    with Image.open(path) as opened:
        mask = opened.convert("L")
    views = transform.views_of(mask.size, settings, sha256=entry.sha256)
    cuts = [transform.cut(mask, view, resolution=settings.resolution) for view in views]
    small = [np.asarray(cut.resize(size, Image.Resampling.BOX)) for cut in cuts]
    return torch.from_numpy(np.stack(small)).float() / 255
