"""The settings of a script's run from its flags, with all checks that need no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dreambooth_core.config import (
    BaseModelSettings,
    ComputeSettings,
    DataSettings,
    LoraSettings,
    PriorSettings,
    TrainSettings,
    problems_of,
)
from dreambooth_core.errors import Problem, SettingsError
from dreambooth_core.jax.refusals import refuse_what_jax_cannot
from dreambooth_core.records import BaseModelIdentity
from dreambooth_core.scripts.flag_checks import flag_problems, notes_on
from dreambooth_core.scripts.flags import Script, ScriptFlags
from dreambooth_core.scripts.launcher_env import LauncherEnv, launcher_problems, precision_problems
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.progress import seconds_between_lines
from dreambooth_core.workspace import Places

_LOG_AT_MOST_EVERY = 10

OFFSET_NOISE = 0.1
"""The strength behind the guide's switch."""
VIEWS_PER_PHOTO = 4
"""Cached random crops per image; the guide's script crops anew in each step."""
CLASS_IMAGE_GUIDANCE = 7.5
"""The default of the base pipeline, which the guide's script uses."""
CLASS_IMAGE_STEPS = 15
"""DPM-Solver++ steps in place of 50 steps of the model's own sampler (docs/guide.md)."""


@dataclass(frozen=True)
class ScriptSubject:
    """The photos and the prompts of the flags."""

    instance_dir: str
    instance_prompt: str
    class_prompt: str


