"""The folders of scorers: where they are, and whether they hold a model of the right kind.

Torch-free.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dreambooth_core.errors import SettingsError
from dreambooth_core.models import source

Role = Literal["clip", "dino"]

KINDS: dict[Role, tuple[str, ...]] = {
    "clip": ("clip",),
    "dino": ("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit"),
}
"""The types of models that have the features of each scorer."""

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_TOKENIZERS = ("tokenizer.json", "vocab.json")
EXAMPLES: dict[Role, str] = {
    "clip": "openai/clip-vit-large-patch14",
    "dino": "facebook/dino-vits16",
}
"""Scorers for photographs."""


def scorer_folder(role: Role, name: str, root: Path) -> Path | None:
    """The folder of a scorer given by path; None for a hub id. Raises SettingsError."""
    try:
        return source.local_folder(name, root)
    except SettingsError:
        raise SettingsError(
            "the scorer's folder does not exist",
            key=f"evaluate.{role}",
            got=name,
            allowed=f"the folder of a model, or a hub id such as {EXAMPLES[role]}",
        ) from None


def check_scorer_files(role: Role, name: str, folder: Path) -> None:
    """Raise SettingsError unless the folder holds a whole model of the right kind."""
    key = f"evaluate.{role}"
    missing = list(_missing(role, folder))
    if missing:
        raise SettingsError(
            f"the scorer's folder lacks {', '.join(missing)}",
            key=key,
            got=name,
            allowed=f"a folder as save_pretrained writes it, or a hub id such as {EXAMPLES[role]}",
        )
    config = source.read_json_file(folder / "config.json", what="a model")
    if config.get("model_type") not in KINDS[role]:
        raise SettingsError(
            f"this model has no features for {role.upper()}",
            key=key,
            got=f"{name} is a {config.get('model_type')!r}",
            allowed=", ".join(KINDS[role]),
        )


def _missing(role: Role, folder: Path) -> list[str]:
    """The parts that a scorer's folder lacks."""
    names = {path.name for path in folder.iterdir()}
    missing = [] if "config.json" in names else ["config.json"]
    if not any(name.endswith(".safetensors") for name in names):
        missing.append("weights (*.safetensors)")
    if names.isdisjoint(_PROCESSORS):
        missing.append(_PROCESSORS[0])
    if role == "clip" and names.isdisjoint(_TOKENIZERS):
        missing.append(_TOKENIZERS[0])
    return missing
