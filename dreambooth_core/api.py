"""The Python API, for notebooks and services (docs/python.md).

Each function takes the workspace's folder, or any folder inside it; by default the current one.
Torch, diffusers and MLflow are imported by the functions that need them. `import dreambooth_core`
offers these names without importing this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dreambooth_core import config, environment, locks
from dreambooth_core import pipeline as stages
from dreambooth_core.config import SubjectView, fields
from dreambooth_core.errors import SettingsError
from dreambooth_core.ports import Progress, no_progress
from dreambooth_core.records import Record, Scores, Selection
from dreambooth_core.workspace import Workspace, find_workspace

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from dreambooth_core.models.families import Pipeline
    from dreambooth_core.registry.tracking import Tracking
    from dreambooth_core.registry.versions import VersionInfo

__all__ = [
    "generate",
    "list_versions",
    "load_settings",
    "load_version",
    "read_scores",
    "read_selection",
    "run_stage",
]

_LOCK_WAIT_S = 60.0


def load_settings(subject: str, *, workspace: str | Path = ".") -> SubjectView:
    """The settings of a subject, checked. Raises SettingsError with every mistake at once."""
    return config.load_view(_find(workspace), _text("subject", subject))


def run_stage(
    subject: str, stage: str, *, workspace: str | Path = ".", progress: Progress = no_progress
) -> Record:
    """Run one stage of a subject and return the record that it publishes in `work/`.

    Stages before it must have run. It records nothing in dvc.lock: `dvc commit STAGE@SUBJECT` does.
    Raises SettingsError, DataError and StageError; waits a minute for another run of the subject.
    """
    found, env = _find(workspace), environment.quiet_libraries()
    stages.check_stage(_text("stage", stage))
    subject = _text("subject", subject)
    config.load_view(found, subject)  # no lock for a subject that does not exist
    lock = found.subject_lock(subject)
    with locks.hold(lock, timeout_s=_LOCK_WAIT_S, inheritable=True) as fd:
        view = config.load_view(found, subject)
        context = stages.StageContext(
            view, found.places(subject), progress=progress, lock_fd=fd, env=env
        )
        return stages.run_stage(context, stage)


def read_scores(subject: str, *, workspace: str | Path = ".") -> Scores:
    """The score table of a subject's last evaluation. Raises CorruptRecordError without one."""
    return Scores.read(_output(subject, "evaluate", workspace), "scores.json")


def read_selection(subject: str, *, workspace: str | Path = ".") -> Selection:
    """The best checkpoint and the rule that decided. Raises CorruptRecordError without one."""
    return Selection.read(_output(subject, "select", workspace))


def list_versions(subject: str, *, workspace: str | Path = ".") -> list[VersionInfo]:
    """The registered versions of a subject, oldest first, with aliases, scores and settings.

    Raises RegistryError if none is registered or the registry is unreachable.
    """
    store = _store(_find(workspace))
    from dreambooth_core.registry import versions

    name = load_settings(subject, workspace=workspace).model_name
    return versions.list_versions(store, name=name)


def load_version(
    reference: str, *, workspace: str | Path = ".", device: str | torch.device | None = None
) -> Pipeline:
    """The diffusers pipeline of a version, in fp32.

    `reference` is models:/dreambooth-mug@champion, models:/dreambooth-mug/3, or a subject (its
    champion). By default on the device of the settings. Raises RegistryError for an unknown version
    and SettingsError for an unknown device.
    """
    found = _find(workspace)
    store = _store(found)
    from dreambooth_core.models import load, weights
    from dreambooth_core.pipeline import model_references
    from dreambooth_core.registry import versions

    settings = config.load_settings(found.params)
    chosen = load.pick_device(settings.compute) if device is None else load.named_device(device)
    info = model_references.find(store, _text("reference", reference), settings)
    return weights.load_exported(
        versions.fetch(store, info.uri), found.root, device=chosen, hash_cache=found.hash_cache
    )


def generate(
    model: str,
    prompt: str,
    *,
    num: int = 1,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    workspace: str | Path = ".",
) -> list[Image]:
    """Draw images, as `dreambooth generate` does; image i uses `seed + i`.

    `model` is a subject (its champion), a reference such as models:/dreambooth-mug/3, or the folder
    of a checkpoint or of a saved pipeline. None means the evaluation's value. Raises SettingsError
    and RegistryError.
    """
    found, model = _find(workspace), _text("model", model)
    asked = _checked(prompt=prompt, num=num, seed=seed, steps=steps, guidance=guidance)
    store = _store(found)
    from dreambooth_core.models import load, sampling
    from dreambooth_core.pipeline.opening import open_model

    settings = config.load_settings(found.params)
    load.configure_torch(settings.compute)
    device = load.pick_device(settings.compute)
    with open_model(found, settings, model, device=device, store=store) as ready:
        own = ready.settings
        return sampling.sample(
            ready.pipe,
            prompts=[asked.prompt] * asked.num,
            seeds=[asked.seed + index for index in range(asked.num)],
            steps=asked.steps or own.evaluate.num_inference_steps,
            guidance=own.evaluate.guidance_scale if guidance is None else guidance,
            resolution=own.data.resolution,
            batch_size=own.evaluate.sample_batch_size,
        )


class _Drawing(BaseModel):
    """The arguments of `generate`, with the limits of the command."""

    model_config = ConfigDict(strict=True)

    prompt: Annotated[str, Field(pattern=r"\S")]
    num: Annotated[int, Field(ge=1, le=fields.MAX_IMAGES)]
    seed: Annotated[int, Field(ge=0, le=fields.MAX_SEED)]
    steps: Annotated[int, Field(ge=1, le=fields.MAX_SAMPLING_STEPS)] | None
    guidance: Annotated[float, Field(ge=0, le=fields.MAX_GUIDANCE)] | None


def _checked(**arguments: object) -> _Drawing:
    try:
        return _Drawing.model_validate(arguments)
    except ValidationError as error:
        found = config.problems_of(error, _Drawing, lambda at: str(at[0]))
        raise SettingsError.of(found) from None


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    raise SettingsError(f"{name} is not text", got=repr(value))


def _find(workspace: str | Path) -> Workspace:
    if not isinstance(workspace, str | Path):
        raise SettingsError("workspace is not a path", got=repr(workspace))
    return Workspace(find_workspace(Path(workspace)))


def _output(subject: str, stage: str, workspace: str | Path) -> Path:
    """The output of a stage. Raises SettingsError for a subject that never was."""
    found = _find(workspace)
    folder = found.stage_dir(_text("subject", subject), stage)
    if not folder.parent.is_dir():
        config.load_view(found, subject)
    return folder


def _store(workspace: Workspace) -> Tracking:
    """The MLflow store that the environment names, else the workspace's own."""
    env = environment.quiet_libraries()
    from dreambooth_core.registry import tracking

    return tracking.resolve_tracking(workspace, uri=env.get("MLFLOW_TRACKING_URI"))
