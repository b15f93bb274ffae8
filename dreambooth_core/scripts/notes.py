"""What is worth saying of a command line that is not wrong."""

from __future__ import annotations

from dreambooth_core.environment import is_installed
from dreambooth_core.scripts.flags import ScriptFlags


def notes_on(flags: ScriptFlags) -> list[str]:
    """What is worth saying of a command line that is not wrong."""
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
        notes.append("--validation_prompt: its pictures go nowhere with --report_to none")
    if flags.max_train_steps is not None:
        notes += notes_on_pictures(flags, num_steps=flags.max_train_steps)
    if "text_encoder_lr" in given and not flags.train_text_encoder:
        notes.append("--text_encoder_lr has no effect without --train_text_encoder")
    if flags.dataloader_num_workers:
        notes.append("--dataloader_num_workers has no effect: images are read once, then cached")
    if not flags.instance_prompt.strip():
        notes.append("--instance_prompt is empty: no word will stand for the subject")
    if flags.report_to == "tensorboard" and not is_installed("tensorboard"):
        notes.append("TensorBoard is not installed: no curves are written")
    return notes


def notes_on_pictures(flags: ScriptFlags, *, num_steps: int) -> list[str]:
    """Worth saying when a run of so many steps ends before its first validation picture."""
    every = getattr(flags, "validation_steps", None)
    if flags.validation_prompt is None or every is None or every <= num_steps:
        return []
    return [
        f"--validation_prompt: no picture is drawn: --validation_steps is {every}, and the run "
        f"ends at step {num_steps}"
    ]
