"""The data gate: it accepts, rejects or skips every entry of a folder, with a reason.

It opens the user's files for reading only, and decodes each photo once. The normalised copies wait
in a scratch folder for the comparison of all photos, so memory holds one photo at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dreambooth_core import files
from dreambooth_core.config import DataSettings, PriorSettings
from dreambooth_core.data import masks, messages
from dreambooth_core.data.captions import Captions, read_captions
from dreambooth_core.data.decode import Decoded, decode
from dreambooth_core.data.duplicates import ImageHashes, duplicates, hashes_of
from dreambooth_core.data.listing import CacheDir, Listing, list_folder, no_cache, printable
from dreambooth_core.data.masks import Masks
from dreambooth_core.data.quality import (
    LEAST_BACKGROUND_DIFFERENCE,
    background_difference,
    edge_colours,
    quality_warnings,
    shrunk_grey,
    why_blank,
)
from dreambooth_core.errors import DataError, Stopped
from dreambooth_core.ports import Progress, StopSignal, never_stop, no_progress
from dreambooth_core.records import (
    AcceptedImage,
    GateReport,
    ImageMask,
    Manifest,
    ManifestImage,
    RejectedFile,
)

REPORT_NAME = "report.json"
ADVISED_CLASS_IMAGES = 200
"""Fewer class images cause a warning: 200 to 300 work for most subjects."""

_PNG_LEVEL = 3  # zlib: a third of the time of level 6 on a photograph, and no larger


@dataclass(frozen=True)
class Inspection:
    """The gate's report, with copies, captions and masks of the accepted photos in order."""

    report: GateReport
    copies: tuple[Path, ...]
    captions: tuple[str | None, ...]
    masks: tuple[Path | None, ...]


@dataclass(frozen=True)
class Contents:
    """The entries of a folder of photos, their captions and masks."""

    listing: Listing
    captions: Captions
    masks: Masks


@dataclass(frozen=True)
class Photo:
    """A usable photo, unless it is a duplicate."""

    accepted: AcceptedImage
    hashes: ImageHashes
    edge: NDArray[np.float64]
    copy: Path
    turned: bool
    caption: str | None
    mask: Path | None


def inspect_folder(
    folder: Path,
    settings: DataSettings,
    *,
    subject: str,
    scratch: Path,
    cache: CacheDir = no_cache,
    progress: Progress = no_progress,
    should_stop: StopSignal = never_stop,
) -> Inspection:
    """Inspect every entry of `folder`, and write normalised copies of the photos to `scratch`.

    Raises DataError if the folder is missing, unreadable, empty or not a folder, or if its captions
    are invalid, and Stopped between photos. The report may lack accepted photos: `require_usable`
    raises for those.
    """
    contents = read_folder(folder, settings, subject=subject, cache=cache)
    scratch.mkdir(parents=True, exist_ok=True)
    examined: list[Photo | RejectedFile] = []
    for index, path in enumerate(contents.listing.photos):
        if should_stop():
            raise Stopped("the data gate stopped; the next run starts over")
        copy = scratch / f"{index:05d}.png"
        examined.append(examine(path, contents, settings, copy=copy))
        progress(index + 1, len(contents.listing.photos), printable(path.name))
    return conclude(contents, examined, settings, subject=subject)


def read_folder(
    folder: Path, settings: DataSettings, *, subject: str, cache: CacheDir = no_cache
) -> Contents:
    """List the photos of a folder with their captions and masks. Raises DataError."""
    listing = list_folder(folder, subject=subject, cache=cache)
    captions = _captions(folder, listing, settings)
    found = Masks()
    if settings.masks == "files":
        found = masks.list_masks(folder, listing.photos, subject=subject, cache=cache)
    return Contents(listing, captions, found)


def examine(
    path: Path, contents: Contents, settings: DataSettings, *, copy: Path
) -> Photo | RejectedFile:
    """Check one photo of a folder without the others, and write its normalised copy."""
    caption, mask = contents.captions.by_name.get(path.name), contents.masks.file_of(path)
    try:
        return _examine(path, settings, copy=copy, caption=caption, mask_file=mask)
    except DataError as error:
        return RejectedFile(name=printable(path.name), reason=error.what)


