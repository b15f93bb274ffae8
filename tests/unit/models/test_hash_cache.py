"""Processes that hash at the same time lose none of each other's hashes."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dreambooth_core.models.source import HashCache


def test_two_caches_saved_after_each_other_both_stay(tmp_path: Path) -> None:
    weights = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for path in weights:
        path.write_bytes(path.name.encode())
        os.utime(path, (1, 1))
    remembered = tmp_path / "hashes.json"
    caches = [HashCache(remembered) for _ in weights]
    for cache, path in zip(caches, weights, strict=True):
        cache.sha256(path)
    for cache in caches:
        cache.save()
    assert set(json.loads(remembered.read_text())) == {str(path.resolve()) for path in weights}
