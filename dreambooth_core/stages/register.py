"""The register stage: the best checkpoint becomes a version, checked before it gets an alias."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from dreambooth_core import config
from dreambooth_core.config import SubjectView
from dreambooth_core.errors import RegistryError, StageError
from dreambooth_core.models import load, weights
from dreambooth_core.records import (
    BaseModelIdentity,
    Checkpoint,
    Evaluation,
    Manifest,
    ModelVersion,
    RegisteredVersion,
    Scores,
    Selection,
    TrainingRun,
)
from dreambooth_core.registry import aliases, logged_models, parity, runs, versions
from dreambooth_core.registry.package import Serving
from dreambooth_core.registry.tracking import Tracking, resolve_tracking
from dreambooth_core.report import card
from dreambooth_core.stages import evaluate, validate
from dreambooth_core.stages.common import StageContext, fingerprint, publishing, run_name
from dreambooth_core.workspace import STAGES

PARITY_BLOCKS = 1
"""Sampling blocks that the parity check draws again: the first ones of the suite."""


def run(context: StageContext, subject: str) -> ModelVersion:
    """Register the selected checkpoint (an experiment only says what it would be) and publish."""
    view = context.view(subject)
    version = describe(context, subject)
    if not context.experiment:
        _register(context, view, version)
    with publishing(context, subject, "register") as out:
        version.write(out, "version.json")
        version.write(out)
    return version


def describe(context: StageContext, subject: str) -> ModelVersion:
    """What stands, or will stand, in the registry. Raises StageError when nothing was selected."""
    view = context.view(subject)
    selection, checkpoint = selected(context, subject)
    own = fingerprint(
        view,
        "register",
        {
            "checkpoint": checkpoint.sha256,
            "selection": selection.to_json(),
            "evaluation": _evaluation(context, subject).harness.to_json(),
        },
    )
    return ModelVersion(
        name=view.model_name, fingerprint=own, checkpoint=checkpoint.name, sha256=checkpoint.sha256
    )


def selected(context: StageContext, subject: str) -> tuple[Selection, Checkpoint]:
    """The selection and its checkpoint. Raises StageError when there is none."""
    selection = Selection.read(context.workspace.stage_dir(subject, "select"))
    if selection.best is None:
        raise StageError("no checkpoint was selected", got=selection.rule)
    training = TrainingRun.read(context.workspace.stage_dir(subject, "train"))
    return selection, next(c for c in training.checkpoints if c.name == selection.best)


def is_registered(context: StageContext, subject: str) -> bool:
    """Whether the registry holds the published version, its parity checked."""
    published = ModelVersion.read_if_there(context.workspace.stage_dir(subject, "register"))
    if published is None:
        return False
    tracking = tracking_of(context)
    version = versions.find_version(
        tracking, name=published.name, fingerprint=published.fingerprint
    )
    if version is None:
        return False
    info = versions.get_version(tracking, name=version.name, version=version.version)
    return info.tags.get(aliases.PARITY) == aliases.PARITY_PASSED


def registered(context: StageContext, subject: str) -> RegisteredVersion:
    """The registry's version of what is published. Raises RegistryError when it is not there."""
    published = ModelVersion.read(context.workspace.stage_dir(subject, "register"))
    version = versions.find_version(
        tracking_of(context), name=published.name, fingerprint=published.fingerprint
    )
    if version is None:
        raise RegistryError(
            f"{published.name} is not in the registry yet", hint=f"`dreambooth run {subject}`"
        )
    return version


def tracking_of(context: StageContext) -> Tracking:
    """The MLflow store of the context's workspace."""
    return resolve_tracking(context.workspace, uri=context.tracking_uri)


def _evaluation(context: StageContext, subject: str) -> Evaluation:
    return Evaluation.read(context.workspace.stage_dir(subject, "evaluate"))


def _register(context: StageContext, view: SubjectView, version: ModelVersion) -> None:
    """Scores of all checkpoints, the upload of the best, the parity check, the alias."""
    tracking, subject = tracking_of(context), view.name
    run_ref = _record_run(context, view, tracking)
    scratch = context.workspace.state / "upload"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{subject}-", dir=scratch) as folder:
        candidate = _candidate(context, view, version, export=Path(folder) / "export")
        registered_version = versions.register_version(
            tracking, run_ref, candidate, scratch=Path(folder)
        )
    _check_parity(context, view, tracking, registered_version)
    aliases.set_challenger(
        tracking, name=registered_version.name, version=registered_version.version
    )


def _record_run(context: StageContext, view: SubjectView, tracking: Tracking) -> runs.RunRef:
    """The training's run with its data, the scores of every checkpoint and the selection."""
    subject, workspace = view.name, context.workspace
    training = TrainingRun.read(workspace.stage_dir(subject, "train"))
    run_ref = runs.find_or_create_run(
        tracking,
        experiment=view.model_name,
        fingerprint=training.fingerprint,
        name=run_name(training.method, training.fingerprint),
    )
    runs.log_params(tracking, run_ref, settings_for_tracking(view))
    runs.log_dataset(
        tracking,
        run_ref,
        name=subject,
        folder=str(workspace.stage_dir(subject, "validate")),
        sha256=_data_sha256(context, subject),
        context="instance",
    )
    evaluated = workspace.stage_dir(subject, "evaluate")
    scores = Scores.read(evaluated, "scores.json")
    logged_models.record_scores(
        tracking,
        run_ref,
        checkpoints=training.checkpoints,
        scores=scores,
        grid=evaluated / "grid.png",
    )
    selection, _ = selected(context, subject)
    logged_models.record_selection(tracking, run_ref, selection=selection, scores=scores)
    return run_ref


