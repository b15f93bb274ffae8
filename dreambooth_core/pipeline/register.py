"""The register stage: make the best checkpoint a version, and check it before it gets an alias."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core import files
from dreambooth_core.errors import StageError
from dreambooth_core.evaluation import by_hand
from dreambooth_core.models import load, weights
from dreambooth_core.pipeline import init_from, lineage, retention
from dreambooth_core.pipeline.common import (
    StageContext,
    confirmation_of,
    evaluation_of,
    picture_name,
    publishing,
    row_pictures,
    run_name,
    settings_that_count,
    table_of,
)
from dreambooth_core.pipeline.registered import describe, selected, tracking_of
from dreambooth_core.records import (
    BaseModelIdentity,
    ModelVersion,
    RegisteredVersion,
    Scores,
    TrainingRun,
)
from dreambooth_core.registry import aliases, attachments, logged_models, parity, runs, versions
from dreambooth_core.registry.package import Serving
from dreambooth_core.registry.tracking import Tracking
from dreambooth_core.report import card
from dreambooth_core.training import progress
from dreambooth_core.training.checkpoints import published

PARITY_BLOCKS = 1
"""The number of sampling blocks, from the start of the suite, that the parity check repeats."""


def run(context: StageContext) -> ModelVersion:
    """Register the selected checkpoint (not in an experiment) and publish its record."""
    version = describe(context)
    if not context.is_experiment:
        _register(context, version)
    with publishing(context.places, "register") as out:
        version.write(out, "version.json")
        version.write(out)
    return version


def _register(context: StageContext, version: ModelVersion) -> None:
    """Log the scores, upload the best checkpoint, check its parity, and set the alias."""
    tracking = tracking_of(context)
    run_ref = _record_run(context, tracking)
    with files.scratch_dir(context.places.store / "upload", context.settings.name) as folder:
        candidate = _candidate(context, version, export=folder / "export")
        registered_version = versions.register_version(tracking, run_ref, candidate, scratch=folder)
        attachments.attach(tracking, registered_version, candidate)
    _check_parity(context, tracking, registered_version)
    aliases.set_challenger(
        tracking, name=registered_version.name, version=registered_version.version
    )


def _record_run(context: StageContext, tracking: Tracking) -> runs.RunRef:
    """Log data, scores and selection into the training's run."""
    view, places = context.settings, context.places
    training = TrainingRun.read(places.stage_dir("train"))
    run_ref = runs.find_or_create_run(
        tracking,
        experiment=view.model_name,
        fingerprint=training.fingerprint,
        name=run_name(training.method, training.fingerprint),
    )
    runs.log_params(tracking, run_ref, settings_that_count(view))
    commit = lineage.git_commit(places.root)
    tags = init_from.parent_tags(tracking, training)
    runs.log_tags(tracking, run_ref, tags | ({runs.GIT_COMMIT: commit} if commit else {}))
    runs.log_dataset(
        tracking,
        run_ref,
        name=view.name,
        folder=str(places.stage_dir("validate")),
        sha256=lineage.data_sha256(places),
        context="instance",
    )
    evaluated = places.stage_dir("evaluate")
    scores = Scores.read(evaluated, "scores.json")
    logged_models.record_scores(
        tracking,
        run_ref,
        checkpoints=training.checkpoints,
        scores=scores,
        grid=evaluated / "grid.png",
    )
    selection, _ = selected(context)
    confirmed = table_of(confirmation_of(context))
    logged_models.record_selection(tracking, run_ref, selection=selection, scores=confirmed)
    _complete_losses(context, tracking, run_ref)
    runs.finish(tracking, run_ref)
    return run_ref


def _complete_losses(context: StageContext, tracking: Tracking, run_ref: runs.RunRef) -> None:
    """Log what MLflow missed during the training, from the training's own table."""
    table = (context.places.stage_dir("train") / published.METRICS).read_text()
    every = context.settings.runtime.log_every_steps
    rows = progress.from_csv(table, last_step=len(table.splitlines()) - 1)
    ends = range(every, len(rows) + 1, every)
    averages = {end: progress.averages(rows[end - every : end]) for end in ends}
    runs.complete_curves(tracking, run_ref, averages)


