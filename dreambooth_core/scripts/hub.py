"""The upload to the hub for `push_to_hub`."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core import files
from dreambooth_core.errors import SettingsError, StageError
from dreambooth_core.models import source
from dreambooth_core.scripts.settings import ScriptSettings
from dreambooth_core.training.progress import log_line

NOT_UPLOADED = (".dreambooth/*", ".aside-*", "checkpoint-*/training_state/*")
"""Files that only a resume on this machine needs."""


def create_repository(settings: ScriptSettings) -> str:
    """Create the repository before the training, so that a bad token fails early; return its id.

    Raises SettingsError when the hub refuses or cannot be reached.
    """
    from huggingface_hub import create_repo

    name = settings.flags.hub_model_id or settings.output_dir.resolve().name
    try:
        return create_repo(repo_id=name, exist_ok=True, token=settings.flags.hub_token).repo_id
    except source.hub_errors() as error:
        first_line = str(error).partition("\n")[0]
        raise SettingsError(
            f"--push_to_hub: the repository {name} cannot be made",
            got=f"{type(error).__name__}: {first_line}",
            hint="check the network and log in with `hf auth login`, or train without "
            "--push_to_hub and upload later",
        ) from None


def upload(settings: ScriptSettings, repository: str) -> None:
    """Write the model card and upload output_dir. Raises StageError; the files stay here."""
    from huggingface_hub import upload_folder

    files.write_text(settings.output_dir / "README.md", _card(settings))
    try:
        upload_folder(
            repo_id=repository,
            folder_path=settings.output_dir,
            commit_message="End of training",
            ignore_patterns=list(NOT_UPLOADED),
            token=settings.flags.hub_token,
        )
    except Exception as error:
        # Whatever failed, the training is done: report how to upload by hand.
        raise StageError(
            f"the upload to {repository} failed; the result is whole in {settings.output_dir}",
            got=f"{type(error).__name__}: {error}",
            hint=_by_hand(settings, repository),
        ) from error
    log_line(f"uploaded to {repository}")


def not_uploaded(settings: ScriptSettings, repository: str) -> str:
    """The message for a stopped upload."""
    return (
        f"stopped before the upload to {repository} was done; the result is whole in "
        f"{settings.output_dir}; what to do: {_by_hand(settings, repository)}"
    )


def _by_hand(settings: ScriptSettings, repository: str) -> str:
    return f"hf upload {repository} {settings.output_dir}"


def _card(settings: ScriptSettings) -> str:
    """The model card: base model, method and prompt."""
    flags = settings.flags
    base, is_lora = flags.pretrained_model_name_or_path, settings.script.method == "lora"
    shown = Path(base).name if Path(base).is_dir() else base
    tags = ["text-to-image", "diffusers", "dreambooth", *(["lora"] if is_lora else [])]
    head = [
        "---",
        *([] if Path(base).is_dir() else [f"base_model: {base}"]),
        "library_name: diffusers",
        f"instance_prompt: {flags.instance_prompt!r}",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
    ]
    what = "LoRA weights for" if is_lora else "A fine-tune of"
    text = "with" if flags.train_text_encoder else "without"
    body = f"# DreamBooth\n\n{what} {shown}, trained {text} the text encoder on the prompt"
    return "\n".join(head) + f"\n\n{body}\n`{flags.instance_prompt}`.\n"
