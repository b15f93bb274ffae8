"""The result of one check of `dreambooth doctor`."""

from __future__ import annotations

Check = dict[str, str]


def check(what: str, found: str, *, state: str = "ok", hint: str = "") -> Check:
    """The result of one check; `state` is ok, warning or wrong, and ok needs no hint."""
    return {"what": what, "found": found, "state": state, "hint": "" if state == "ok" else hint}