def _candidate(context: StageContext, version: ModelVersion, *, export: Path) -> versions.Candidate:
    view, places = context.settings, context.places
    selection, checkpoint = selected(context)
    confirmed = table_of(confirmation_of(context))
    training = TrainingRun.read(places.stage_dir("train"))
    weights.export_pipeline(
        view.base_model,
        places.root,
        identity=training.base_model,
        checkpoint_dir=retention.weights_dir(places, training, checkpoint.name),
        checkpoint=checkpoint,
        out=export,
    )
    scores = table_of(evaluation_of(context))
    content = card.CardContent(
        model_name=view.model_name,
        subject=view.name,
        identifier=view.subject.identifier,
        class_noun=view.subject.class_noun,
        base_model=training.base_model,
        method=training.method,
        scores=scores,
        confirmed=confirmed.rows[0],
        selection=selection,
        lineage=lineage.lineage_names(places, training),
    )
    return versions.Candidate(
        record=version,
        checkpoint=checkpoint,
        row=confirmed.rows[0],
        scores=scores,
        selection=selection,
        export=export,
        serving=_serving(context, training.base_model),
        lineage=lineage_of(context, training),
        card=card.render_card(content),
        description=card.render_text(content),
        prompt=f"a photo of {view.subject.identifier} {view.subject.class_noun}",
    )


def _serving(context: StageContext, identity: BaseModelIdentity) -> Serving:
    """The version's sampling defaults: the settings of the evaluation."""
    view = context.settings
    lora = view.train.method == "lora"
    base = load.find_base_model(view.base_model, context.places.root)
    hub_or_folder = identity.name if base.commit else str(base.folder)
    return Serving(
        steps=view.evaluate.num_inference_steps,
        guidance=view.evaluate.guidance_scale,
        resolution=view.data.resolution,
        block_size=view.evaluate.sample_batch_size,
        base_model=hub_or_folder if lora else None,
        base_revision=identity.revision if lora else None,
    )


def lineage_of(context: StageContext, training: TrainingRun) -> versions.Lineage:
    """The origin of a version: enough to reproduce it."""
    return versions.Lineage(
        settings=settings_that_count(context.settings),
        data_sha256=lineage.data_sha256(context.places),
        base_model=training.base_model,
        dvc_hashes=lineage.dvc_hashes(context.places.root, context.settings.name),
        git_commit=lineage.git_commit(context.places.root),
        flow_run=context.flow_run,
        parent=init_from.parent_tags(tracking_of(context), training),
        choice=_choice_tags(context),
    )


def _choice_tags(context: StageContext) -> dict[str, str]:
    """Who chose the checkpoint by hand, as the tags of a decision; none if the rule did."""
    choice = context.settings.subject.choice
    if choice is None or not by_hand.holds(choice, evaluation_of(context)):
        return {}
    return {f"chosen.{key}": getattr(choice, key) for key in ("who", "when", "why")}


def _check_parity(context: StageContext, tracking: Tracking, version: RegisteredVersion) -> None:
    """Raise StageError unless the upload reproduces the scored images in a fresh process."""
    info = versions.get_version(tracking, name=version.name, version=version.version)
    if info.tags.get(aliases.PARITY) == aliases.PARITY_PASSED:
        return
    harness = evaluation_of(context).harness
    result = parity.check_parity(
        tracking,
        parity.ParityPlan(
            model_uri=info.uri,
            requests=_scored_images(context, version),
            steps=harness.steps,
            guidance=harness.guidance,
            compute=context.settings.compute,
        ),
        should_stop=context.should_stop,
    )
    verdict = aliases.PARITY_PASSED if result.passed else f"failed: {result.text}"
    aliases.set_tags(
        tracking, name=version.name, version=version.version, tags={aliases.PARITY: verdict}
    )
    if not result.passed:
        raise StageError(
            "the registered version does not reproduce the scored images",
            got=result.text,
            hint="it got no alias; this is a bug in the export, please report it",
        )


def _scored_images(
    context: StageContext, version: RegisteredVersion
) -> tuple[parity.ParityRequest, ...]:
    """The version's first scored images, as the evaluation published them."""
    evaluation = evaluation_of(context)
    scored = evaluation.row(version.checkpoint).images
    folder = row_pictures(context.places.stage_dir("evaluate"), version.checkpoint)
    first = scored[: PARITY_BLOCKS * evaluation.harness.batch_size]
    return tuple(
        parity.request_of(image.prompt, image.seed, folder / picture_name(index))
        for index, image in enumerate(first)
    )