def conclude(
    contents: Contents,
    examined: Iterable[Photo | RejectedFile],
    settings: DataSettings,
    *,
    subject: str,
) -> Inspection:
    """The report on a folder of which every photo was examined: also rejects duplicates."""
    photos: list[Photo] = []
    rejected: list[RejectedFile] = []
    for each in examined:
        if isinstance(each, Photo):
            photos.append(each)
        else:
            rejected.append(each)
    alike = duplicates(
        (photo.hashes for photo in photos), distance=settings.near_duplicate_distance
    )
    rejected += (RejectedFile(name=name, reason=reason) for name, reason in alike.items())
    kept = [photo for photo in photos if photo.accepted.name not in alike]
    captions = contents.captions
    report = GateReport(
        subject=subject,
        accepted=tuple(photo.accepted for photo in kept),
        rejected=tuple(sorted(rejected, key=lambda each: each.name)),
        skipped=tuple(_relabel(each, captions, settings) for each in contents.listing.skipped),
        warnings=(
            *_report_warnings(kept, settings),
            *captions.warnings,
            *contents.masks.warnings,
        ),
    )
    return Inspection(
        report=report,
        copies=tuple(photo.copy for photo in kept),
        captions=tuple(photo.caption for photo in kept),
        masks=tuple(photo.mask for photo in kept),
    )


def _captions(folder: Path, listing: Listing, settings: DataSettings) -> Captions:
    """The folder's captions, or none without data.captions."""
    if not settings.captions:
        return Captions(by_name={}, files=frozenset())
    return read_captions(folder, listing.photos)


def _relabel(skipped: RejectedFile, captions: Captions, settings: DataSettings) -> RejectedFile:
    """Say of captions and masks that they are read."""
    if skipped.name in captions.files:
        return RejectedFile(name=skipped.name, reason=messages.CAPTION_READ)
    if skipped.name == masks.FOLDER and skipped.reason == messages.SKIPPED_FOLDER:
        reason = messages.MASK_READ if settings.masks == "files" else messages.MASK_UNREAD
        return RejectedFile(name=skipped.name, reason=reason)
    return skipped


def _examine(
    path: Path, settings: DataSettings, *, copy: Path, caption: str | None, mask_file: Path | None
) -> Photo:
    """Check one photo and write its normalised copy. Raises DataError with the reason."""
    decoded = decode(
        path,
        background=settings.background,
        max_pixels=max_pixels_of(settings),
        min_side=settings.min_side,
    )
    image, name = decoded.image, printable(path.name)
    grey = shrunk_grey(image)
    blank = why_blank(grey, settings)
    if blank is not None:
        raise DataError(blank)
    # Without metadata, so that the same pixels give the same bytes.
    image.save(copy, format="PNG", compress_level=_PNG_LEVEL)
    accepted = AcceptedImage(
        name=name,
        sha256=files.sha256_file(path),
        width=image.width,
        height=image.height,
        warnings=(*decoded.notes, *quality_warnings(image.size, grey, settings)),
    )
    hashes = hashes_of(image, name=name, grey=grey)
    return Photo(
        accepted=accepted,
        hashes=hashes,
        edge=edge_colours(image),
        copy=copy,
        turned=decoded.turned,
        caption=caption,
        mask=_write_mask(decoded, settings, mask_file=mask_file, copy=copy),
    )


def max_pixels_of(settings: DataSettings) -> int:
    """The number of pixels that a photo or its mask may have."""
    return int(settings.max_megapixels * 1_000_000)


def _write_mask(
    decoded: Decoded, settings: DataSettings, *, mask_file: Path | None, copy: Path
) -> Path | None:
    """Write a photo's mask next to its copy, if it has one. Raises DataError."""
    if settings.masks != "files":
        return None
    mask = masks.mask_of(decoded, mask_file, max_pixels=max_pixels_of(settings))
    if mask is None:
        return None
    target = copy.with_suffix(".mask.png")
    mask.save(target, format="PNG", compress_level=_PNG_LEVEL)
    return target


