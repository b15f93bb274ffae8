"""Training recipes for the benchmarks, run by the real trainer on random batches.

Neither memory nor time depends on the images or on the weights.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTokenizer

from benchmarks.architectures import ARCHITECTURES
from benchmarks.common import has_gpu
from dreambooth_core import config
from dreambooth_core.config import TrainSettings
from dreambooth_core.models.denoiser import TrainBatch
from dreambooth_core.models.families import Pipeline
from dreambooth_core.ports import NullSink, never_stop
from dreambooth_core.records import BaseModelIdentity
from dreambooth_core.training import worker
from dreambooth_core.training.job import TrainJob

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Recipe:
    """A preset with changes to its section `train`."""

    name: str
    preset: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    with_class: bool = True

    @property
    def settings(self) -> config.Settings:
        """The preset with the changes; without a GPU, bf16 replaces fp16."""
        preset = config.load_settings(ROOT / "presets" / f"{self.preset}.yaml")
        train = {**preset.train.model_dump(), **self.changes}
        if train["mixed_precision"] == "fp16" and not has_gpu():
            train["mixed_precision"] = "bf16"
        return preset.model_copy(update={"train": TrainSettings.model_validate(train)})

    @property
    def num_rows(self) -> int:
        """Rows per micro-batch."""
        return self.settings.train.train_batch_size * (2 if self.with_class else 1)


class _Finished(Exception):
    """Stops a run after the last reading, before it saves anything."""


def run(
    recipe: Recipe, base: Path, *, side_px: int, num_updates: int, at_update: Callable[[], None]
) -> None:
    """Run `num_updates` updates on the model in `base`.

    Calls `at_update` before each update and after the last.
    """
    AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier run in this process
    rows = RandomRows(base, side_px, with_class=recipe.with_class)
    train, begun = recipe.settings.train, 0

    def rows_at(positions: Sequence[int]) -> TrainBatch:
        """A micro-batch; each update starts with one call in `gradient_accumulation_steps`."""
        nonlocal begun
        if begun % train.gradient_accumulation_steps == 0:
            at_update()
        begun += 1
        if begun > num_updates * train.gradient_accumulation_steps:
            raise _Finished
        return rows.rows_at(positions)

    limits = {"max_train_steps": num_updates + 1, "checkpointing_steps": num_updates + 1}
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(_Finished):
        job = make_job(Path(name), base, recipe.settings, train.model_copy(update=limits),
                       with_class=recipe.with_class)  # fmt: skip
        job.state_dir.mkdir(parents=True)
        worker.work(job, open_rows=lambda _: rows_at, open_sink=lambda _: NullSink(),
                    should_stop=never_stop)  # fmt: skip


class RandomRows:
    """Random batches in the shapes of a pipeline's networks."""

    def __init__(self, base: Path, side_px: int, *, with_class: bool) -> None:
        unet, text = (_config(base / part) for part in ("unet", "text_encoder"))
        self._shape = (unet["in_channels"], side_px // 8, side_px // 8)
        self._width, self._vocabulary = unet["cross_attention_dim"], text["vocab_size"]
        self._tokens = text["max_position_embeddings"]
        self._encoders = sorted(base.glob("text_encoder*"))
        self._side_px, self._with_class = side_px, with_class

    def rows_at(self, positions: Sequence[int]) -> TrainBatch:
        """A new random batch at each call."""
        turns = 2 if self._with_class else 1
        size = len(positions) * turns
        return TrainBatch(
            latents_BCHW=torch.randn(size, *self._shape),
            text_BLD=torch.randn(size, self._tokens, self._width),
            is_class_B=tuple(i >= len(positions) for i in range(size)),
            position_B=tuple(positions) * turns,
            image_B=("random",) * size,
            ids_EBL=torch.randint(self._vocabulary, (len(self._encoders), size, self._tokens)),
            **self._of_sdxl(size),
        )

    def _of_sdxl(self, size: int) -> dict[str, torch.Tensor]:
        """Pooled text and sizes for SDXL; empty for other models."""
        if len(self._encoders) == 1:
            return {}
        pooled = _config(self._encoders[1])["projection_dim"]
        sides = [self._side_px, self._side_px, 0, 0, self._side_px, self._side_px]
        return {
            "pooled_BP": torch.randn(size, pooled),
            "time_ids_B6": torch.tensor([sides] * size, dtype=torch.float32),
        }


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_bytes())


def make_job(
    folder: Path, base: Path, settings: config.Settings, train: TrainSettings, *, with_class: bool
) -> TrainJob:
    """A training job with all paths below `folder`."""
    threads = {"num_threads": torch.get_num_threads()}
    return TrainJob(
        subject="benchmark",
        fingerprint="0" * 64,
        base_model=config.BaseModelSettings(pretrained_model_name_or_path=str(base)),
        base_identity=BaseModelIdentity(name="random", revision=None, sha256="0" * 64),
        compute=settings.compute.model_copy(update=threads),
        train=train,
        prior_loss_weight=1.0 if with_class else None,
        log_every_steps=train.max_train_steps,
        workspace_root=folder,
        cache_dir=folder / "cache",
        state_dir=folder / "state",
        out_dir=folder / "out",
        log_file=folder / "log",
        dry_run=False,
    )


@contextlib.contextmanager
def base_of(model: str) -> Iterator[Path]:
    """The folder of the pocket model, or a temporary one of a real architecture."""
    if model == "pocket":
        yield ROOT / "assets" / "pocket-sd"
        return
    with tempfile.TemporaryDirectory() as name:
        yield build(model, Path(name) / model)


def build(model: str, folder: Path) -> Path:
    """Save SD 1.4's or SDXL's U-Net and text encoders with random weights, and a small VAE.

    The files are bf16; the recipe determines the type of the loaded networks.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        _pipeline(model).save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)
    return folder


def _pipeline(model: str) -> Pipeline:
    architecture, blocks = ARCHITECTURES[model], 4
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "assets" / "pocket-sd" / "tokenizer")
    vae: dict[str, Any] = {
        "block_out_channels": (32,) * blocks,
        "latent_channels": 4,
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
    }
    networks: dict[str, Any] = {
        "vae": AutoencoderKL(**vae),
        "tokenizer": tokenizer,
        "unet": architecture.build_unet(),
        "scheduler": DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
        **architecture.build_text(),
    }
    if model == "sdxl":
        return StableDiffusionXLPipeline(**networks, tokenizer_2=tokenizer)
    networks |= {"safety_checker": None, "feature_extractor": None}
    return StableDiffusionPipeline(**networks, requires_safety_checker=False)
