"""Command lines of the scripts on a tiny model, run in the test's own process."""

from __future__ import annotations

import signal
from pathlib import Path

from accelerate.state import AcceleratorState

from dreambooth_core.scripts import flags
from dreambooth_core.scripts.flags import Script
from dreambooth_core.scripts.main import main


def arguments(base_model: Path | str, photos: Path, out: Path, **more: object) -> list[str]:
    """The flags that every run needs, and `more`; True stands for a switch, None for no flag."""
    values = {
        "pretrained_model_name_or_path": base_model,
        "instance_data_dir": photos,
        "instance_prompt": "a photo of sks mug",
        "output_dir": out,
        "resolution": 64,
        "train_batch_size": 1,
        "max_train_steps": 2,
        "learning_rate": 1e-4,
        "report_to": "none",
        "seed": 1,
        **more,
    }
    given = {name: value for name, value in values.items() if value is not None}
    return [f"--{n}" if value is True else f"--{n}={value}" for n, value in given.items()]


def run(
    base_model: Path | str,
    photos: Path,
    out: Path,
    *,
    script: Script = flags.DREAMBOOTH,
    **more: object,
) -> int:
    """Run a script as in a process of its own, after which nothing is left; its exit code."""
    receivers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return main(script, arguments(base_model, photos, out, **more))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        for number, receiver in receivers.items():
            signal.signal(number, receiver)


def prior(folder: Path, num: int, **more: object) -> dict[str, object]:
    """The flags of prior preservation with `num` class images in `folder`."""
    return {
        "with_prior_preservation": True,
        "class_data_dir": folder,
        "class_prompt": "a photo of a mug",
        "num_class_images": num,
        "sample_batch_size": 2,
        **more,
    }