@dataclass(frozen=True)
class ScriptSettings:
    """A checked command line as settings."""

    script: Script
    flags: ScriptFlags
    launcher: LauncherEnv
    base_model: BaseModelSettings
    compute: ComputeSettings
    data: DataSettings
    notes: tuple[str, ...]
    num_replicas: int
    """Devices that share each batch of the run."""

    @property
    def output_dir(self) -> Path:
        """The folder of checkpoints and of the result."""
        return Path(self.flags.output_dir)

    @property
    def state_dir(self) -> Path:
        """Caches and copies of photos; a successful run removes the folder at its end."""
        return self.output_dir / ".dreambooth"

    @property
    def class_dir(self) -> Path | None:
        """The folder of the class images; None without prior preservation."""
        folder = self.flags.class_data_dir
        return Path(folder) if self.flags.with_prior_preservation and folder else None

    @property
    def places(self) -> Places:
        """The folders of the stages, inside `state_dir`."""
        return Places(Path.cwd(), self.state_dir, self.state_dir / "store", self.name)

    @property
    def name(self) -> str:
        """The subject in messages of the data gate."""
        return "your subject"

    @property
    def subject(self) -> ScriptSubject:
        """The photos and the prompts."""
        flags = self.flags
        return ScriptSubject(
            flags.instance_data_dir, flags.instance_prompt, flags.class_prompt or ""
        )

    @property
    def masks_text(self) -> bool:
        """Whether the text encoder gets the attention mask."""
        return bool(getattr(self.flags, "text_encoder_use_attention_mask", False))

    @property
    def base_identity(self) -> BaseModelIdentity:
        """The base model by name, without the hash of its files."""
        base = self.base_model
        return BaseModelIdentity(
            name=base.pretrained_model_name_or_path, revision=base.revision, sha256=""
        )

    def prior(self, *, seed: int) -> PriorSettings:
        """The settings of the class images."""
        return PriorSettings(
            prior_loss_weight=self.flags.prior_loss_weight,
            num_class_images=self.flags.num_class_images,
            solver="dpm++",
            num_inference_steps=CLASS_IMAGE_STEPS,
            guidance_scale=CLASS_IMAGE_GUIDANCE,
            sample_batch_size=self.flags.sample_batch_size,
            seed=seed,
        )

    def train(self, *, seed: int, max_train_steps: int) -> TrainSettings:
        """The settings of the training. Raises ValidationError."""
        return TrainSettings(
            **_train_values(self.script, self.flags, self.launcher, self.num_replicas),
            seed=seed,
            max_train_steps=max_train_steps,
        )

    def job(self, train: TrainSettings) -> TrainJob:
        """The trainer's job, with the script's folders."""
        places, base = self.places, self.base_model
        return TrainJob(
            subject="subject",
            fingerprint="",
            base_model=base,
            base_identity=self.base_identity,
            compute=self.compute,
            train=train,
            prior_loss_weight=self.flags.prior_loss_weight if self.class_dir else None,
            log_every_steps=max(1, min(_LOG_AT_MOST_EVERY, train.max_train_steps // 10)),
            async_checkpointing=True,
            seconds_between_lines=seconds_between_lines(),
            workspace_root=places.root,
            cache_dir=places.stage_dir("cache"),
            state_dir=self.state_dir,
            out_dir=self.state_dir / "out",
            log_file=self.state_dir / "train.log",
        )

    def steps_per_epoch(self, *, num_instance: int, num_class: int) -> int:
        """Optimizer updates per epoch; with class images the larger set counts."""
        num_images = max(num_instance * getattr(self.flags, "repeats", 1), num_class)
        batches = -(-num_images // self.flags.train_batch_size)
        micro_steps = -(-batches // self.num_replicas)
        return -(-micro_steps // self.flags.gradient_accumulation_steps)


def make_settings(script: Script, flags: ScriptFlags, env: Mapping[str, str]) -> ScriptSettings:
    """Check the flags together. Raises SettingsError with every mistake."""
    launcher = LauncherEnv.from_env(env)
    problems = [*flag_problems(flags), *launcher_problems(launcher)]
    problems += precision_problems(flags.mixed_precision or launcher.precision, launcher)
    if launcher.strategy == "fsdp" and flags.validation_prompt is not None:
        problems.append(
            Problem(
                "no process can generate images alone while FSDP splits the networks; generate "
                "them from a checkpoint instead",
                "--validation_prompt",
            )
        )
    num_replicas = _num_replicas(script, launcher)
    settings = ScriptSettings(
        script=script,
        flags=flags,
        launcher=launcher,
        base_model=BaseModelSettings(
            pretrained_model_name_or_path=flags.pretrained_model_name_or_path,
            revision=flags.revision,
            variant=flags.variant,
        ),
        compute=ComputeSettings(
            device="auto", num_threads=launcher.num_threads, deterministic=False
        ),
        data=_data_settings(flags),
        notes=tuple(notes_on(flags)),
        num_replicas=num_replicas,
    )
    try:
        train = settings.train(seed=0, max_train_steps=1)
        if script.engine == "jax":
            refuse_what_jax_cannot(train)
    except ValidationError as error:
        problems += problems_of(error, TrainSettings, lambda place: f"train.{place[0]}")
    if problems:
        raise SettingsError.of(problems)
    return settings


def _train_values(
    script: Script, flags: ScriptFlags, launcher: LauncherEnv, num_replicas: int
) -> dict[str, Any]:
    """The fields of TrainSettings: flags of the same name, and values derived from flags."""
    given = flags.model_dump()
    values = {name: given[name] for name in TrainSettings.model_fields if name in given}
    for name in ("max_train_steps", "seed", "optimizer"):
        values.pop(name, None)
    rate = flags.learning_rate
    if flags.scale_lr:
        rate *= flags.gradient_accumulation_steps * flags.train_batch_size * num_replicas
    values["learning_rate"] = rate
    values["method"] = script.method
    values["lora"] = _lora_settings(given) if script.method == "lora" else None
    values["num_processes"] = launcher.num_processes
    values["strategy"] = launcher.strategy
    values["mixed_precision"] = flags.mixed_precision or launcher.precision
    values["offset_noise"] = OFFSET_NOISE if given.get("offset_noise") else 0.0
    if not flags.train_text_encoder:
        values["text_encoder_lr"] = None
    if flags.lr_scheduler == "constant":
        values["lr_warmup_steps"] = 0  # the flag's default is not 0
    # ScriptLayout prunes checkpoints itself.
    values["checkpoints_total_limit"] = flags.checkpoints_total_limit or 1
    return values


def _lora_settings(given: Mapping[str, Any]) -> LoraSettings:
    return LoraSettings(
        rank=given["rank"],
        lora_alpha=given["lora_alpha"] or float(given["rank"]),
        lora_dropout=given["lora_dropout"],
        lora_layers=tuple(name.strip() for name in given["lora_layers"].split(",") if name.strip()),
        use_dora=given.get("use_dora", False),
    )


def _data_settings(flags: ScriptFlags) -> DataSettings:
    """Gate and transform; limits without a flag are generous, because the gate only warns here."""
    return DataSettings(
        resolution=flags.resolution,
        center_crop=flags.center_crop,
        crops_per_image=VIEWS_PER_PHOTO,
        random_flip=getattr(flags, "random_flip", False),
        background="#ffffff",
        min_side=min(64, flags.resolution),
        max_megapixels=178,
        near_duplicate_distance=0,
        min_contrast=1.0,
        blur_threshold=40.0,
        max_aspect_ratio=2.5,
        min_photos=3,
        max_photos=1000,
    )


def _num_replicas(script: Script, launcher: LauncherEnv) -> int:
    """The processes of the launcher, or all JAX devices of this host. Raises SettingsError."""
    if script.engine == "torch":
        return launcher.num_processes
    from dreambooth_core.jax.devices import num_devices

    return num_devices()
