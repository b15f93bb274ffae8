"""The files of models, from hub ids and folders, and hashes of their content."""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core import files, locks
from dreambooth_core.config import BaseModelSettings
from dreambooth_core.errors import DreamBoothError, SettingsError

_INDEX = "model_index.json"
_NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
PIPELINE_PATTERNS = (
    _INDEX,
    *(f"{part}/*.{kind}" for part in _NETWORKS for kind in ("json", "safetensors")),
    *(f"{part}/*.{kind}" for part in ("tokenizer", "tokenizer_2") for kind in ("json", "txt")),
    "scheduler/*.json",
)
"""The files of a saved pipeline that this project reads: never pickles, never code."""

MODEL_PATTERNS = ("*.json", "*.txt", "*.safetensors")
"""The files of a single model with its processor, such as a scorer."""

WORLD = "world.json"
"""In a small base model's folder: the words that it was trained on, by kind (thing, place)."""

_SHOWN = 8
_SIMILAR = 0.6
_ALMOST_EQUAL = 0.85
"""More than hub ids share that differ in the owner alone."""
_SETTLED_S = 2.0
_LOCK_TIMEOUT_S = 60.0
_VARIANT = re.compile(r"\.([A-Za-z0-9_]+)(-\d{5}-of-\d{5})?\.safetensors$")
_ANY_VARIANT = "*.*.safetensors"


@dataclass(frozen=True)
class ModelSource:
    """A model's local folder, and its commit on the hub (None for a plain folder)."""

    folder: Path
    commit: str | None


def find_model(
    name: str,
    root: Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    patterns: Sequence[str],
) -> ModelSource:
    """The folder of a model given by path (relative to `root`) or hub id.

    Downloads a hub id that is not in the local cache; without a `variant`, skips the weights of
    variants (fp16, non_ema). Raises SettingsError with the missing folder or model.
    """
    folder = local_folder(name, root, revision=revision)
    if folder is not None:
        return ModelSource(folder=folder, commit=None)
    skipped = () if variant else (_ANY_VARIANT,)
    return _from_hub(name, root, revision=revision, patterns=patterns, skipped=skipped)


def local_folder(name: str, root: Path, *, revision: str | None = None) -> Path | None:
    """The folder of a model given by path; None for a hub id. Raises SettingsError."""
    folder = root / name
    if folder.is_dir():
        if revision is not None:
            raise SettingsError(
                f"{name} is a folder, but only a hub id has a revision",
                got=f"revision {revision}",
                hint="leave the revision out (null)",
            )
        return folder
    if folder.is_file():
        raise SettingsError(
            f"{name} is a file, and a base model is a folder",
            hint=f"convert it once: StableDiffusionPipeline.from_single_file({name!r})"
            ".save_pretrained('FOLDER'), and name that folder",
        )
    if not _looks_like_hub_id(name, root):
        raise _no_folder(name, root)
    return None


def known_words(name: str, root: Path, kind: str) -> list[str] | None:
    """The words of a kind (thing, place) that a base model's folder says it knows, or None."""
    path = root / name / WORLD
    if not path.is_file():
        return None
    words = read_json_file(path, what="a base model with a list of words").get(kind)
    return sorted(map(str, words)) if isinstance(words, list) else None


def _no_folder(name: str, root: Path) -> SettingsError:
    near = _nearest_pipeline(name, root, cutoff=_SIMILAR)
    return SettingsError(
        f"the model {name} does not exist",
        got=f"no folder {root / name}",
        allowed="a hub id such as CompVis/stable-diffusion-v1-4, or the folder of a model",
        hint=f"did you mean {near}?" if near else None,
    )


def _nearest_pipeline(name: str, root: Path, *, cutoff: float) -> str | None:
    """The saved pipeline with the most similar path, next to `name` or in the workspace."""
    parent = (root / name).parent
    found = {path.parent for path in parent.glob(f"*/{_INDEX}")}
    found |= {path.parent for levels in ("*", "*/*") for path in root.glob(f"{levels}/{_INDEX}")}
    names = [str(p.relative_to(root)) if p.is_relative_to(root) else str(p) for p in found]
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=cutoff)), None)


