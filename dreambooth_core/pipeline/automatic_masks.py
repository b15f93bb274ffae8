"""The masks of `data.masks: auto`, which the cache stage computes, as pictures of whole photos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageOps

from dreambooth_core import files
from dreambooth_core.config import DataSettings, SubjectView
from dreambooth_core.data import gate, transform
from dreambooth_core.data.cache import MomentEncoder, MomentStore
from dreambooth_core.data.listing import printable
from dreambooth_core.data.loss_weights import found_mask
from dreambooth_core.models import load
from dreambooth_core.pipeline import cache, validate
from dreambooth_core.pipeline.common import RunContext, base_identity
from dreambooth_core.workspace import Places

_WHITE = 255

# V views, h w latent height and width


@dataclass(frozen=True)
class AutomaticMask:
    """The mask of a photo in each view, as training uses it, and as a picture of the photo."""

    mask_Vhw: torch.Tensor
    picture: Image.Image


def find(
    view: SubjectView, places: Places, *, only_missing: bool = False
) -> Iterator[tuple[str, AutomaticMask | None]]:
    """The file name of each accepted photo with its automatic mask, one photo at a time.

    With `only_missing`, photos that have a mask (a file or transparency) come with None. Raises
    DataError without any usable photo, and SettingsError for a base model that is not available.
    """
    kind = "files" if only_missing else None
    data = view.data.model_copy(update={"masks": kind, "captions": False})
    context = RunContext(view.model_copy(update={"data": data}), places)
    folder = places.resolve(view.subject.instance_dir)
    names = {printable(path.name): path.name for path in folder.glob("*")}
    with validate.inspected(context) as inspection:
        gate.require_usable(inspection.report)
        photos = [names[image.name] for image in inspection.report.accepted]
        missing: list[tuple[str, Path]] = []
        for photo, copy, mask in zip(photos, inspection.copies, inspection.masks, strict=True):
            if mask is None:
                missing.append((photo, copy))
            else:
                yield photo, None
        if missing:
            yield from _find(context, missing)


def _find(
    context: RunContext, photos: Sequence[tuple[str, Path]]
) -> Iterator[tuple[str, AutomaticMask]]:
    """The masks of photos, given by name and normalised copy, with the networks of the stage."""
    settings = context.settings
    load.configure_torch(settings.compute)
    encoders = cache.load_encoders(context, base_identity(context))
    finder = cache.load_finder(context, encoders)
    store = MomentStore(context.places.store / "cache")
    encode = MomentEncoder(encoders.vae, settings=settings.data, store=store)
    for photo, copy in photos:
        sha256 = files.sha256_file(copy)
        moments = safetensors.torch.load(encode(copy, sha256=sha256)[1])
        mask_Vhw = found_mask(finder, moments, settings.data, sha256=sha256)
        with Image.open(copy) as image:
            size = image.size
        yield photo, AutomaticMask(mask_Vhw, _laid_out(mask_Vhw, size, settings.data, sha256))


def _laid_out(
    mask_Vhw: torch.Tensor, size: tuple[int, int], settings: DataSettings, sha256: str
) -> Image.Image:
    """The views' masks where the views are, their mean if several overlap; elsewhere black."""
    side = settings.resolution
    width, height = transform.scaled_size(size, resolution=side)
    sums, counts = np.zeros((height, width)), np.zeros((height, width))
    views = transform.views_of(size, settings, sha256=sha256)
    for view, mask_hw in zip(views, mask_Vhw.numpy(), strict=True):
        small = Image.fromarray((mask_hw * _WHITE).astype(np.uint8))
        square = small.resize((side, side), Image.Resampling.NEAREST)
        square = ImageOps.mirror(square) if view.mirrored else square
        place = np.s_[view.top : view.top + side, view.left : view.left + side]
        sums[place] += np.asarray(square)
        counts[place] += 1
    mean = np.rint(sums / np.maximum(counts, 1)).astype(np.uint8)
    return Image.fromarray(mean).resize(size, Image.Resampling.NEAREST)
