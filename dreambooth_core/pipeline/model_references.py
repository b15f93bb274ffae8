"""Which registered version a user means: a whole reference, or the name of a subject."""

from __future__ import annotations

import re
from pathlib import Path

from dreambooth_core.config import Settings
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import source
from dreambooth_core.registry import versions
from dreambooth_core.registry.tracking import Tracking
from dreambooth_core.registry.versions import VersionInfo

_SHORT = re.compile(r"(?P<name>[\w-]+)(?P<rest>@[\w-]+|/\d+)?")
_PREFIX = "models:/"


def find(store: Tracking, model: str, settings: Settings) -> VersionInfo:
    """The version of `models:/NAME@ALIAS`, `models:/NAME/3`, or of a subject: mug, mug/3.

    A name alone means its champion. Raises UnknownModelError with the nearest name, and
    SettingsError for what can be no model at all.
    """
    short = _SHORT.fullmatch(model.removeprefix(_PREFIX))
    known = versions.registered_names(store) if short else []
    name = _registered_name(short["name"], settings, known) if short else ""
    if short is None or (name not in known and Path(model).exists()):
        there = f" ({source.describe_folder(Path(model))})" if Path(model).exists() else ""
        raise SettingsError(
            "not a model",
            got=f"{model!r}{there}",
            allowed="a subject such as mug, models:/NAME@champion, models:/NAME/3, a "
            "checkpoint-<step> folder, or the folder of a saved pipeline",
        )
    return versions.resolve_reference(store, f"{_PREFIX}{name}{short['rest'] or '@champion'}")


def _registered_name(name: str, settings: Settings, known: list[str]) -> str:
    """The registered model that a name stands for; the name itself if there is none."""
    own = f"{settings.registry.model_name_prefix}-{name}"
    return own if name not in known and own in known else name