def _report_warnings(kept: Iterable[Photo], settings: DataSettings) -> tuple[str, ...]:
    photos = list(kept)
    found: list[str] = []
    if 0 < len(photos) < settings.min_photos:
        found.append(messages.REPORT_FEW.format(count=len(photos), min_photos=settings.min_photos))
    if len(photos) > settings.max_photos:
        found.append(messages.REPORT_MANY.format(count=len(photos), max_photos=settings.max_photos))
    if settings.masks is None:
        found += _shared_background(photos)
    turned = [photo.accepted.name for photo in photos if photo.turned]
    if turned:
        found.append(messages.REPORT_TURNED.format(names=", ".join(turned)))
    bare = [photo.accepted.name for photo in photos if photo.caption is None]
    if settings.captions and bare:
        found.append(messages.CAPTION_MISSING.format(names=", ".join(bare)))
    whole = [photo.accepted.name for photo in photos if photo.mask is None]
    if settings.masks == "files" and whole:
        found.append(messages.MASK_MISSING.format(names=", ".join(whole)))
    return tuple(found)


def _shared_background(photos: Sequence[Photo]) -> list[str]:
    """The warning that all photos show one background, if they do."""
    if len(photos) < 2:
        return []
    difference = background_difference([photo.edge for photo in photos])
    if difference >= LEAST_BACKGROUND_DIFFERENCE:
        return []
    said = messages.REPORT_ONE_PLACE.format(
        count=len(photos), difference=f"{difference:.1f}", least=f"{LEAST_BACKGROUND_DIFFERENCE:g}"
    )
    return [said]


def class_set_warnings(prior: PriorSettings | None) -> tuple[str, ...]:
    """The warning about too few class images, for their manifest."""
    if prior is None or prior.num_class_images >= ADVISED_CLASS_IMAGES:
        return ()
    return (messages.CLASS_FEW.format(count=prior.num_class_images),)


def require_usable(report: GateReport) -> None:
    """Raise DataError with the first reasons if no photo was accepted."""
    if report.accepted:
        return
    not_accepted = [*report.rejected, *report.skipped]
    reasons = [f"{each.name}: {each.reason}" for each in not_accepted[:5]]
    if len(not_accepted) > len(reasons):
        reasons.append(f"and {len(not_accepted) - len(reasons)} more")
    raise DataError(
        messages.FOLDER_NOTHING.format(subject=report.subject),
        got="; ".join(reasons),
        hint=messages.FOLDER_HINT.format(subject=report.subject),
    )


def require_captions(inspection: Inspection) -> None:
    """Raise DataError if no photo has a caption; for data.captions."""
    if not any(inspection.captions):
        subject = inspection.report.subject
        raise DataError(
            messages.CAPTION_NONE.format(subject=subject), hint=messages.CAPTION_NONE_HINT
        )


def require_masks(inspection: Inspection) -> None:
    """Raise DataError if no photo has a mask; for data.masks: files."""
    if not any(inspection.masks):
        subject = inspection.report.subject
        raise DataError(messages.MASK_NONE.format(subject=subject), hint=messages.MASK_NONE_HINT)


def write_accepted(inspection: Inspection, *, out: Path, fingerprint: str) -> Manifest:
    """Publish into `out`: `images/NNN.png`, `masks/NNN.png`, `report.json`, and the manifest as
    `record.json`, last.

    Moves the copies out of the scratch folder, so it can run only once per inspection.
    """
    require_usable(inspection.report)
    images: list[ManifestImage] = []
    waiting = zip(inspection.copies, inspection.captions, inspection.masks, strict=True)
    for index, (copy, caption, mask) in enumerate(waiting):
        file, sha256 = _publish(copy, out, f"images/{index:03d}.png")
        masked = None
        if mask is not None:
            mask_file, mask_sha256 = _publish(mask, out, f"masks/{index:03d}.png")
            masked = ImageMask(file=mask_file, sha256=mask_sha256)
        images.append(ManifestImage(file=file, sha256=sha256, caption=caption, mask=masked))
    for folder in ("images", "masks"):
        if (out / folder).is_dir():
            files.fsync_path(out / folder)
    inspection.report.write(out, REPORT_NAME)
    manifest = Manifest(
        role="instance",
        fingerprint=fingerprint,
        images=tuple(images),
        warnings=inspection.report.warnings,
    )
    manifest.write(out)
    return manifest


def _publish(copy: Path, out: Path, name: str) -> tuple[str, str]:
    """Move a file to `name` in `out`; returns the name and the file's sha256."""
    target = out / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(copy, target)
    files.fsync_path(target)
    return name, files.sha256_file(target)
