"""`dreambooth subject`: all or nothing, at once from several processes, with the gate's verdict."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli import subject_table, subjects
from dreambooth_core import config, files, locks
from dreambooth_core.errors import DataError, SettingsError, StageError
from dreambooth_core.workspace import Workspace
from tasks.dvc import Dvc
from tests.flow import workspaces

DOG = subjects.NewSubject("my-dog", class_noun="dog", identifier="sks")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """The checkout's settings, DVC and git, without a model that a test would load."""
    return workspaces.shipped(tmp_path / "project")


def dvc_of(workspace: Workspace) -> Dvc:
    return Dvc(workspace, env=workspaces.environment(workspace.root))


def content(workspace: Workspace) -> dict[str, str]:
    """Every file of the user's, by content: no store, no cache, no git."""
    hashes = files.tree_hashes(workspace.root)
    inner = (".git/", ".state/", ".dvc/cache/", ".dvc/tmp/", "assets/")
    return {name: sha for name, sha in hashes.items() if not name.startswith(inner)}


def command(workspace: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    return workspaces.run_in(
        workspace.root, sys.executable, "-m", "cli", "subject", *arguments, check=False
    )


def test_add_copies_only_usable_photos_and_reports_every_file(
    workspace: Workspace, photos: Path
) -> None:
    (photos / "empty.jpg").touch()
    (photos / "doc.pdf").write_bytes(b"%PDF-1.4")
    (photos / "more").mkdir()
    usable = sorted(path.name for path in photos.glob("*.png"))
    (photos / usable[0]).with_suffix(".txt").write_text("a photo of sks dog on a table")
    (photos / "masks").mkdir()
    for name in (usable[0], "of-nothing.png"):
        shutil.copyfile(photos / usable[0], photos / "masks" / name)
    done = command(
        workspace, "add", "my-dog", "--class-noun", "dog", "--images", str(photos), "--json"
    )
    added = json.loads(done.stdout)
    caption = Path(usable[0]).with_suffix(".txt").name
    assert sorted(added["copied"]) == sorted([*usable, caption, f"masks/{usable[0]}"])
    folder = workspace.resolve(added["instance_dir"])
    copies = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert sorted(copies) == sorted(added["copied"])
    assert [entry["name"] for entry in added["gate"]["rejected"]] == ["empty.jpg"]
    assert {"doc.pdf", "more"} <= {entry["name"] for entry in added["gate"]["skipped"]}
    assert (workspace.root / "data/instance/my-dog.dvc").is_file()
    options = ("--class-noun", "dog", "--identifier", "sks_dog", "--images", str(photos))
    shown = command(workspace, "add", "fido", *options)
    assert "warning: subjects.fido.identifier: the text encoder reads" in shown.stdout
    assert "not copied: empty.jpg, doc.pdf, more" in shown.stdout


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class_noun": ""}, "--class-noun: not a noun"),
        ({"class_noun": "dog; rm -rf /"}, "--class-noun: not a noun"),
        ({"class_noun": "dog\n"}, "--class-noun: not a noun"),
        ({"identifier": "two words"}, "--identifier: the identifier is one word"),
        ({"identifier": ""}, "--identifier"),
        ({"name": "My Dog"}, "use my-dog; found"),
        ({"name": "../x"}, "not a valid name"),
        ({"name": "dog\n"}, "not a valid name"),
        ({"name": "d\0"}, "not a valid name"),
        ({"name": "д"}, "not a valid name"),
        ({"name": "x" * 300}, "not a valid name"),
        ({"name": "mug"}, "dreambooth subject remove mug"),
    ],
)
def test_wrong_word_is_one_sentence_and_changes_nothing(
    workspace: Workspace, photos: Path, changed: dict[str, str], message: str
) -> None:
    before = content(workspace)
    new = subjects.NewSubject(**{"name": "d", "class_noun": "dog", "identifier": "sks", **changed})
    with pytest.raises(SettingsError) as caught:
        subjects.add(workspace, new, photos, dvc_of(workspace))
    assert message in str(caught.value)
    assert content(workspace) == before