def _looks_like_hub_id(name: str, root: Path) -> bool:
    """Whether `name` looks like owner/name and its first part is not a folder of the workspace."""
    parts = name.split("/")
    spelled = len(parts) in (1, 2) and all(part.strip(".") for part in parts)
    return spelled and not (len(parts) == 2 and (root / parts[0]).is_dir())


def _from_hub(
    name: str,
    root: Path,
    *,
    revision: str | None,
    patterns: Sequence[str],
    skipped: Sequence[str],
) -> ModelSource:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(skipped)
        )
    except hub_errors() as error:
        what = name if revision is None else f"{name} at revision {revision}"
        near = _nearest_pipeline(name, root, cutoff=_SIMILAR)
        did_you_mean = f"did you mean the folder {near}? Else " if near else ""
        raise SettingsError(
            f"the model {what} is neither a folder of this workspace nor available from the hub",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            hint=f"{did_you_mean}check the spelling and the network, accept the model's licence "
            "and log in with `hf auth login`, or give the folder of a saved model",
        ) from None
    return ModelSource(folder=Path(folder), commit=Path(folder).name)


def named_folder(settings: BaseModelSettings, root: Path) -> Path | None:
    """The base model's folder; None for a hub id. Raises SettingsError.

    A hub id that is almost the path of a saved pipeline in the workspace counts as a misspelled
    path, unless it is in the hub's cache.
    """
    name, revision = settings.pretrained_model_name_or_path, settings.revision
    folder = local_folder(name, root, revision=revision)
    near = folder is None and _nearest_pipeline(name, root, cutoff=_ALMOST_EQUAL)
    if near and not _cached(name, revision):
        raise _no_folder(name, root)
    return folder


def folder_at_hand(settings: BaseModelSettings, root: Path) -> Path | None:
    """The base model's folder, or its snapshot in the hub's cache; None before a download.

    Raises SettingsError for a folder that does not exist.
    """
    cached = _cached(settings.pretrained_model_name_or_path, settings.revision)
    return named_folder(settings, root) or cached


