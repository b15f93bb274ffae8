"""Makes a project folder outside a checkout: settings, models, DVC, git, Prefect's files."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from dreambooth_core import config, files
from dreambooth_core.errors import SettingsError, StageError

_HERE = Path(__file__).parent
_GITIGNORE = ".gitignore"
_PARAMS = "params.yaml"


def init(folder: Path) -> list[str]:
    """Make a project in `folder`; return the names of what is new in it.

    Raises SettingsError if the folder already has one of these names, StageError if it cannot be
    written; then nothing has changed.
    """
    names = (_HERE / "workspace_files.txt").read_text(encoding="utf-8").split()
    _refuse_conflicts(folder, {Path(name).parts[0] for name in names} - {_GITIGNORE})
    try:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".aside-init-", dir=folder))
        try:
            _stage(names, staged)
            made = _move_in(staged, folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
            if is_new and not any(folder.iterdir()):
                folder.rmdir()
    except OSError as error:
        raise StageError(
            f"no project can be made in {folder}", got=f"{error.strerror}: {error.filename}"
        ) from None
    return made


def _refuse_conflicts(folder: Path, names: set[str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise SettingsError("not a folder", got=str(folder), hint="dreambooth init NEW_FOLDER")
    if shutil.which("git") is None:
        raise SettingsError("git is not installed", hint="install git, then repeat the command")
    present = sorted(name for name in names if (folder / name).exists())
    if present:
        raise SettingsError(
            f"{folder} already has files of a project",
            got=", ".join(present),
            hint="choose a folder without them: dreambooth init NEW_FOLDER",
        )


def _template() -> Path:
    """The files of a new project: in the installed package, or the checkout itself."""
    packed = _HERE / "template"
    return packed if packed.is_dir() else _HERE.parent


def _stage(names: list[str], staged: Path) -> None:
    for name in names:
        source, target = _template() / name, staged / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            files.copy_tree(source, target)
        else:
            shutil.copyfile(source, target)
    for name, change in (
        (_PARAMS, _without_subjects),
        ("dvc.yaml", _without_plots),
        ("prefect.yaml", _of_installed_flows),
    ):
        path = staged / name
        path.write_bytes(change(path.read_bytes().decode()).encode())
    _git_init(staged)


def _without_subjects(text: str) -> str:
    for name in config.parse_yaml(text)["subjects"]:
        text = config.remove_entry(text, "subjects", name)
    return text


def _without_plots(text: str) -> str:
    for plot in config.parse_yaml(text)["plots"]:
        text = config.remove_item(text, "plots", plot)
    return text


def _of_installed_flows(text: str) -> str:
    """The deployments with the flows of the package, and without the example subject."""
    text = re.sub(r"entrypoint: (\w+)/(\w+)\.py:(\w+)", r"entrypoint: \1.\2.\3", text)
    return re.sub(r"^ +parameters:\n +subject: mug\n", "", text, flags=re.MULTILINE)


def _git_init(staged: Path) -> None:
    """Start a git repository, unless the folder is in one: DVC and the lineage use it."""
    inside = subprocess.run(
        ["git", "rev-parse", "--is-inside-work-tree"],
        cwd=staged.parent,
        capture_output=True,
        check=False,
    )
    if inside.returncode != 0:
        subprocess.run(["git", "init", "--quiet"], cwd=staged, capture_output=True, check=True)


def _move_in(staged: Path, folder: Path) -> list[str]:
    """Move everything from `staged` to `folder`; params.yaml, which makes it a project, last."""
    if (folder / _GITIGNORE).is_file():
        _extend(folder / _GITIGNORE, staged / _GITIGNORE)
        (staged / _GITIGNORE).unlink()
    made = sorted(
        (path.name for path in staged.iterdir()), key=lambda name: (name == _PARAMS, name)
    )
    moved: list[Path] = []
    try:
        for name in made:
            moved.append((staged / name).rename(folder / name))
    except BaseException:
        for path in moved:
            path.rename(staged / path.name)
        raise
    return made


def _extend(path: Path, other: Path) -> None:
    """Append the lines of another .gitignore that are missing."""
    text = path.read_text(encoding="utf-8")
    lines = other.read_text(encoding="utf-8").splitlines()
    missing = [line for line in lines if line not in text.splitlines()]
    if missing:
        start = text if text.endswith("\n") or not text else text + "\n"
        files.write_text(path, start + "\n".join(missing) + "\n")
