"""The data gate at the scripts: what cannot be used is told and left out."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from dreambooth_core import files
from dreambooth_core.config import DataSettings
from dreambooth_core.data import gate
from dreambooth_core.errors import DataError
from dreambooth_core.ports import StopSignal
from dreambooth_core.records import GateReport, Manifest
from dreambooth_core.scripts.settings import ScriptSettings
from dreambooth_core.training.progress import log_line

FOLDER = "photos"
"""Below the run's own folder: normalised copies of the photos, and their manifest."""


def accept_photos(plan: ScriptSettings, *, should_stop: StopSignal) -> Manifest:
    """Judge the photos and keep normalised copies; the user's files are only read.

    Raises DataError when none can be used, Stopped between two photos.
    """
    folder = Path(plan.flags.instance_data_dir)
    try:
        inspection = gate.inspect_folder(
            folder,
            plan.data,
            subject="your subject",
            scratch=plan.state_dir / "scratch",
            should_stop=should_stop,
        )
        gate.require_usable(inspection.report)
    except DataError as error:
        hint = "put 3 to 6 photos of the subject into --instance_data_dir"
        raise DataError(error.what, got=error.got, hint=hint) from None
    for line in _lines(inspection.report):
        log_line(_in_flags(line, plan.script.flags.model_fields))
    digest = files.digest_of([photo.sha256 for photo in inspection.report.accepted])
    with files.atomic_dir(plan.state_dir / FOLDER) as out:
        return gate.write_accepted(inspection, out=out, fingerprint=digest)


def _in_flags(line: str, flags: Collection[str]) -> str:
    """Spell the settings in brackets as flags, and leave out those that are not flags here."""
    for name in DataSettings.model_fields:
        line = line.replace(f" (data.{name})", f" (--{name})" if name in flags else "")
    return line.replace("raise prior.num_class_images", "raise --num_class_images")


def _lines(report: GateReport) -> Iterator[str]:
    for each in report.rejected:
        yield f"warning: photo {each.name} is left out: {each.reason}"
    for each in report.skipped:
        yield f"{each.name} is skipped: {each.reason}"
    for photo in report.accepted:
        yield from (f"warning: photo {photo.name}: {warning}" for warning in photo.warnings)
    yield from (f"warning: {warning}" for warning in report.warnings)
    yield f"{len(report.accepted)} photos to train on"
