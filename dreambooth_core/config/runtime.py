"""The section `runtime` of params.yaml: settings that never change a result."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from dreambooth_core.config.fields import Effect, Section, setting
from dreambooth_core.config.quiet_hours import QuietHoursText


class RuntimeSettings(Section):
    """Settings that never change a result: logging, time limits, disk space."""

    log_every_steps: PositiveInt = setting("Log metrics every N steps.", effect=Effect.NONE)
    stop_grace_s: PositiveFloat = setting(
        "Seconds a stopped trainer may save before it is killed; two saves if asynchronous.",
        effect=Effect.NONE,
    )
    async_checkpointing: bool = setting(
        "Save in the background. A kill may then lose up to twice checkpointing_steps.",
        effect=Effect.NONE,
        default=False,
    )
    keep_store_days: PositiveInt = setting(
        "`dreambooth clean` deletes store entries older than N days.", effect=Effect.NONE
    )
    keep_store_gib: PositiveFloat = setting(
        "`dreambooth clean` shrinks the store to this size, in GiB.", effect=Effect.NONE
    )
    keep_checkpoints: Literal["selected", "all"] = setting(
        "Checkpoints to keep in a finished training's output: all, or the selected one.",
        effect=Effect.NONE,
        default="all",
    )
    retrain_every_h: PositiveFloat | None = setting(
        "Retrain a subject whose photos changed, at most once per N hours, while `dreambooth up` "
        "or `dreambooth watch` runs. Null: never.",
        effect=Effect.NONE,
        default=None,
    )
    quiet_hours: QuietHoursText | None = setting(
        "Start no such run in this time of the day, such as 22:00-06:00 Europe/Berlin (without a "
        "zone: UTC). Changes wait for its end.",
        effect=Effect.NONE,
        default=None,
    )
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = setting(
        "Trackers that get the curves of a training in addition to MLflow: tensorboard (in "
        ".state/trackers), wandb (Weights & Biases).",
        effect=Effect.NONE,
        default=(),
    )
    commit_results: Literal["commit", "push"] | None = setting(
        "After a run, commit its dvc.lock and scores to the branch dreambooth-results; push: also "
        "`dvc push` its files and push the branch. Null: neither.",
        effect=Effect.NONE,
        default=None,
    )
