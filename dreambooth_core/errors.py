"""Errors that speak to a user: what was wrong, what was found, what is allowed, what to do.

The exit code of the command line follows from the class: 2 for the user's input or settings,
1 for work that failed.
"""

from __future__ import annotations


class DreamBoothError(Exception):
    """Base of every error that a user may see; its text is one readable sentence or paragraph."""

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        got: str | None = None,
        allowed: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.got, self.allowed, self.hint = what, got, allowed, hint
        parts = [what]
        if got is not None:
            parts.append(f"found: {got}")
        if allowed is not None:
            parts.append(f"allowed: {allowed}")
        if hint is not None:
            parts.append(f"what to do: {hint}")
        super().__init__("; ".join(parts))


class SettingsError(DreamBoothError):
    """params.yaml or a command line option is wrong."""

    exit_code = 2


class DataError(DreamBoothError):
    """The user's photos (or other input files) cannot be used."""

    exit_code = 2


class StageError(DreamBoothError):
    """A stage could not do its work: a crash of the trainer, a full disk, a non-finite loss."""


class Stopped(DreamBoothError):
    """The work was asked to stop (Ctrl-C, SIGTERM, cancel) and did; it continues when run again."""


class CorruptRecordError(DreamBoothError):
    """A file of the project's own does not hold what its record says."""


class RegistryError(DreamBoothError):
    """The model registry refused, is out of reach, or holds something else than expected."""


class UnknownModelError(RegistryError):
    """A command names a model, version or alias that the registry does not hold."""

    exit_code = 2
