"""Training rows as a pure function of seed and global sample position.

There is no loader and no state, so row p of a run is the same on any number of processes, for any
split into micro-steps, and after any number of kills.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from dreambooth_core import files
from dreambooth_core.data.cache import prompt_key
from dreambooth_core.errors import CorruptRecordError, SettingsError, repeat_hint
from dreambooth_core.models.denoiser import TrainBatch
from dreambooth_core.models.tensors import read_tensors
from dreambooth_core.numerics.seeding import SEED_BITS, derive_seed, generator_for
from dreambooth_core.records import CachedImage, LatentCache, Role

# B rows, V views, C latent channels, h w latent height and width, L tokens, D text width


@dataclass(frozen=True)
class Sample:
    """One row: the image and view at a position, its latents, and its sizes in pixels."""

    role: Role
    position: int
    image: str
    view: int
    prompt: str
    latents_Chw: torch.Tensor
    time_ids_6: torch.Tensor
    weights_hw: torch.Tensor | None
    """The weight of each position in the loss; None weights all alike."""


class LatentDataset:
    """A latent cache, read from disk and verified once."""

    def __init__(self, folder: Path, *, seed: int, with_class_rows: bool) -> None:
        """Load the cache in `folder`; `seed` decides the rows.

        Raises CorruptRecordError if a file differs from the record, and SettingsError if
        `with_class_rows` and the cache has no class images.
        """
        self.record = LatentCache.read(folder)
        wrong = files.mismatches(folder, self.record.files)
        if wrong:
            raise CorruptRecordError(
                "the latent cache differs from its record",
                got=f"missing or changed: {', '.join(wrong)}",
                hint=repeat_hint(folder / "record.json", delete=True),
            )
        self._seed = seed
        images = self.record.images
        self._images = {role: tuple(i for i in images if i.role == role) for role in _ROLES}
        self._roles = _ROLES if with_class_rows else _ROLES[:1]
        self._require_images()
        names = {entry.file for role in self._roles for entry in self._images[role]}
        self._moments = {name: read_tensors(folder / name) for name in sorted(names)}
        self._target = torch.full((2,), float(self.record.resolution))
        self._text = read_tensors(folder / self.record.text_file)
        masked = self.record.weights_file
        self._weights = read_tensors(folder / masked) if masked else {}
        self._is_pooled = any(name.endswith(".pooled") for name in self._text)

    def rows_at(self, positions: Sequence[int]) -> TrainBatch:
        """The rows at some global sample positions: all instance rows, then all class rows."""
        samples = [self.sample_at(p, role=role) for role in self._roles for p in positions]
        return TrainBatch(
            latents_BCHW=torch.stack([sample.latents_Chw for sample in samples]),
            text_BLD=self._text_of(samples, "hidden"),
            pooled_BP=self._text_of(samples, "pooled") if self._is_pooled else None,
            ids_EBL=self._text_of(samples, "ids").transpose(0, 1),
            time_ids_B6=torch.stack([sample.time_ids_6 for sample in samples]),
            is_class_B=tuple(sample.role == "class" for sample in samples),
            position_B=tuple(sample.position for sample in samples),
            image_B=tuple(sample.image for sample in samples),
            loss_weights_B1HW=self._weights_of(samples) if self._weights else None,
        )

    def _weights_of(self, samples: Sequence[Sample]) -> torch.Tensor:
        alike = torch.ones(samples[0].latents_Chw.shape[1:])
        weights = [alike if s.weights_hw is None else s.weights_hw for s in samples]
        return torch.stack(weights)[:, None]

    def _text_of(self, samples: Sequence[Sample], what: str) -> torch.Tensor:
        return torch.stack([self._text[prompt_key(sample.prompt, what)] for sample in samples])

    def sample_at(self, position: int, *, role: Role) -> Sample:
        """The row of a role at a global sample position.

        Every epoch visits all images in a new order; the view and the VAE's sample depend on the
        position. Each random number has a separate generator.
        """
        entries = self._images[role]
        epoch, place = divmod(position, len(entries))
        entry = entries[_order(self._seed, role, epoch, len(entries))[place]]
        view = derive_seed(self._seed, f"view/{role}", position) % entry.num_views
        generator = generator_for(self._seed, f"vae/{role}", position)
        weights_Vhw = self._weights.get(entry.image) if role == "instance" else None
        return Sample(
            role=role,
            position=position,
            image=entry.image,
            view=view,
            prompt=self._prompt_of(entry, position),
            latents_Chw=self._draw_latents(entry, view, generator),
            time_ids_6=torch.cat([self._moments[entry.file]["size"][view], self._target]),
            weights_hw=None if weights_Vhw is None else weights_Vhw[view],
        )

    def _prompt_of(self, entry: CachedImage, position: int) -> str:
        """The image's prompt, or at some positions the instance prompt instead of its caption."""
        if entry.instance_prompt is None or self.record.caption_rate is None:
            return entry.prompt
        drawn = derive_seed(self._seed, "caption", position) / 2**SEED_BITS
        return entry.prompt if drawn < self.record.caption_rate else entry.instance_prompt

    def _draw_latents(
        self, entry: CachedImage, view: int, generator: torch.Generator
    ) -> torch.Tensor:
        """z_0 = scale * (mean + std * noise), like diffusers' DiagonalGaussianDistribution."""
        moments = self._moments[entry.file]
        mean, logvar = moments["mean"][view], moments["logvar"][view]
        std = torch.exp(0.5 * logvar)
        noise = torch.randn(mean.shape, generator=generator)
        return self.record.latent_scale * (mean + std * noise)

    def _require_images(self) -> None:
        for role in self._roles:
            if not self._images[role]:
                raise SettingsError(
                    f"the latent cache lacks {role} images, which the training needs",
                    hint="run the stages class-images and cache again"
                    if role == "class"
                    else "run the stages validate and cache again",
                )


_ROLES: tuple[Role, Role] = ("instance", "class")


@lru_cache(maxsize=64)
def _order(seed: int, role: Role, epoch: int, num_images: int) -> tuple[int, ...]:
    """The order of the images in an epoch."""
    generator = generator_for(seed, f"order/{role}", epoch)
    return tuple(torch.randperm(num_images, generator=generator).tolist())
