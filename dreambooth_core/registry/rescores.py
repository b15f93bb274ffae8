"""Later scores of a version, with another harness than it was registered with.

The scores of the registration stay. Each further harness adds a tag of the version (`scores.` and
the start of the harness's hash), metrics of its logged model, and a table in its run's artifacts.
"""

from __future__ import annotations

from dreambooth_core import files
from dreambooth_core.records import Harness, ScoreRow, Scores
from dreambooth_core.registry import aliases, logged_models, runs
from dreambooth_core.registry.tracking import Tracking, connect, registry_errors
from dreambooth_core.registry.versions import VersionInfo, model_id_of

_LENGTH = 12


def label(harness: Harness) -> str:
    """The name of a harness among the scores of a version."""
    return logged_models.harness_digest(harness)[:_LENGTH]


def recorded(info: VersionInfo, harness: Harness) -> ScoreRow | None:
    """The scores that a version has with this harness since its registration, or None."""
    text = info.tags.get(_tag(harness))
    return None if text is None else ScoreRow.model_validate_json(text)


def record(tracking: Tracking, info: VersionInfo, scores: Scores) -> None:
    """Record the scores of a version, the first row, with their harness. Raises RegistryError.

    The tag comes last: without it, the next call completes the record of a killed one.
    """
    row, name, number = scores.rows[0], info.version.name, info.version.version
    client = connect(tracking)
    if info.run_id is not None:
        with registry_errors(tracking, doing=f"reading {info.uri}"):
            model_id = model_id_of(client.get_model_version(name, str(number)))
        logged_models.log_model_scores(tracking, info.run_id, model_id, row, scores.harness)
        file = f"{info.artifact_folder}/scores-{label(scores.harness)}.json"
        runs.log_text(tracking, info.run_id, files.pretty_json(scores.to_json()), file)
    tags = {_tag(scores.harness): files.canonical_json(row.to_json())}
    aliases.set_tags(tracking, name=name, version=number, tags=tags)


def _tag(harness: Harness) -> str:
    return f"scores.{label(harness)}"
