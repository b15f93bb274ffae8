"""Checks of a command line before torch is imported: mistakes, and flags without effect."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from dreambooth_core.data.listing import list_folder
from dreambooth_core.environment import is_installed
from dreambooth_core.errors import DreamBoothError, Problem, SettingsError
from dreambooth_core.models import prompts, sides, source
from dreambooth_core.models.families import pipeline_family
from dreambooth_core.scripts.flags import TRACKER_PACKAGES, ScriptFlags

_SHOWN = 5
_PUT_PHOTOS = "what to do: put 3 to 6 photos of the subject there"


def flag_problems(flags: ScriptFlags) -> Iterator[Problem]:
    """Yield the mistakes in flags, folders and model files, and the missing packages."""
    yield from _prior_problems(flags)
    yield from _missing_folders(flags)
    yield from _shared_folders(flags)
    yield from _package_problems(flags)
    yield from _model_problems(flags)
    yield from _prompt_problems(flags)
    yield from _photo_problems(flags)
    yield from _output_problems(flags)
    if flags.train_text_encoder and getattr(flags, "pre_compute_text_embeddings", False):
        yield Problem(
            "not possible with --train_text_encoder, which changes the embeddings at every step",
            "--pre_compute_text_embeddings",
        )


def _prior_problems(flags: ScriptFlags) -> Iterator[Problem]:
    for name in ("class_data_dir", "class_prompt"):
        if flags.with_prior_preservation and getattr(flags, name) is None:
            yield Problem("missing; required by --with_prior_preservation", f"--{name}")


def _missing_folders(flags: ScriptFlags) -> Iterator[Problem]:
    folder = Path(flags.instance_data_dir)
    if not folder.is_dir():
        yield Problem(f"no folder {folder}", "--instance_data_dir")
    for name in ("output_dir", "class_data_dir"):
        value = getattr(flags, name)
        if value is not None and Path(value).exists() and not Path(value).is_dir():
            yield Problem(f"{value} is a file, not a folder", f"--{name}")


def _shared_folders(flags: ScriptFlags) -> Iterator[Problem]:
    """Photos, class images, the model and the results each need their own folder."""
    names = ("instance_data_dir", "class_data_dir", "pretrained_model_name_or_path", "output_dir")
    given = [(name, getattr(flags, name)) for name in names if getattr(flags, name) is not None]
    for (other, there), (name, here) in itertools.combinations(given, 2):
        if Path(here).resolve() == Path(there).resolve():
            yield Problem(f"the same folder as --{other}; each needs its own", f"--{name}")


def _package_problems(flags: ScriptFlags) -> Iterator[Problem]:
    if flags.enable_xformers_memory_efficient_attention and not is_installed("xformers"):
        yield Problem(
            "xFormers is not installed; omit the flag: the default, PyTorch's SDPA, saves the "
            "same memory and needs no package",
            "--enable_xformers_memory_efficient_attention",
        )
    if flags.use_8bit_adam and not is_installed("bitsandbytes"):
        yield Problem(
            "bitsandbytes is not installed: `pip install bitsandbytes`", "--use_8bit_adam"
        )
    package = TRACKER_PACKAGES.get(flags.report_to)
    if package and package != "tensorboard" and not is_installed(package):
        yield Problem(f"{package} is not installed: `pip install {package}`", "--report_to")


def _model_problems(flags: ScriptFlags) -> Iterator[Problem]:
    """Check local folders only; a hub id would need a request."""
    usable: Path | None = None
    for name in ("pretrained_model_name_or_path", "tokenizer_name"):
        model = getattr(flags, name, None)
        try:
            folder = model and source.local_folder(model, Path.cwd(), revision=flags.revision)
            if folder and name == "pretrained_model_name_or_path":
                pipeline_family(folder)
                source.check_pipeline(folder, flags.variant)
                usable = folder
        except DreamBoothError as error:
            yield Problem(str(error), f"--{name}")
    side = sides.side_problem(flags.resolution, usable)
    if side is not None:
        yield Problem(side, "--resolution")


def prompts_of(flags: ScriptFlags) -> tuple[dict[str, str], dict[str, str]]:
    """The prompts that images are drawn for, and those that are trained on, by flag."""
    drawn = {"--validation_prompt": flags.validation_prompt or ""}
    trained = {"--instance_prompt": flags.instance_prompt}
    if flags.with_prior_preservation:
        both = {"--class_prompt": flags.class_prompt or ""}
        drawn, trained = drawn | both, trained | both
    return drawn, trained


def _prompt_problems(flags: ScriptFlags) -> Iterator[Problem]:
    """Yield what the text encoders of a local model cannot read whole."""
    folders = [_usable_folder(flags, "pretrained_model_name_or_path")]
    if getattr(flags, "tokenizer_name", None) is not None:
        folders.append(_usable_folder(flags, "tokenizer_name"))
    if None in folders:
        return
    model, *other = map(Path, filter(None, folders))
    own = prompts.saved_tokenizers_in(model)
    most = min(tokenizer.model_max_length for tokenizer in own)
    length = getattr(flags, "tokenizer_max_length", None) or most
    if length > most:
        text = (
            f"the text encoder cannot read so many tokens; found: {length}; allowed: up to {most}"
        )
        yield Problem(text, "--tokenizer_max_length")
        return
    drawn, trained = prompts_of(flags)
    try:
        used = [prompts.SavedTokenizer(each, length) for each in other or [t.folder for t in own]]
    except SettingsError as error:
        yield Problem(str(error), "--tokenizer_name")
        return
    for texts, tokenizers in ((trained, used), (drawn, own)):
        try:
            prompts.check_prompts(texts, tokenizers)
        except SettingsError as error:
            yield from error.problems


def _usable_folder(flags: ScriptFlags, name: str) -> Path | None:
    """The local folder that a flag names; None for a hub id and a folder that has its own error."""
    try:
        folder = source.local_folder(getattr(flags, name), Path.cwd(), revision=flags.revision)
        if folder is not None and name == "pretrained_model_name_or_path":
            pipeline_family(folder)
            source.check_pipeline(folder, flags.variant)
    except DreamBoothError:
        return None
    return folder


def _photo_problems(flags: ScriptFlags) -> Iterator[Problem]:
    folder, key = Path(flags.instance_data_dir), "--instance_data_dir"
    if not folder.is_dir():
        return  # reported by _missing_folders
    try:
        listing = list_folder(folder, subject="your subject")
    except DreamBoothError as error:
        yield Problem(f"{error.what}; found: {folder}; {_PUT_PHOTOS}", key)
        return
    if not listing.photos:
        entries = [f"{each.name}: {each.reason}" for each in listing.skipped]
        more = [f"and {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else []
        found = "; ".join([*entries[:_SHOWN], *more])
        yield Problem(f"no photo in {folder}; found: {found}; {_PUT_PHOTOS}", key)


def _output_problems(flags: ScriptFlags) -> Iterator[Problem]:
    """Check permissions only. The run finds other write errors."""
    folder = Path(flags.output_dir).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if existing.is_dir() and not os.access(existing, os.W_OK | os.X_OK):
        yield Problem(
            f"{existing} is not writable; what to do: change its permissions, or choose another "
            "folder",
            "--output_dir",
        )


def notes_on(flags: ScriptFlags) -> list[str]:
    """Notes on valid flags without effect."""
    notes: list[str] = []
    given = flags.model_fields_set
    if not flags.with_prior_preservation:
        notes += [
            f"--{name} has no effect without --with_prior_preservation"
            for name in ("class_data_dir", "class_prompt")
            if getattr(flags, name) is not None
        ]
    if flags.lr_scheduler == "constant" and "lr_warmup_steps" in given and flags.lr_warmup_steps:
        notes.append("--lr_warmup_steps has no effect with --lr_scheduler constant")
    if flags.validation_prompt is not None and flags.report_to == "none":
        notes.append("--validation_prompt: --report_to none discards its images")
    if flags.max_train_steps is not None:
        notes += notes_on_pictures(flags, num_steps=flags.max_train_steps)
    if "text_encoder_lr" in given and not flags.train_text_encoder:
        notes.append("--text_encoder_lr has no effect without --train_text_encoder")
    if flags.dataloader_num_workers:
        notes.append("--dataloader_num_workers has no effect: training reads cached latents")
    notes += _notes_on_empty_prompts(flags)
    if flags.report_to == "tensorboard" and not is_installed("tensorboard"):
        notes.append(
            "TensorBoard is not installed: no curves are logged; `pip install tensorboard`"
        )
    return notes


def _notes_on_empty_prompts(flags: ScriptFlags) -> Iterator[str]:
    """Notes on prompts without a word, which diffusers' scripts accept."""
    if not flags.instance_prompt.strip():
        yield "--instance_prompt is empty: no word stands for the subject"
    drawn = {"--validation_prompt": flags.validation_prompt}
    if flags.with_prior_preservation:
        drawn["--class_prompt"] = flags.class_prompt
    for flag, prompt in drawn.items():
        if prompt is not None and not prompt.strip():
            yield f"{flag} is empty: its images show anything that the model has learnt"


def notes_on_pictures(flags: ScriptFlags, *, num_steps: int) -> list[str]:
    """A note if a run of `num_steps` ends before its first validation image."""
    every = getattr(flags, "validation_steps", None)
    if flags.validation_prompt is None or every is None or every <= num_steps:
        return []
    return [
        f"--validation_prompt: no image is generated: --validation_steps is {every}, and the run "
        f"ends at step {num_steps}"
    ]
