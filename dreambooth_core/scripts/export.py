"""The result in output_dir, as the guide's scripts save it: a pipeline or an adapter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from dreambooth_core import files
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import load, lora, source, weights
from dreambooth_core.models.lora import require_layers
from dreambooth_core.scripts import disk
from dreambooth_core.scripts.settings import ScriptSettings
from dreambooth_core.training.progress import log_line
from dreambooth_core.training.trainable import TrainableModel

KOHYA_FILE = "pytorch_lora_weights_kohya.safetensors"
"""The file name of the guide's script."""

_BESIDE = ("safety_checker/*.json", "safety_checker/*.safetensors", "feature_extractor/*.json")
_OPTIONAL = ("safety_checker", "feature_extractor")
_OF_MODELS = ("*.json", "*.safetensors", "*.bin", "*.msgpack", "*.model", "merges.txt", "vocab.txt")
"""Files of saved networks, tokenizers and schedulers, which a new result replaces."""


def write_result(settings: ScriptSettings, model: TrainableModel) -> None:
    """Write the trained networks to a temporary folder, then move them into output_dir."""
    with files.atomic_dir(settings.state_dir / "result") as aside:
        if settings.script.method == "lora":
            model.write(aside)
            if getattr(settings.flags, "output_kohya_format", False):
                lora.write_kohya(aside, out=aside / KOHYA_FILE)
        else:
            _write_pipeline(settings, model, aside)
    for entry in sorted((settings.state_dir / "result").iterdir()):
        _move_over(entry, settings.output_dir / entry.name)
    files.fsync_path(settings.output_dir)
    log_line(f"the result is in {settings.output_dir}")


def _write_pipeline(settings: ScriptSettings, model: TrainableModel, out: Path) -> None:
    """Write the base pipeline with its safety checker and the trained networks."""
    base = settings.base_model
    found = source.find_model(
        base.pretrained_model_name_or_path,
        Path.cwd(),
        revision=base.revision,
        variant=base.variant,
        patterns=(*source.PIPELINE_PATTERNS, *_BESIDE),
    )
    parts: dict[str, Any] = dict(model.denoiser.parts)
    if getattr(settings.flags, "skip_save_text_encoder", False):
        parts["text_encoder"] = None
    index = source.read_json_file(found.folder / "model_index.json", what="a saved pipeline")
    absent = {n: None for n in _OPTIONAL if n in index and not (found.folder / n).is_dir()}
    try:
        pipe = DiffusionPipeline.from_pretrained(
            found.folder,
            dtype=torch.float32,  # of the trained networks; a part of another could not feed them
            variant=base.variant,
            use_safetensors=True,
            local_files_only=True,
            **absent,
            **parts,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise source.unusable(found.folder, error) from error
    weights.write_pipeline(pipe, out)


def prepare_output_dir(settings: ScriptSettings) -> None:
    """Create the run's folders, and check that the result of the base model will fit in.

    Removes leftovers of killed runs. Raises SettingsError.
    """
    _require_folder(settings.output_dir)
    files.remove_asides(settings.output_dir)
    base = load.find_base_model(settings.base_model, settings.places.root).folder
    load.pipeline_family(base)
    if lora_settings := settings.train(seed=0, max_train_steps=1).lora:
        with_text = settings.flags.train_text_encoder
        require_layers(load.empty_networks(base, with_text=with_text), lora_settings)
    _check_names(settings, base)
    _require_folder(settings.state_dir)


def _require_folder(folder: Path) -> None:
    disk.make_folder(folder, flag="output_dir")
    disk.require_writable(folder, flag="output_dir")


def _check_names(settings: ScriptSettings, base: Path) -> None:
    """Raise SettingsError if output_dir has a file in place of a result's folder, or vice versa."""
    index = source.read_json_file(base / "model_index.json", what="a saved pipeline")
    folders = (
        [] if settings.script.method == "lora" else [n for n in index if not n.startswith("_")]
    )
    names = (
        (lora.LORA_FILE, KOHYA_FILE) if settings.script.method == "lora" else ("model_index.json",)
    )
    odd = [n for n in folders if _exists(settings.output_dir / n, is_dir=False)]
    odd += [n for n in names if _exists(settings.output_dir / n, is_dir=True)]
    if odd:
        raise SettingsError(
            f"--output_dir: {settings.output_dir} holds what is in the way of the result",
            got=", ".join(odd),
            hint="move it away, or give another folder",
        )


def _exists(path: Path, *, is_dir: bool) -> bool:
    return path.exists() and path.is_dir() == is_dir


def _move_over(entry: Path, target: Path) -> None:
    """Replace an older file or folder of the same name.

    Files in an older folder that are not a model's move to the new one.
    """
    if target.is_dir() and not target.is_symlink():
        _carry_over(target, entry)
        shutil.rmtree(target)
    entry.replace(target)


def _carry_over(older: Path, newer: Path) -> None:
    for path in sorted(older.rglob("*")):
        own = newer / path.relative_to(older)
        if path.is_file() and not own.exists() and not any(map(path.match, _OF_MODELS)):
            own.parent.mkdir(parents=True, exist_ok=True)
            path.replace(own)
