"""List the licences of all installed packages, as their metadata state them: `make audit`."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from email.message import Message
from typing import cast

_LONGEST = 60
_CLASSIFIER = "License :: "


def main() -> None:
    """Print name, version and licence of each package; those that state none come last."""
    stated = sorted(_packages(), key=lambda row: (not row[2], row[0].lower()))
    for name, version, licence in stated:
        sys.stdout.write(f"{name}\t{version}\t{licence or 'states none'}\n")


def _packages() -> Iterator[tuple[str, str, str]]:
    for package in importlib.metadata.distributions():
        metadata = cast(Message, package.metadata)
        yield package.name, package.version, _licence_of(metadata)


def _licence_of(metadata: Message) -> str:
    """The SPDX expression, else the classifiers, else the first line of the free text."""
    expression = metadata.get("License-Expression")
    if expression:
        return expression
    classifiers = [c for c in metadata.get_all("Classifier", []) if c.startswith(_CLASSIFIER)]
    if classifiers:
        return ", ".join(c.rpartition("::")[2].strip() for c in classifiers)
    text = (metadata.get("License") or "").strip()
    return "" if text == "UNKNOWN" else text.partition("\n")[0][:_LONGEST]


if __name__ == "__main__":
    main()
