"""What a script prepares before it trains: photos, class images, the latent cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import CLIPTokenizer

from dreambooth_core import files
from dreambooth_core.config import DataSettings
from dreambooth_core.data import gate, messages
from dreambooth_core.errors import DataError, SettingsError
from dreambooth_core.models import load, prompts, source
from dreambooth_core.pipeline import cache, validate
from dreambooth_core.pipeline.common import RunContext
from dreambooth_core.records import GateReport, Manifest
from dreambooth_core.scripts import class_images
from dreambooth_core.scripts.flag_checks import prompts_of
from dreambooth_core.scripts.settings import ScriptSettings
from dreambooth_core.scripts.signals import Stop
from dreambooth_core.training.distributed import broadcast_from_main
from dreambooth_core.training.progress import log_line, logged_progress


@dataclasses.dataclass(frozen=True)
class ImageSets:
    """The images to train on; `fingerprints` has one of each set."""

    num_instance: int
    num_class: int
    fingerprints: tuple[str, ...]


def prepare_images(
    settings: ScriptSettings, *, seed: int, accelerator: Accelerator, stop: Stop
) -> ImageSets:
    """Publish the accepted photos and the class images below the run's own folder.

    Raises DataError without a usable photo, Stopped between two images.
    """
    check_prompts(settings)
    context = RunContext(settings, settings.places, should_stop=stop)
    instance = broadcast_from_main(accelerator, lambda: _accept_photos(context, settings))
    class_ = class_images.complete(context, settings, seed=seed, accelerator=accelerator)
    fingerprints = [_fingerprint(context)]
    if settings.class_dir:
        fingerprints.append(class_.fingerprint)
    return ImageSets(len(instance.images), len(class_.images), tuple(fingerprints))


def check_prompts(settings: ScriptSettings) -> None:
    """Raise SettingsError for prompts of the flags that a text encoder would cut."""
    own = load.load_tokenizers(settings.base_model, settings.places.root)
    drawn, trained = prompts_of(settings.flags)
    # Class and validation images are drawn with the base model's own tokenizers.
    prompts.check_prompts(drawn, own)
    prompts.check_prompts(trained, _tokenizers(settings, own))


def encode_images(settings: ScriptSettings, *, stop: Stop) -> None:
    """Publish the latent cache, and free the frozen networks."""
    context = RunContext(
        settings, settings.places, progress=logged_progress("latents"), should_stop=stop
    )
    encoders = cache.load_encoders(context, settings.base_identity)
    encoders = dataclasses.replace(
        encoders,
        tokenizers=_tokenizers(settings, encoders.tokenizers),
        masks_text=settings.masks_text,
    )
    _check_token_limit(encoders.tokenizers, encoders.text_encoders)
    with stop.watched():
        cache.encode(context, encoders)
    del encoders
    load.free_memory(load.pick_device(settings.compute))


def _accept_photos(context: RunContext, settings: ScriptSettings) -> Manifest:
    """Run the data gate, and report each photo that it leaves out."""
    try:
        manifest = validate.run(context)
    except DataError as error:
        hint = "put 3 to 6 photos of the subject into --instance_data_dir"
        raise DataError(error.what, got=error.got, hint=hint) from None
    for line in _lines(_report(context)):
        log_line(_in_flags(line, settings.script.flags.model_fields))
    return manifest


def _report(context: RunContext) -> GateReport:
    return GateReport.read(context.places.stage_dir("validate"), gate.REPORT_NAME)


def _fingerprint(context: RunContext) -> str:
    """A digest of the accepted photos as the user has them."""
    return files.digest_of([photo.sha256 for photo in _report(context).accepted])


def _in_flags(line: str, flags: Collection[str]) -> str:
    """Spell the settings in brackets as flags, and leave out those that are not flags here."""
    line = line.replace(messages.ONE_PLACE_SETTING, "")
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


def _tokenizers(
    settings: ScriptSettings, own: tuple[CLIPTokenizer, ...]
) -> tuple[CLIPTokenizer, ...]:
    """The base model's tokenizers or that of --tokenizer_name, with the limit of the flags."""
    flags, root = settings.flags, settings.places.root
    name = getattr(flags, "tokenizer_name", None)
    if name is not None:
        patterns = source.MODEL_PATTERNS
        found = source.find_model(name, root, revision=flags.revision, patterns=patterns)
        own = (prompts.load_tokenizer(found.folder),)
    length = getattr(flags, "tokenizer_max_length", None)
    for tokenizer in own:
        tokenizer.model_max_length = length or tokenizer.model_max_length
    return own


def _check_token_limit(
    tokenizers: Sequence[CLIPTokenizer], text_encoders: Sequence[nn.Module]
) -> None:
    """Raise SettingsError if a tokenizer gives more tokens than its text encoder can read."""
    for tokenizer, encoder in zip(tokenizers, text_encoders, strict=True):
        config: Any = encoder.config
        if tokenizer.model_max_length > config.max_position_embeddings:
            raise SettingsError(
                "--tokenizer_max_length: the text encoder cannot read so many tokens",
                got=str(tokenizer.model_max_length),
                allowed=f"up to {config.max_position_embeddings}",
            )
