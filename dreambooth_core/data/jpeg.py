"""The structure of a JPEG file, read without decoding it."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)
"""A marker with a length or the end; scans hold only stuffed zeros and restart markers."""


def num_scans(path: Path, *, at_most: int) -> int:
    """Count the scans of the first image of a JPEG file, up to one more than `at_most`."""
    scans, position = 0, 2
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        while scans <= at_most and (marker := _MARKER.search(data, position)):
            code = marker[1][0]
            if code == _END_OF_IMAGE:
                break
            scans += code == _START_OF_SCAN
            length = int.from_bytes(data[marker.end() : marker.end() + 2], "big")
            position = marker.end() + length
    return scans