def test_names_that_differ_only_in_dash_and_underscore_are_refused(
    workspace: Workspace, photos: Path
) -> None:
    text = workspace.params.read_text().replace("\n  mug:\n", "\n  my_dog:\n")
    workspace.params.write_text(text)
    with pytest.raises(SettingsError, match="my_dog and my-dog differ only in - and _"):
        subjects.add(workspace, DOG, photos, dvc_of(workspace))


def test_wrong_folder_of_photos_is_one_sentence_and_changes_nothing(
    workspace: Workspace, photos: Path, tmp_path: Path
) -> None:
    empty, text = tmp_path / "empty", tmp_path / "text"
    for folder in (empty, text, workspace.root / "data" / "instance" / "other"):
        folder.mkdir(parents=True)
    (text / "notes.txt").write_text("no photo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = content(workspace)
    messages = {
        next(photos.glob("*.png")): f"a file, not a folder.*--images {photos}",
        tmp_path / "nowhere": "No such file",
        tmp_path / ("x" * 300): "File name too long",
        tmp_path / "loop": "symbolic links",
        empty: "is empty",
        text: "no photo of my-dog can be used; found: notes.txt",
        workspace.root / "data" / "instance" / "other": "project's own folder of photos",
        workspace.root: "project's own folder of photos",
    }
    for images, message in messages.items():
        with pytest.raises(DataError, match=message):
            subjects.add(workspace, DOG, images, dvc_of(workspace))
    assert content(workspace) == before


def test_command_line_shows_no_traceback(workspace: Workspace, photos: Path) -> None:
    (workspace.root / "dvc.yaml").unlink()
    done = command(workspace, "add", "d", "--class-noun", "dog", "--images", str(photos))
    assert done.returncode == SettingsError.exit_code
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: dvc.yaml does not exist")
    assert not (workspace.root / "data").exists()


FULL = "raise OSError(28, 'No space left on device', 'x')"
KILLED = "os._exit(9)"


@pytest.mark.parametrize(
    ("at", "end"), [("add_unlocked", FULL), ("_params_with", FULL), ("_with_plot", KILLED)]
)
def test_addition_that_fails_or_is_killed_can_be_repeated(
    workspace: Workspace, photos: Path, at: str, end: str
) -> None:
    """The process ends inside the addition, after DVC has tracked the photos or before."""
    before = content(workspace)
    script = f"""
import os, sys
from pathlib import Path
from cli import subjects
from dreambooth_core.workspace import Workspace
from tasks.dvc import Dvc
owner = Dvc if {at!r} == "add_unlocked" else subjects
inner, calls = getattr(owner, {at!r}), []
def end(*arguments):
    calls.append(1)
    result = inner(*arguments)
    if {at!r} != "_params_with" or len(calls) == 2:
        {end}
    return result
setattr(owner, {at!r}, end)
workspace = Workspace(Path.cwd())
new = subjects.NewSubject("my-dog", "dog", "sks")
subjects.add(workspace, new, Path(sys.argv[1]), Dvc(workspace, env=dict(os.environ)))
"""
    failed = workspaces.run_in(
        workspace.root, sys.executable, "-c", script, str(photos), check=False
    )
    assert failed.returncode == (9 if end == KILLED else 1), failed.stderr
    if end == FULL:
        assert "nothing has changed" in failed.stderr
        assert content(workspace) == before
    subjects.add(workspace, DOG, photos, dvc_of(workspace))
    assert list(config.load_settings(workspace.params).subjects) == ["mug", "my-dog"]
    assert config.read_yaml(workspace.root / "dvc.yaml")["plots"][1].keys() == {
        "work/my-dog/train/metrics.csv"
    }
    assert not list(workspace.state.glob("adding/*"))


def test_failure_of_dvc_leaves_the_workspace_as_it_was(workspace: Workspace, photos: Path) -> None:
    (workspace.root / ".dvc" / "config").write_text("[core\n")
    before = content(workspace)
    with pytest.raises(StageError, match=r"dvc add.*config file error"):
        subjects.add(workspace, DOG, photos, dvc_of(workspace))
    assert content(workspace) == before


def test_four_additions_at_once_lose_no_subject(workspace: Workspace, photos: Path) -> None:
    names = ["a", "b-c", "d_e", "f4"]
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "cli", "subject", "add", name),
                *("--class-noun", "dog", "--images", str(photos)),
            ],
            cwd=workspace.root,
            env=workspaces.environment(workspace.root),
            stdout=subprocess.DEVNULL,
        )
        for name in names
    ]
    assert [process.wait() for process in started] == [0, 0, 0, 0]
    assert set(config.load_settings(workspace.params).subjects) == {"mug", *names}
    plots = config.read_yaml(workspace.root / "dvc.yaml")["plots"]
    assert {key for plot in plots for key in plot} == {
        f"work/{name}/train/metrics.csv" for name in ("mug", *names)
    }
    assert workspaces.dvc(workspace.root, "status", "validate@b-c").returncode == 0


