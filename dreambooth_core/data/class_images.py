"""Class images: pictures of the ordinary class by the base model, made once and kept.

Image i comes from its own seed and is drawn in a block of fixed indices, so a set of 30 that is
topped up to 48 is the set of 48. A finished block is recorded with the sha256 of every image; what
is not recorded, or not what its record says, is made again.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from dreambooth_core import files, locks
from dreambooth_core.config import PriorSettings
from dreambooth_core.errors import StageError, Stopped
from dreambooth_core.numerics.seeding import derive_seed
from dreambooth_core.ports import Progress, StopSignal, never_stop, no_progress
from dreambooth_core.records import BaseModelIdentity, Manifest, ManifestImage, Record

Sampler = Callable[[Sequence[int]], list[Image.Image]]
"""Draws the class images of some indices: each from `class_seed`."""

_PNG_LEVEL = 6
_LOCK_TURN_S = 1.0


class ClassBlock(Record):
    """A finished block: which set it belongs to, its first index, and its files in order."""

    key: str
    first: int
    images: tuple[ManifestImage, ...]


def class_image_key(
    identity: BaseModelIdentity,
    *,
    class_prompt: str,
    prior: PriorSettings,
    resolution: int,
    sampler: str,
    compute: Sequence[str | int],
) -> str:
    """sha256 over everything that the bits of a class image depend on, but not how many there are.

    `sampler` names the scheduler; `compute` is the device's type, the thread count and so on.
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
    """The seed of class image `index` in a set made with `seed`."""
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
    warnings: tuple[str, ...] = (),
    should_stop: StopSignal = never_stop,
    progress: Progress = no_progress,
) -> Manifest:
    """Complete the set `key` in the folder `state`, and write its first `num` images into `out`.

    Processes that make the same set at once share the work. Raises Stopped between blocks (the
    sampler may do so within one); what is finished stays.
    """
    blocks: list[ClassBlock] = []
    for first in range(0, num, block_size):
        indices = range(first, first + block_size)
        block = complete_block(state, key, indices, sampler=sampler, should_stop=should_stop)
        blocks.append(block)
        progress(min(first + block_size, num), num)
    images = _copy_images(blocks, state=state, out=out, num=num)
    manifest = Manifest(role="class", fingerprint=fingerprint, images=images, warnings=warnings)
    manifest.write(out)
    return manifest


def complete_block(
    state: Path, key: str, indices: range, *, sampler: Sampler, should_stop: StopSignal = never_stop
) -> ClassBlock:
    """The block of these indices: as it is if whole and of this key, else drawn and recorded."""
    folder = _block_folder(state, indices.start)
    block = _whole_block(folder, key, indices)
    if block is not None:
        return block
    with _turn(folder.parent / "lock", should_stop):
        block = _whole_block(folder, key, indices)
        return block if block is not None else _draw_block(folder, key, indices, sampler=sampler)


def _block_folder(state: Path, first: int) -> Path:
    """The block's own folder within the folder that its lock guards."""
    return state / f"{first:05d}" / "block"


def _whole_block(folder: Path, key: str, indices: range) -> ClassBlock | None:
    """The recorded block if it is of this key and every image is there unharmed; else None."""
    block = ClassBlock.read_if_there(folder)
    if block is None or block.key != key or block.first != indices.start:
        return None
    if len(block.images) != len(indices):
        return None
    harmed = files.mismatches(folder, {image.file: image.sha256 for image in block.images})
    return None if harmed else block


def _draw_block(folder: Path, key: str, indices: range, *, sampler: Sampler) -> ClassBlock:
    drawn = sampler(indices)
    if len(drawn) != len(indices):
        raise StageError(f"the sampler gave {len(drawn)} images for {len(indices)} indices")
    files.remove_asides(folder.parent)
    with files.atomic_dir(folder) as aside:
        images: list[ManifestImage] = []
        for index, image in zip(indices, drawn, strict=True):
            data = png_bytes(image)
            name = image_name(index)
            (aside / name).write_bytes(data)
            images.append(ManifestImage(file=name, sha256=files.sha256_bytes(data)))
        block = ClassBlock(key=key, first=indices.start, images=tuple(images))
        block.write(aside)
    return block


@contextlib.contextmanager
def _turn(lock: Path, should_stop: StopSignal) -> Iterator[None]:
    """Hold a block's lock; while another process draws it, wait and heed a stop."""
    with contextlib.ExitStack() as stack:
        while True:
            if should_stop():
                raise Stopped(
                    "the class images were asked to stop", hint="run it again to continue"
                )
            with contextlib.suppress(StageError):
                stack.enter_context(locks.hold(lock, timeout_s=_LOCK_TURN_S))
                break
        yield


def _copy_images(
    blocks: Sequence[ClassBlock], *, state: Path, out: Path, num: int
) -> tuple[ManifestImage, ...]:
    """Write exactly the first `num` images of the blocks."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    images: list[ManifestImage] = []
    for block in blocks:
        for image in block.images[: num - block.first]:
            name = f"images/{image.file}"
            files.write_bytes(
                out / name, (_block_folder(state, block.first) / image.file).read_bytes()
            )
            images.append(ManifestImage(file=name, sha256=image.sha256))
    return tuple(images)


def image_name(index: int) -> str:
    """The file name of class image `index`."""
    return f"{index:05d}.png"


def png_bytes(image: Image.Image) -> bytes:
    """A picture as PNG without metadata: lossless, and the same pixels give the same bytes."""
    stream = io.BytesIO()
    bare = Image.frombytes(image.mode, image.size, image.tobytes())
    bare.save(stream, format="PNG", compress_level=_PNG_LEVEL)
    return stream.getvalue()
