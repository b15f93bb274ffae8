"""The validate stage: the data gate, and the photos that passed it in their normal form."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dreambooth_core import files
from dreambooth_core.data import gate
from dreambooth_core.pipeline.common import StageContext, fingerprint, publishing
from dreambooth_core.records import Manifest


@contextlib.contextmanager
def inspected(context: StageContext, subject: str) -> Iterator[gate.Inspection]:
    """Yield the gate's verdict on a subject's photos; the normalised copies live that long."""
    view = context.view(subject)
    scratch_root = context.workspace.state / "validate"
    scratch_root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{subject}-", dir=scratch_root) as scratch:
        yield gate.inspect_folder(
            context.workspace.resolve(view.subject.instance_dir),
            view.data,
            subject=subject,
            scratch=Path(scratch),
            progress=context.progress,
            should_stop=context.should_stop,
        )


def run(context: StageContext, subject: str) -> Manifest:
    """Publish the report and the accepted photos. Raises DataError when none was accepted."""
    with inspected(context, subject) as inspection:
        gate.require_usable(inspection.report)
        view = context.view(subject)
        if view.data.captions:
            gate.require_captions(inspection)
        photos = [[image.name, image.sha256] for image in inspection.report.accepted]
        captions = list(inspection.captions)
        own = fingerprint(view, "validate", {"photos": photos, "captions": captions})
        with publishing(context, subject, "validate") as out:
            return gate.write_accepted(inspection, out=out, fingerprint=own)


def images_digest(manifest: Manifest) -> str:
    """One sha256 for a set of images, in its order."""
    return files.digest_of([image.sha256 for image in manifest.images])
