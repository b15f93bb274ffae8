"""What can be seen of models and folders before torch is imported: paths, names of files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dreambooth_core.data.listing import list_folder
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.models import source
from dreambooth_core.scripts.flags import ScriptFlags

_SHOWN = 5
_PUT_PHOTOS = "what to do: put 3 to 6 photos of the subject into it"


def input_problems(flags: ScriptFlags) -> list[str]:
    """One line for each folder that cannot be used; a folder that is missing is told elsewhere."""
    return [*_model_problems(flags), *_photo_problems(flags), *_closed_folders(flags)]


def _model_problems(flags: ScriptFlags) -> Iterator[str]:
    """Of folders only: what a hub id stands for is not known before it is asked for."""
    for name in ("pretrained_model_name_or_path", "tokenizer_name"):
        model = getattr(flags, name, None)
        try:
            folder = model and source.local_folder(model, Path.cwd(), revision=flags.revision)
            if folder and name == "pretrained_model_name_or_path":
                source.read_json_file(folder / "model_index.json", what="a saved pipeline")
        except DreamBoothError as error:
            yield f"--{name}: {error}"


def _photo_problems(flags: ScriptFlags) -> Iterator[str]:
    folder = Path(flags.instance_data_dir)
    if not folder.is_dir():
        return
    try:
        listing = list_folder(folder, subject="your subject")
    except DreamBoothError as error:
        yield f"--instance_data_dir: {error.what}; found: {folder}; {_PUT_PHOTOS}"
        return
    if not listing.photos:
        entries = [f"{each.name}: {each.reason}" for each in listing.skipped]
        more = [f"and {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else []
        found = "; ".join([*entries[:_SHOWN], *more])
        yield f"--instance_data_dir: no photo in {folder}; found: {found}; {_PUT_PHOTOS}"


def _closed_folders(flags: ScriptFlags) -> Iterator[str]:
    """A look at the permissions; whether a file can be made is tried when the run begins."""
    folder = Path(flags.output_dir).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        yield (
            f"--output_dir: nothing can be written into {there}; what to do: see to its "
            "permissions, or give another folder"
        )
