"""The user's folder of class images: usable images, missing ones, and the manifest.

Existing images stay. The name of a new one has its index and its key (model, prompt, sampler,
seed...). Image i depends on the key and on i alone, so an interrupted set continues, and a larger
set starts with the smaller one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dreambooth_core import files
from dreambooth_core.config import DataSettings, PriorSettings
from dreambooth_core.data.class_images import class_seed
from dreambooth_core.data.decode import Decoded, decode
from dreambooth_core.errors import DataError
from dreambooth_core.records import Manifest, ManifestImage

_MADE = re.compile(r"(\d{5})-([0-9a-f]{8})\.png")
_KEY_LETTERS = 8


def list_usable(folder: Path, data: DataSettings) -> tuple[list[Path], list[str]]:
    """The images that decode, sorted by name, and the reasons why others do not.

    Hidden files and subfolders do not count.
    """
    paths: list[Path] = []
    unusable: list[str] = []
    for path in _candidates(folder):
        try:
            _decode(path, data)
        except DataError as error:
            unusable.append(f"{path.name}: {error.what}")
        else:
            paths.append(path)
    return paths, unusable


def _candidates(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def _decode(path: Path, data: DataSettings) -> Decoded:
    return decode(path, background=data.background, max_pixels=int(data.max_megapixels * 1_000_000))


def made_name(index: int, key: str) -> str:
    """The file name of image `index` of the set `key`."""
    return f"{index:05d}-{key[:_KEY_LETTERS]}.png"


def missing_indices(names: Iterable[str], *, key: str, num_missing: int) -> list[int]:
    """The first indices of the set `key` that the folder lacks."""
    there = {_index_of(name, key) for name in names}
    return [i for i in range(num_missing + len(there)) if i not in there][:num_missing]


def _index_of(name: str, key: str) -> int | None:
    found = _MADE.fullmatch(name)
    return int(found[1]) if found and found[2] == key[:_KEY_LETTERS] else None


def manifest_path(folder: Path) -> Path:
    """Next to the folder, because other trainers open every file inside it as an image."""
    return folder.parent / f"{folder.name}.manifest.json"


def write_manifest(
    folder: Path, *, key: str, prompt: str, base_model: str, prior: PriorSettings
) -> None:
    """Record how the images of the set `key` were sampled, in enough detail to repeat it.

    Entries of other sets stay as long as the folder has images of theirs.
    """
    there = [path.name for path in _candidates(folder)]
    images = [
        {
            "file": name,
            "index": index,
            "seed": class_seed(prior.seed, index),
            "sha256": files.sha256_file(folder / name),
        }
        for name in there
        if (index := _index_of(name, key)) is not None
    ]
    settings = prior.model_dump(mode="json", exclude={"num_class_images", "prior_loss_weight"})
    made = {"key": key, "base_model": base_model, "class_prompt": prompt, **settings}
    others = [one for one in read_sets(folder) if one["key"] != key and _num_of(one, there)]
    files.write_json(manifest_path(folder), {"sets": [*others, {**made, "images": images}]})


def read_sets(folder: Path) -> list[dict[str, Any]]:
    """The sets in the folder's manifest, if there is one."""
    try:
        sets = json.loads(manifest_path(folder).read_bytes())["sets"]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # none yet, or a foreign file
    return list(sets)


def of_other_prompts(folder: Path, prompt: str) -> dict[str, int]:
    """The number of images that the manifest lists for other prompts, by prompt."""
    names = [path.name for path in _candidates(folder)]
    found: dict[str, int] = {}
    for one in read_sets(folder):
        num = _num_of(one, names)
        if num and one["class_prompt"] != prompt:
            found[one["class_prompt"]] = found.get(one["class_prompt"], 0) + num
    return found


def _num_of(one: dict[str, Any], names: Sequence[str]) -> int:
    """The number of files in that set."""
    return sum(_index_of(name, one["key"]) is not None for name in names)


def gather(paths: Sequence[Path], *, data: DataSettings, out: Path) -> Manifest:
    """Collect the images in `out` for the cache; the user's files are only read.

    Images of this project are linked; others become upright sRGB copies.
    """
    images: list[ManifestImage] = []
    for path in paths:
        if _MADE.fullmatch(path.name):
            target = out / path.name
            target.symlink_to(path.resolve())
        else:
            target = out / f"{path.name}.png"
            _decode(path, data).image.save(target, format="PNG", compress_level=1)
        images.append(ManifestImage(file=target.name, sha256=files.sha256_file(target)))
    digest = files.digest_of([image.sha256 for image in images])
    manifest = Manifest(role="class", fingerprint=digest, images=tuple(images))
    manifest.write(out)
    return manifest