def settings_for_tracking(view: SubjectView) -> Mapping[str, object]:
    """The settings that made the result, as MLflow params and tags show them."""
    sections = ("base_model", "compute", "data", "prior", "train", "evaluate", "select", "subject")
    dumped = view.model_dump(mode="json", by_alias=True)
    return {section: dumped[section] for section in sections}


def _data_sha256(context: StageContext, subject: str) -> str:
    photos = Manifest.read(context.workspace.stage_dir(subject, "validate"))
    return validate.images_digest(photos)


def _candidate(
    context: StageContext, view: SubjectView, version: ModelVersion, *, export: Path
) -> versions.Candidate:
    subject, workspace = view.name, context.workspace
    selection, checkpoint = selected(context, subject)
    evaluation = _evaluation(context, subject)
    training = TrainingRun.read(workspace.stage_dir(subject, "train"))
    weights.export_pipeline(
        view.base_model,
        workspace.root,
        identity=training.base_model,
        checkpoint_dir=workspace.stage_dir(subject, "train") / checkpoint.name,
        checkpoint=checkpoint,
        out=export,
    )
    scores = evaluate.table_of(evaluation)
    return versions.Candidate(
        record=version,
        checkpoint=checkpoint,
        row=next(row for row in scores.rows if row.name == checkpoint.name),
        selection=selection,
        export=export,
        serving=_serving(view, context, training.base_model),
        lineage=lineage_of(context, view, training.base_model),
        card=card.model_card(view=view, scores=scores, selection=selection, training=training),
    )


def _serving(view: SubjectView, context: StageContext, identity: BaseModelIdentity) -> Serving:
    """How the version draws when a request does not say: as it was scored."""
    lora = view.train.method == "lora"
    base = load.find_base_model(view.base_model, context.workspace.root)
    hub_or_folder = identity.name if base.commit else str(base.folder)
    return Serving(
        steps=view.evaluate.num_inference_steps,
        guidance=view.evaluate.guidance_scale,
        resolution=view.data.resolution,
        block_size=view.evaluate.sample_batch_size,
        base_model=hub_or_folder if lora else None,
        base_revision=identity.revision if lora else None,
    )


def lineage_of(
    context: StageContext, view: SubjectView, identity: BaseModelIdentity
) -> versions.Lineage:
    """Where a version comes from: enough to make it again."""
    return versions.Lineage(
        settings=settings_for_tracking(view),
        data_sha256=_data_sha256(context, view.name),
        base_model=identity,
        dvc_hashes=dvc_hashes(context, view.name),
        git_commit=_git_commit(context.workspace.root),
    )


def dvc_hashes(context: StageContext, subject: str) -> dict[str, str]:
    """The hash of each published folder as `dvc.lock` has it; stages not yet committed lack it."""
    path = context.workspace.root / "dvc.lock"
    if not path.is_file():
        return {}
    locked = (config.read_yaml(path) or {}).get("stages", {})
    found: dict[str, str] = {}
    for stage in STAGES:
        for out in locked.get(f"{stage}@{subject}", {}).get("outs", ()):
            if out.get("path") == f"work/{subject}/{stage}" and "md5" in out:
                found[stage] = out["md5"]
    return found


def _git_commit(root: Path) -> str | None:
    """The commit of the checkout, with a mark when files differ from it; None outside git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=root, capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def _check_parity(
    context: StageContext, view: SubjectView, tracking: Tracking, version: RegisteredVersion
) -> None:
    """Load the upload in a fresh process; its images must be those that were scored."""
    info = versions.get_version(tracking, name=version.name, version=version.version)
    if info.tags.get(aliases.PARITY) == aliases.PARITY_PASSED:
        return
    session = evaluate.open_session(context, view.name)
    plan = session.evaluator.plan
    count = min(PARITY_BLOCKS * plan.batch_size, plan.num_images)
    paths = session.images(version.sha256).suite[:count]
    pictures = [
        (prompt, seed, path) for (prompt, seed), path in zip(plan.requests, paths, strict=False)
    ]
    result = parity.check_parity(
        tracking,
        parity.ParityPlan(
            model_uri=info.uri,
            requests=parity.requests_of(pictures),
            steps=plan.steps,
            guidance=plan.guidance,
            compute=view.compute,
        ),
        should_stop=context.should_stop,
    )
    verdict = aliases.PARITY_PASSED if result.passed else f"failed: {result.text}"
    aliases.set_tags(
        tracking, name=version.name, version=version.version, tags={aliases.PARITY: verdict}
    )
    if not result.passed:
        raise StageError(
            "the registered version does not draw the images that were scored",
            got=result.text,
            hint="it got no alias; this is a fault of the export, please report it",
        )
