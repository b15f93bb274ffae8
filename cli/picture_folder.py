"""The folder that `dreambooth generate` writes to: existing files stay as they are.

Files are numbered onwards from the highest number in the folder, with the seed in the name, as
AUTOMATIC1111's web UI names them: 00007-42.png.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dreambooth_core import files
from dreambooth_core.errors import SettingsError

_NUMBERED = re.compile(r"(\d+)-(?:\d+|sheet)\.png")


@contextlib.contextmanager
def opened(out: Path) -> Iterator[None]:
    """Create the folder, unless it exists; remove it again if the work in it fails at once.

    Raises SettingsError if no file can be written to it.
    """
    is_new = not out.exists()
    _open_folder(out)
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # it has images, which stay
                out.rmdir()
        raise


def _open_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        is_file = out.exists() and not out.is_dir()
        raise SettingsError(
            f"--out: no images can be written to {out}",
            got="a file" if is_file else error.strerror or str(error),
            allowed="a folder, or a path at which one can be created",
            hint="choose another folder, such as --out pictures",
        ) from None


def next_number(out: Path) -> int:
    """One more than the highest number among the files."""
    found = [_NUMBERED.fullmatch(path.name) for path in out.iterdir()]
    return max((int(match[1]) for match in found if match), default=-1) + 1


def write_new(out: Path, number: int, ending: str, data: bytes) -> tuple[Path, int]:
    """Write a new file with the first free number from `number`; return it and its number.

    Another command may write to the same folder at the same time. Raises SettingsError.
    """
    while True:
        path = out / f"{number:05d}{ending}"
        try:
            path.touch(exist_ok=False)  # claims the name
        except FileExistsError:
            number += 1
            continue
        except OSError as error:
            raise SettingsError(f"--out: {path} cannot be written", got=error.strerror) from None
        break
    try:
        files.write_bytes(path, data)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise SettingsError(f"--out: {path} cannot be written", got=error.strerror) from None
    return path, number
