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
    userinfo = _userinfo(uri)
    if userinfo:
        user, colon, _ = userinfo.partition(":")
        shown = f"{user}:{_MASK}" if colon else _MASK
        uri = uri.replace(f"://{userinfo}@", f"://{shown}@", 1)
    return _QUERY.sub(rf"\1{_MASK}", uri)


def scrubbed(text: str, uri: str) -> str:
    """The text without the credentials of `uri`, which an error message may quote."""
    text = text.replace(uri, without_secrets(uri))
    for secret in _secrets(uri):
        for spelling in {secret, unquote(secret)} - {""}:
            text = text.replace(spelling, _MASK)
    return text


def _userinfo(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return "" if scheme.startswith("sqlite") else rest.rpartition("@")[0]


def _secrets(uri: str) -> Iterator[str]:
    user, _, password = _userinfo(uri).partition(":")
    yield password or user
    for match in _QUERY.finditer(uri):
        yield match[2]
