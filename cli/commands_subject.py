"""The command init, and the command group subject, from add to restore."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli import screens, workspace_setup
from cli.session import JsonOption, SubjectArgument, open_session, open_terminal, user_path
from dreambooth_core import config
from dreambooth_core.data import messages
from dreambooth_core.errors import SettingsError
from tasks import photos
from tasks.dvc import Dvc

subject_app = typer.Typer(
    help="Add, list, caption, mask, rename and remove subjects, and restore their photos.",
    no_args_is_help=True,
)


def init(
    folder: Annotated[
        Path,
        typer.Argument(
            parser=user_path,
            metavar="[folder]",
            help="Folder of the new project. Default: this folder.",
            show_default=False,
        ),
    ] = Path(),
    *,
    json: JsonOption = False,
) -> None:
    """Make a project: settings, presets, the pocket models, and the files of DVC and Prefect."""
    shown = open_terminal(as_json=json)
    made = workspace_setup.init(folder)
    shown.finish(
        {"folder": str(folder.absolute()), "made": made},
        lambda console: _show_project(console, folder, made),
    )


def _show_project(console: Console, folder: Path, made: list[str]) -> None:
    change = "" if folder == Path() else f"cd {shlex.quote(str(folder))}\n"
    console.print(
        f"{folder.absolute()}: {', '.join(made)}\nnext:\n{change}"
        "git add . && git commit --message 'Start the project'\n"
        "dreambooth subject add NAME --class-noun NOUN --images FOLDER\n"
        "dreambooth run NAME",
    )


@subject_app.command("add")
def subject_add(
    name: Annotated[
        str,
        typer.Argument(help="Name of the new subject: lower-case letters, digits, - and _."),
    ],
    *,
    class_noun: Annotated[str, typer.Option(help="Noun for its class, such as dog.")],
    images: Annotated[
        Path,
        typer.Option(parser=user_path, metavar="FOLDER", help="Folder with 3 to 6 photos to copy."),
    ],
    identifier: Annotated[str, typer.Option(help="Rare word that stands for the subject.")] = "sks",
    json: JsonOption = False,
) -> None:
    """Check a subject's photos, copy the usable ones, and add it to params.yaml and DVC."""
    session = open_session(as_json=json)
    from cli import subjects  # the data gate, which would delay every command

    new = subjects.NewSubject(name, class_noun=class_noun, identifier=identifier)
    dvc = Dvc(session.workspace, env=session.env)
    added = subjects.add(session.workspace, new, images, dvc)
    session.terminal.finish(added, lambda console: _show_added(console, added))


def _show_added(console: Console, added: dict[str, Any]) -> None:
    gate = added["gate"]
    screens.show_gate(console, gate)
    for warning in added["warnings"]:
        console.print(f"warning: {warning}")
    unread = [each for each in gate["skipped"] if each["reason"] not in messages.READ]
    left = [each["name"] for each in (*gate["rejected"], *unread)]
    copied = {name.partition("/")[0] for name in added["copied"]}  # files, and folders of masks
    left = [name for name in left if name not in copied]
    folder = added["instance_dir"]
    console.print(
        f"{added['name']}: {len(added['copied'])} files copied to {folder}"
        if added["copied"]
        else f"{added['name']}: uses the photos in {folder}, where they are",
    )
    if left:
        verb = "not copied" if added["copied"] else "not used"
        console.print(f"{verb}: {', '.join(left)}")
    console.print(f"next: dreambooth run {added['name']}")