def _cached(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(name, _INDEX, revision=revision)
    return Path(index).parent if isinstance(index, str) else None


def check_pipeline(folder: Path, variant: str | None) -> None:
    """Raise SettingsError unless `folder` has an index and weights of all its networks."""
    index = read_json_file(folder / _INDEX, what="a saved pipeline")
    parts = [folder / part for part in _NETWORKS if index.get(part) not in (None, [None, None])]
    for part in parts:
        require_weights(part, variant)
    if variant and not any(variant_in(part, variant) for part in parts):
        raise SettingsError(
            f"{folder} holds no weights of the variant {variant}",
            got="the plain ones",
            hint="set base_model.variant: null (leave out --variant in a script)",
        )


def variant_in(part: Path, variant: str | None) -> str | None:
    """The variant, if a network's folder has weights of it, else None: the plain ones."""
    names = matching_files(part, ("*.safetensors",)) if variant else []
    return variant if any(_variant_of(name) == variant for name in names) else None


def require_weights(part: Path, variant: str | None) -> None:
    """Raise SettingsError, with what is there, unless `part` has weights that can be loaded."""
    names = matching_files(part, ("*.safetensors",)) if part.is_dir() else []
    if of_variant(names, variant):
        return
    if names:
        there = sorted({_variant_of(name) or "" for name in names})
        asked = f"weights of the variant {variant}" if variant else "plain weights"
        raise SettingsError(
            f"{part} holds no {asked}",
            got=f"the variant {', '.join(there)}: {', '.join(names[:_SHOWN])}",
            hint=f"set base_model.variant: {there[0]} (--variant={there[0]} in a script)",
        )
    raise SettingsError(
        f"{part} holds no weights that can be used",
        got=describe_folder(part),
        allowed="safetensors files (pickled .bin and .ckpt files are never loaded)",
        hint="load it with diffusers where it came from and call save_pretrained('FOLDER')",
    )


def describe_folder(folder: Path) -> str:
    """What a folder holds, for the message of an error."""
    if not folder.is_dir():
        return f"no folder {folder}"
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "an empty folder"


def hub_errors() -> tuple[type[Exception], ...]:
    """The exceptions of a call to the hub: the hub's own, and those of its HTTP library.

    Its version decides on the HTTP library (httpx or another), whose exceptions are bases of the
    hub's own.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    bases = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    return (*bases, HFValidationError, OSError)


def matching_files(folder: Path, patterns: Iterable[str]) -> list[str]:
    """The files below `folder` that match a pattern, as sorted relative names."""
    kept = tuple(patterns)
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(n for n in names if any(_fits(n, pattern) for pattern in kept))


def _fits(name: str, pattern: str) -> bool:
    """Whether a name matches a shell pattern whose `*` does not cross folders."""
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def of_variant(names: Sequence[str], variant: str | None) -> list[str]:
    """The names without weights that loading `variant` does not read.

    In each folder it reads the variant's weights if there are any, else the plain ones. So the
    identity of a model does not change if another variant is downloaded.
    """
    weights = [name for name in names if name.endswith(".safetensors")]
    have = {Path(name).parent for name in weights if variant and _variant_of(name) == variant}

    def is_read(name: str) -> bool:
        wanted = variant if Path(name).parent in have else None
        return name not in weights or _variant_of(name) == wanted

    return [name for name in names if is_read(name)]


def _variant_of(name: str) -> str | None:
    found = _VARIANT.search(Path(name).name)
    return found.group(1) if found else None


def content_sha256(
    folder: Path, *, patterns: Iterable[str], variant: str | None = None, hash_cache: Path
) -> str:
    """One sha256 over names and contents of the matching files.

    `hash_cache` caches the hashes of unchanged files. Raises SettingsError for a folder without
    any weight file.
    """
    names = of_variant(matching_files(folder, patterns), variant)
    if not any(name.endswith(".safetensors") for name in names):
        require_weights(folder, variant)
    remembered = HashCache(hash_cache)
    hashes = {name: remembered.sha256(folder / name) for name in names}
    remembered.save()
    return files.digest_of(hashes)


class HashCache:
    """Caches the sha256 of large files by path, size, times and inode."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read_known(path)
        self._learned: dict[str, list[int | str]] = {}

    def sha256(self, path: Path) -> str:
        """The hash of a file, from the cache if the file has not changed."""
        real = path.resolve()
        key = str(real)
        before = _stamp(real)
        known = self._known.get(key)
        if known is not None and known[:-1] == before:
            return str(known[-1])
        sha256 = files.sha256_file(real)
        # A file written just now could change again within the clock's resolution.
        settled = time.time_ns() - int(before[1]) > _SETTLED_S * 1e9
        if settled and _stamp(real) == before:
            self._known[key] = self._learned[key] = [*before, sha256]
        return sha256

    def save(self) -> None:
        """Add what was learned to the file, to which other processes may have added meanwhile."""
        if self._learned:
            with locks.hold(self._path.with_suffix(".lock"), timeout_s=_LOCK_TIMEOUT_S):
                files.write_json(self._path, {**_read_known(self._path), **self._learned})
            self._learned = {}


def _stamp(path: Path) -> list[int | str]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _read_known(path: Path) -> dict[str, list[int | str]]:
    """The cached hashes; none if the file is missing or damaged."""
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def read_json_file(path: Path, *, what: str) -> dict[str, object]:
    """Read a JSON object from a model's folder. Raises SettingsError."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        below = sorted(found.parent for found in path.parent.glob(f"*/{path.name}"))
        raise SettingsError(
            f"{path.parent} is not {what}: it has no {path.name}",
            got=describe_folder(path.parent),
            hint=f"did you mean {below[0]}?" if below else None,
        ) from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read", got=error.strerror) from None
    except ValueError as error:
        raise SettingsError(f"{path} is not JSON", got=str(error)) from None
    if not isinstance(value, dict):
        raise SettingsError(f"{path} must hold an object", got=type(value).__name__)
    return value


def unusable(folder: Path, error: Exception) -> DreamBoothError:
    """The error for a folder that the libraries cannot load."""
    return SettingsError(
        f"{folder} cannot be loaded",
        got=f"{type(error).__name__}: {error} (it holds {describe_folder(folder)})",
        hint="it must be a complete model in safetensors, as save_pretrained writes it",
    )
