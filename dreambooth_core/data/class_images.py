"""Class images: samples of the ordinary class by the base model.

Every image has its own seed and belongs to a fixed block, so a set of 30 images that grows to 48
equals a set of 48 sampled at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreambooth_core import blocks, files
from dreambooth_core.blocks import SampledImage, Sampler
from dreambooth_core.config import PriorSettings
from dreambooth_core.numerics.seeding import derive_seed
from dreambooth_core.ports import Progress, StopSignal, never_stop, no_progress
from dreambooth_core.records import BaseModelIdentity, Manifest, ManifestImage


def class_image_key(
    identity: BaseModelIdentity,
    *,
    class_prompt: str,
    prior: PriorSettings,
    resolution: int,
    sampler: str,
    compute: Sequence[str | int],
) -> str:
    """sha256 over everything that the bits of a class image depend on; the count does not matter.

    `sampler` is the name of the scheduler; `compute` is the device type, the thread count etc.
    """
    return files.digest_of(
        {
            "base_model": identity.sha256,
            "class_prompt": class_prompt,
            "num_inference_steps": prior.num_inference_steps,
            "guidance_scale": prior.guidance_scale,
            "sample_batch_size": prior.sample_batch_size,
            "seed": prior.seed,
            "resolution": resolution,
            "sampler": sampler,
            "compute": list(compute),
        }
    )


def class_seed(seed: int, index: int) -> int:
    """The seed of class image `index` in a set with the seed `seed`."""
    return derive_seed(seed, "class-image", index)


def make_class_images(  # noqa: PLR0913 - the stage's inputs, all named
    *,
    state: Path,
    out: Path,
    key: str,
    fingerprint: str,
    num: int,
    block_size: int,
    sampler: Sampler,
    lanes: int = 1,
    warnings: tuple[str, ...] = (),
    should_stop: StopSignal = never_stop,
    progress: Progress = no_progress,
) -> Manifest:
    """Complete the set `key` in the folder `state`, and write its first `num` images into `out`.

    Raises Stopped between blocks (the sampler may raise it within one); finished blocks stay.
    """
    sampled = blocks.complete_blocks(
        state,
        key,
        [range(first, first + block_size) for first in range(0, num, block_size)],
        sampler=sampler,
        lanes=lanes,
        should_stop=should_stop,
        show=lambda done: progress(min(done * block_size, num), num),
    )
    images = tuple(_publish(image, out) for image in sampled[:num])
    manifest = Manifest(role="class", fingerprint=fingerprint, images=images, warnings=warnings)
    manifest.write(out)
    return manifest


def _publish(image: SampledImage, out: Path) -> ManifestImage:
    """Copy an image into `out`."""
    name = f"images/{image.path.name}"
    files.write_bytes(out / name, image.path.read_bytes())
    return ManifestImage(file=name, sha256=image.sha256)
