"""The validate stage: the data gate, and the photos that passed it in their normal form."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dreambooth_core import files
from dreambooth_core.data import gate
from dreambooth_core.models import prompts, source
from dreambooth_core.pipeline import dvc_cache
from dreambooth_core.pipeline.common import RunContext, publishing
from dreambooth_core.records import Manifest


@contextlib.contextmanager
def inspected(context: RunContext) -> Iterator[gate.Inspection]:
    """Yield the gate's verdict on the photos; their normalised copies exist inside the block."""
    settings = context.settings
    with files.scratch_dir(context.places.store / "validate", settings.name) as scratch:
        yield gate.inspect_folder(
            context.places.resolve(settings.subject.instance_dir),
            settings.data,
            subject=settings.name,
            scratch=scratch,
            cache=lambda: dvc_cache.folder_of(context.places.root),
            progress=context.progress,
            should_stop=context.should_stop,
        )


def run(context: RunContext) -> Manifest:
    """Publish the report and the accepted photos. Raises DataError when none was accepted."""
    with inspected(context) as inspection:
        gate.require_usable(inspection.report)
        settings = context.settings
        if settings.data.captions:
            gate.require_captions(inspection)
            _check_captions(context, inspection)
        if settings.data.masks == "files":
            gate.require_masks(inspection)
        photos = [[image.name, image.sha256] for image in inspection.report.accepted]
        captions = list(inspection.captions)
        masks = [mask and files.sha256_file(mask) for mask in inspection.masks]
        masked = {"masks": masks} if any(masks) else {}
        own = context.fingerprint("validate", {"photos": photos, "captions": captions, **masked})
        with publishing(context.places, "validate") as out:
            return gate.write_accepted(inspection, out=out, fingerprint=own)


def _check_captions(context: RunContext, inspection: gate.Inspection) -> None:
    """Raise SettingsError for captions that the base model would cut, if it is on this machine."""
    folder = source.folder_at_hand(context.settings.base_model, context.places.root)
    if folder is not None:
        photos = zip(inspection.report.accepted, inspection.captions, strict=True)
        named = {f"the caption of {image.name}": text for image, text in photos if text}
        prompts.check_prompts(named, prompts.tokenizers_in(folder))


def images_digest(manifest: Manifest) -> str:
    """One sha256 for a set of images, in its order."""
    return files.digest_of([image.sha256 for image in manifest.images])