@subject_app.command("caption")
def subject_caption(
    name: SubjectArgument,
    *,
    model: Annotated[
        str | None,
        typer.Option(
            help="Captioner: hub id or folder of a BLIP model. Default: CLIP and the places that "
            "the base model knows, otherwise BLIP.",
            show_default=False,
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also replace captions that photos have.")
    ] = False,
    use: Annotated[
        bool, typer.Option("--use", help="Also set data.captions: true for this subject.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the captions, and change nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Write a caption for each photo that has none, with what it shows besides the subject."""
    session = open_session(as_json=json)
    from cli import captions, settings_file  # torch, which would delay every command

    dvc = Dvc(session.workspace, env=session.env)
    made = captions.caption(
        session.workspace, name, dvc, model=model, replace=replace, dry_run=dry_run
    )
    if use and not dry_run:
        settings_file.save_for_subject(session.workspace, name, "data.captions", value=True)
        made["used"] = True
    session.terminal.finish(made, lambda console: _show_captions(console, made, dry_run))


def _show_captions(console: Console, made: dict[str, Any], dry_run: bool) -> None:  # noqa: FBT001
    table = Table()
    for title in ("photo", "caption", ""):
        table.add_column(title, overflow="fold")
    for row in made["captions"]:
        table.add_row(row["photo"], row["caption"], row["state"])
    console.print(table)
    name = made["name"]
    if dry_run:
        console.print(f"nothing is written; to write them: dreambooth subject caption {name}")
        return
    console.print(f"{name}: captions written: {made['written']}; change them as you like")
    if made["used"]:
        console.print(f"next: dreambooth run {name}")
    else:
        console.print(
            f"data.captions is off, so they are not used; to use them: "
            f"dreambooth subject caption {name} --use"
        )


@subject_app.command("mask")
def subject_mask(
    name: SubjectArgument,
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also replace masks that photos have.")
    ] = False,
    use: Annotated[
        bool, typer.Option("--use", help="Also set data.masks: files for this subject.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=user_path,
            metavar="FOLDER",
            help="Write the masks of all photos there, to look at; change nothing else.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a mask for each photo that has none, where the base model sees the subject."""
    session = open_session(as_json=json)
    if out is not None and (replace or use):
        raise SettingsError(
            "--out changes nothing of the subject, so --replace and --use have no effect",
            hint="leave out --out, or both of the others",
        )
    from cli import automatic_masks, settings_file  # torch, which would delay every command

    dvc = Dvc(session.workspace, env=session.env)
    if out is not None:
        made = automatic_masks.preview(session.workspace, name, dvc, out=out)
    else:
        made = automatic_masks.write(session.workspace, name, dvc, replace=replace)
    if use:
        settings_file.save_for_subject(session.workspace, name, "data.masks", value="files")
        made["used"] = True
    session.terminal.finish(made, lambda console: _show_masks(console, made, out))


def _show_masks(console: Console, made: dict[str, Any], out: Path | None) -> None:
    table = Table()
    for title in ("photo", "mask", "white", ""):
        table.add_column(title, overflow="fold")
    for row in made["masks"]:
        share = "" if row["share"] is None else f"{100 * row['share']:.0f} %"
        table.add_row(row["photo"], row["mask"] or "", share, row["state"])
    console.print(table)
    name = made["name"]
    console.print(f"{name}: masks written: {made['written']}, in {made['folder']}")
    if out is not None:
        console.print(f"to use and change them as files: dreambooth subject mask {name} --use")
    elif made["used"]:
        console.print(f"next: dreambooth run {name}")
    else:
        console.print(
            f"data.masks is not files, so they are not used; to use them: "
            f"dreambooth subject mask {name} --use"
        )


@subject_app.command("list")
def subject_list(*, json: JsonOption = False) -> None:
    """List the subjects: their words, their photos, their last run."""
    session = open_session(as_json=json)
    from cli import subject_table  # like `subjects`

    rows = subject_table.rows(session.workspace)
    session.terminal.finish({"subjects": rows}, lambda console: _show_list(console, rows))


def _show_list(console: Console, rows: list[dict[str, Any]]) -> None:
    if not rows:
        console.print("no subjects; add one: dreambooth subject add")
        return
    table = Table()
    for title in ("subject", "class noun", "identifier", "photos", "last run"):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(
            *(row["name"], row["class_noun"], row["identifier"], str(row["photos"])),
            row["last_run"],
        )
    console.print(table)


@subject_app.command("remove")
def subject_remove(
    name: SubjectArgument,
    *,
    photos: Annotated[
        bool, typer.Option("--photos", help="Also delete the copies of its photos.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Remove a subject from params.yaml and dvc.yaml; keep its outputs and registered versions."""
    session = open_session(as_json=json)
    from cli import subjects  # the data gate, which would delay every command

    removed = subjects.remove(session.workspace, name, photos=photos)
    session.terminal.finish(removed, lambda console: _show_removed(console, removed, photos))


def _show_removed(console: Console, removed: dict[str, Any], photos: bool) -> None:  # noqa: FBT001
    name = removed["name"]
    console.print(f"{name}: removed from params.yaml and dvc.yaml")
    if removed["photos_deleted"]:
        console.print("its photos are deleted; DVC's cache keeps a copy until `dvc gc`")
    elif photos:
        console.print("its photos stay: they are outside data/, or another subject uses them")
    kept = [*removed["kept"], "its versions in the registry"]
    console.print(f"kept: {', '.join(kept)}")
    if not removed["subjects_left"]:
        console.print("no subjects are left; add one: dreambooth subject add")


@subject_app.command("rename")
def subject_rename(
    name: SubjectArgument,
    new: Annotated[str, typer.Argument(help="Its new name: lower-case letters, digits, - and _.")],
    *,
    json: JsonOption = False,
) -> None:
    """Rename a subject, with its photos, outputs and registered versions; nothing runs again."""
    session = open_session(as_json=json)
    from cli import renaming  # like `subjects`

    dvc = Dvc(session.workspace, env=session.env)
    renamed = renaming.rename(session.workspace, name, new, dvc=dvc, env=session.env)
    session.terminal.finish(renamed, lambda console: _show_renamed(console, renamed))


def _show_renamed(console: Console, renamed: dict[str, Any]) -> None:
    name = renamed["name"]
    console.print(f"{renamed['old']}: is now {name}, with photos in {renamed['instance_dir']}")
    if renamed["model"]:
        console.print(f"its versions are now those of models:/{renamed['model']}")
    for text in renamed["mentions"]:
        console.print(f"still has the old name: {text}")
    console.print(f"next: dreambooth report {name}    # draws its page with the new name")


@subject_app.command("restore")
def subject_restore(
    name: Annotated[str | None, typer.Argument(help="Name of a subject. Default: all.")] = None,
    *,
    json: JsonOption = False,
) -> None:
    """Restore missing photos from DVC's cache, its remote or the shipped examples."""
    session = open_session(as_json=json)
    dvc = Dvc(session.workspace, env=session.env)
    settings = config.load_settings(session.workspace.params)
    views = [config.for_subject(settings, each) for each in ([name] if name else settings.subjects)]
    restored = [view.name for view in views if photos.restore(session.workspace, view, dvc)]
    session.terminal.finish(
        {"restored": restored},
        lambda console: console.print(
            f"photos restored: {', '.join(restored) or 'none were missing'}"
        ),
    )