def test_remove_undoes_add_byte_for_byte(workspace: Workspace, photos: Path) -> None:
    before = content(workspace)
    subjects.add(workspace, DOG, photos, dvc_of(workspace))
    removed = subjects.remove(workspace, "my-dog", photos=True)
    assert removed["photos_deleted"]
    assert content(workspace) == before


def test_removed_subject_keeps_photos_that_can_be_added_again(
    workspace: Workspace, photos: Path
) -> None:
    subjects.add(workspace, DOG, photos, dvc_of(workspace))
    added = content(workspace)
    removed = subjects.remove(workspace, "my-dog", photos=False)
    assert removed["kept"] == ["data/instance/my-dog"]
    with pytest.raises(DataError, match="--images data/instance/my-dog"):
        subjects.add(workspace, DOG, photos, dvc_of(workspace))
    subjects.add(workspace, DOG, workspace.root / "data/instance/my-dog", dvc_of(workspace))
    assert content(workspace) == added


def test_last_subject_can_be_removed_and_dvc_still_works(workspace: Workspace) -> None:
    assert subjects.remove(workspace, "mug", photos=False)["subjects_left"] == 0
    assert config.load_settings(workspace.params).subjects == {}
    assert workspaces.dvc(workspace.root, "status", "--json").stdout.strip() == "{}"


def test_subject_of_a_run_in_progress_is_not_removed(workspace: Workspace) -> None:
    before = content(workspace)
    with locks.hold(workspace.subject_lock("mug"), timeout_s=1):
        assert subject_table.rows(workspace)[0]["last_run"] == "in progress"
        with pytest.raises(StageError, match="a run of mug is in progress"):
            subjects.remove(workspace, "mug", photos=False)
    assert content(workspace) == before
    assert subject_table.rows(workspace)[0]["last_run"] == "none yet"


def test_photos_shared_with_another_subject_are_not_deleted(workspace: Workspace) -> None:
    text = workspace.params.read_text()
    entry = text[text.index("  mug:\n") :]
    workspace.params.write_text(text + entry.replace("  mug:\n", "  cup:\n", 1))
    folder = workspace.root / "data" / "instance" / "mug"
    folder.mkdir(parents=True)
    assert not subjects.remove(workspace, "cup", photos=True)["photos_deleted"]
    assert folder.is_dir()


def test_every_mistake_in_an_addition_is_reported_at_once(workspace: Workspace) -> None:
    file = workspace.params
    wrong = subjects.NewSubject("My Dog", class_noun="", identifier="a b")
    with pytest.raises(SettingsError) as caught:
        subjects.add(workspace, wrong, file, dvc_of(workspace))
    said = str(caught.value)
    for part in ("use my-dog", "--class-noun: ", "--identifier: ", "--images is a file"):
        assert part in said


@pytest.mark.parametrize("name", ["", "..", "../other", "a/../../b"])
def test_name_that_leads_out_of_its_folder_is_refused(workspace: Workspace, name: str) -> None:
    for path_of in (workspace.places, workspace.subject_lock):
        with pytest.raises(SettingsError, match="not a valid name for a subject"):
            path_of(name)
