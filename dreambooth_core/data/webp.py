"""The size of a WebP file, from its header: Pillow allocates the whole canvas to open one."""

from __future__ import annotations

from pathlib import Path

_HEAD_BYTES = 30
_SIDE_BITS = 14


def canvas_size(path: Path) -> tuple[int, int] | None:
    """Width and height in the header of a WebP file; None for other and cut files."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if len(head) < _HEAD_BYTES or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    kind, mask = head[12:16], (1 << _SIDE_BITS) - 1
    if kind == b"VP8X":
        return _number(head[24:27]) + 1, _number(head[27:30]) + 1
    if kind == b"VP8L":
        sides = _number(head[21:25])
        return (sides & mask) + 1, (sides >> _SIDE_BITS & mask) + 1
    if kind == b"VP8 ":
        return _number(head[26:28]) & mask, _number(head[28:30]) & mask
    return None


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")
