"""Peak memory and steps per second of the recipes, by the trainer that users run.

    python -m benchmarks.memory                 # a GPU: every preset on its real architecture
    python -m benchmarks.memory                 # none: the same recipes on the pocket model

Random weights, random rows, no pictures: memory and time do not depend on them. Each recipe runs in
a process of its own for a few updates; nothing is saved before the last reading. Results go to
benchmarks/results/memory-<device>.json, each beside the prediction of `dreambooth plan`.

On a CPU, memory is the peak resident set less that before the networks were loaded: it holds what
the allocator has not given back and what libraries allocate on first use.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.architectures import ARCHITECTURES
from dreambooth_core import config
from dreambooth_core.models.batch import TrainBatch
from dreambooth_core.planning.memory import predict
from dreambooth_core.planning.shapes import shapes_of
from dreambooth_core.ports import NullSink, never_stop
from dreambooth_core.records import BaseModelIdentity
from dreambooth_core.training import worker
from dreambooth_core.training.job import TrainJob

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PRESETS = ("sd14-24gb", "sd14-16gb", "sd14-12gb", "sd14-6gb", "sd14-lora")
"""Without sd14-8gb (DeepSpeed is launched, see docs/memory.md) and sdxl-lora (other rows)."""
NUM_UPDATES = 12
MIB = 2**20


class Readings:
    """Rows of one size, and what the process holds each time some are asked for."""

    def __init__(self, shape: tuple[int, ...], *, width: int, with_class: bool) -> None:
        self.shape, self.width, self.with_class = shape, width, with_class
        self.moments: list[float] = []
        self.peaks: list[float] = []

    def rows_at(self, positions: Any) -> TrainBatch:
        """Made-up rows; the reading is of all updates before."""
        self.moments.append(time.monotonic())
        self.peaks.append(resident_mib())
        size = len(positions) * (2 if self.with_class else 1)
        return TrainBatch(
            latents_BCHW=torch.randn(size, *self.shape),
            text_BLD=torch.randn(size, 77, self.width),
            is_class_B=tuple(i >= len(positions) for i in range(size)),
            position_B=tuple(positions) * (2 if self.with_class else 1),
            image_B=("made up",) * size,
        )


def resident_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(preset: str, base: Path, side_px: int) -> dict[str, Any]:
    """Train the preset's recipe on the model in `base` and read what it held."""
    settings = config.load_settings(ROOT / "presets" / f"{preset}.yaml")
    compute = settings.train.mixed_precision
    if compute == "fp16" and not torch.cuda.is_available():
        compute = "bf16"
    changes = {
        "max_train_steps": NUM_UPDATES,
        "checkpointing_steps": NUM_UPDATES,
        "mixed_precision": compute,
        "train_text_encoder": False,
    }
    train = settings.train.model_copy(update=changes)
    unet = json.loads((base / "unet" / "config.json").read_bytes())
    shape = (unet["in_channels"], side_px // 8, side_px // 8)
    readings = Readings(shape, width=unet["cross_attention_dim"], with_class=True)
    with tempfile.TemporaryDirectory() as name:
        job = make_job(Path(name), base, settings, train)
        job.state_dir.mkdir(parents=True)
        before = resident_mib()
        worker.work(job, open_rows=lambda _: readings.rows_at, open_sink=lambda _: NullSink(),
                    should_stop=never_stop)  # fmt: skip
    model = shapes_of(str(base), base)
    assert model is not None
    data = settings.data.model_copy(update={"resolution": side_px})
    predicted = predict(model, train, data, with_prior=True)
    spent = readings.moments[-1] - readings.moments[2]
    row: dict[str, Any] = {
        "preset": preset,
        "side_px": side_px,
        "rows": 2 * train.train_batch_size,
        "steps_per_second": round((len(readings.moments) - 3) / spent, 3),
        "predicted_mib": round(predicted.peak, 1),
    }
    if torch.cuda.is_available():
        row["peak_mib"] = round(torch.cuda.max_memory_allocated() / MIB, 1)
        row["peak_reserved_mib"] = round(torch.cuda.max_memory_reserved() / MIB, 1)
    else:
        row["peak_mib"] = round(readings.peaks[-1] - before, 1)
    row["error_of_prediction"] = round(row["predicted_mib"] / row["peak_mib"] - 1, 3)
    return row


def make_job(folder: Path, base: Path, settings: config.Settings, train: Any) -> TrainJob:
    """A run below `folder` that begins at once."""
    return TrainJob(
        subject="benchmark",
        fingerprint="0" * 64,
        base_model=config.BaseModelSettings(pretrained_model_name_or_path=str(base)),
        base_identity=BaseModelIdentity(name="random", revision=None, sha256="0" * 64),
        compute=settings.compute.model_copy(update={"num_threads": torch.get_num_threads()}),
        train=train,
        prior_loss_weight=1.0,
        log_every_steps=NUM_UPDATES,
        workspace_root=folder,
        cache_dir=folder / "cache",
        state_dir=folder / "state",
        out_dir=folder / "out",
        log_file=folder / "log",
        rehearse=False,
    )


def build_sd1(folder: Path) -> Path:
    """SD 1.4's U-Net with random weights, in a pipeline whose other parts are small."""
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "assets" / "pocket-sd" / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=768, num_hidden_layers=1, intermediate_size=768,
        num_attention_heads=12, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    blocks = 4
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(32,) * blocks, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_config(ARCHITECTURES["sd1"].unet),
        scheduler=DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def main() -> None:
    """Run every recipe in turn and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="*", default=list(PRESETS))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        preset, base, side_px = args.child
        print("ROW " + json.dumps(child(preset, Path(base), int(side_px))))
        return
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        base = build_sd1(Path(name) / "sd1") if on_gpu else ROOT / "assets" / "pocket-sd"
        for preset in args.presets:
            command = [sys.executable, "-m", "benchmarks.memory", "--child", preset, str(base)]
            command.append("512" if on_gpu else "64")
            done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
            found = [line[4:] for line in done.stdout.splitlines() if line.startswith("ROW ")]
            rows.append(json.loads(found[0]) if found else
                        {"preset": preset, "failed": done.stderr.splitlines()[-1:]})  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    kind = device.lower().replace(" ", "-") if on_gpu else "cpu"
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"device": device, "versions": versions, "rows": rows}, indent=2)
    (RESULTS / f"memory-{kind}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
