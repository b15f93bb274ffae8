"""What the registry holds of a subject; asked without torch, as every run asks it."""

from __future__ import annotations

from dreambooth_core.errors import RegistryError
from dreambooth_core.records import ModelVersion, RegisteredVersion
from dreambooth_core.registry import aliases, versions
from dreambooth_core.registry.tracking import Tracking, resolve_tracking
from dreambooth_core.stages.common import StageContext


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
