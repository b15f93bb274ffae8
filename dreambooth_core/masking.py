"""Masks credentials in addresses, and in texts that may quote an address."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

_MASK = "***"
_QUERY = re.compile(r"(?<=[?&])([^=&]*(?:pass|pwd|token|secret|key)[^=&]*=)([^&]*)", re.IGNORECASE)


def without_secrets(uri: str) -> str:
    """The address with its password, or a token in the place of a user, masked.

    Masks too much rather than too little if a password has characters that end one in a URI.
    """
    userinfo = userinfo_of(uri)
    if userinfo:
        user, colon, _ = userinfo.partition(":")
        shown = f"{user}:{_MASK}" if colon else _MASK
        uri = uri.replace(f"://{userinfo}@", f"://{shown}@", 1)
    return _QUERY.sub(rf"\1{_MASK}", uri)


def without_userinfo(uri: str) -> str:
    """The address without user and password, which urllib would take for a part of the host."""
    userinfo = userinfo_of(uri)
    return uri.replace(f"://{userinfo}@", "://", 1) if userinfo else uri


def scrubbed(text: str, uri: str) -> str:
    """The text without the credentials of `uri`, which an error message may quote."""
    text = text.replace(uri, without_secrets(uri))
    for secret in _secrets(uri):
        for spelling in {secret, unquote(secret)} - {""}:
            text = text.replace(spelling, _MASK)
    return text


def userinfo_of(uri: str) -> str:
    """User and password of an address, as it spells them; empty without them."""
    scheme, _, rest = uri.partition("://")
    return "" if scheme.startswith("sqlite") else rest.rpartition("@")[0]


def _secrets(uri: str) -> Iterator[str]:
    user, _, password = userinfo_of(uri).partition(":")
    yield password or user
    for match in _QUERY.finditer(uri):
        yield match[2]
