"""Sampled images on disk, in blocks of consecutive indices.

    FOLDER/<first index>/lock
    FOLDER/<first index>/block/{00010.png, ..., record.json}

Blocks have fixed bounds because the size of a batch and the position in it change an image's bits.
A block appears whole, with the sha256 of every image in its record, so a kill costs at most one
block per process. A missing, damaged or foreign block is sampled again.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from dreambooth_core import files, locks
from dreambooth_core.errors import StageError, Stopped
from dreambooth_core.ports import StopSignal, never_stop
from dreambooth_core.records import ManifestImage, Record

Sampler = Callable[[Sequence[int]], Sequence[Image.Image]]
"""Samples the images of a block's indices. Each image depends on its index alone.

With several lanes, threads call it at the same time.
"""

T = TypeVar("T")

_PNG_LEVEL = 6
_LOCK_POLL_S = 1.0


@dataclass(frozen=True)
class SampledImage:
    """An image of a finished block."""

    path: Path
    sha256: str


class Block(Record):
    """The record of a finished block: its key, its first index, and its files in order."""

    key: str
    first: int
    images: tuple[ManifestImage, ...]


def once(make: Callable[[], T]) -> Callable[[], T]:
    """Return a function that calls `make` on its first call and then returns the same object.

    Threads may call it at the same time, unlike a cached function: it never makes two.
    """
    lock, made = threading.Lock(), list[T]()

    def get() -> T:
        with lock:
            if not made:
                made.append(make())
            return made[0]

    return get


def complete_blocks(
    folder: Path,
    key: str,
    blocks: Sequence[range],
    *,
    sampler: Sampler,
    lanes: int = 1,
    should_stop: StopSignal = never_stop,
    show: Callable[[int], None] = lambda _: None,
) -> list[SampledImage]:
    """Return the images of all blocks in order, sampling up to `lanes` blocks at the same time.

    `show` gets the number of complete blocks. Otherwise like `complete_block`.
    """

    def complete(indices: range) -> list[SampledImage]:
        return complete_block(folder, key, indices, sampler=sampler, should_stop=should_stop)

    images: list[SampledImage] = []
    with ThreadPoolExecutor(lanes, thread_name_prefix="lane") as pool:
        # Prefect stops a task in its own thread alone, so a single lane stays in it.
        finished = map(complete, blocks) if lanes == 1 else pool.map(complete, blocks)
        for number, block in enumerate(finished, start=1):
            images += block
            show(number)
    return images


def complete_block(
    folder: Path,
    key: str,
    indices: range,
    *,
    sampler: Sampler,
    should_stop: StopSignal = never_stop,
) -> list[SampledImage]:
    """Return the images of a block, and sample them first if the folder lacks them.

    `key` identifies everything besides the index that an image depends on. Processes that share a
    folder sample each block once. Raises Stopped before sampling if `should_stop()`.
    """
    place = folder / f"{indices.start:05d}" / "block"
    block = _read(place, key, indices)
    if block is None:
        with _lock(place.parent / "lock", indices, should_stop):
            block = _read(place, key, indices) or _sample(place, key, indices, sampler=sampler)
    return [SampledImage(place / image.file, image.sha256) for image in block.images]


def _read(place: Path, key: str, indices: range) -> Block | None:
    """The finished block, or None if it is missing, damaged or has another key."""
    block = Block.read_if_there(place)
    if block is None or (block.key, block.first) != (key, indices.start):
        return None
    if len(block.images) != len(indices):
        return None
    wrong = files.mismatches(place, {image.file: image.sha256 for image in block.images})
    return None if wrong else block


def _sample(place: Path, key: str, indices: range, *, sampler: Sampler) -> Block:
    sampled = sampler(indices)
    if len(sampled) != len(indices):
        raise StageError(f"the sampler returned {len(sampled)} images for {len(indices)} indices")
    files.remove_asides(place.parent)
    with files.atomic_dir(place) as aside:
        images: list[ManifestImage] = []
        for index, image in zip(indices, sampled, strict=True):
            data = png_bytes(image)
            (aside / image_name(index)).write_bytes(data)
            images.append(ManifestImage(file=image_name(index), sha256=files.sha256_bytes(data)))
        block = Block(key=key, first=indices.start, images=tuple(images))
        block.write(aside)
    return block


@contextlib.contextmanager
def _lock(path: Path, indices: range, should_stop: StopSignal) -> Generator[None]:
    """Hold a block's lock; check for a stop while another process holds it."""
    with contextlib.ExitStack() as stack:
        while True:
            if should_stop():
                raise Stopped(
                    f"sampling stopped before image {indices.start}",
                    hint="run the same command again: it continues there",
                )
            with contextlib.suppress(StageError):
                stack.enter_context(locks.hold(path, timeout_s=_LOCK_POLL_S))
                break
        yield


def image_name(index: int) -> str:
    """The file name of image `index`."""
    return f"{index:05d}.png"


def png_bytes(image: Image.Image) -> bytes:
    """Encode an image as PNG without metadata: the same pixels give the same bytes."""
    stream = io.BytesIO()
    bare = Image.frombytes(image.mode, image.size, image.tobytes())
    bare.save(stream, format="PNG", compress_level=_PNG_LEVEL)
    return stream.getvalue()
