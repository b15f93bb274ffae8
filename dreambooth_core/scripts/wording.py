"""What the core says of settings of params.yaml, in the flags of a script."""

from __future__ import annotations

import re
from collections.abc import Collection

_SETTING = r"(?:train|data|prior|base_model)\.(?:lora\.)?([a-z0-9_]+)"
_ASIDE = re.compile(rf" \({_SETTING}\)")
_NAMED = re.compile(rf"(?<![\w./-]){_SETTING}\b(?!\.\w)")
_SWITCHED_OFF = re.compile(r"\bset (--\w+) to (?:false|null)")


def in_flags(text: str, flags: Collection[str]) -> str:
    """The text with `train.learning_rate` as `--learning_rate`, where `flags` has it.

    Settings in brackets that are no flag are left out: they cannot be changed here.
    """
    text = _ASIDE.sub(lambda found: found[0] if found[1] in flags else "", text)
    text = _NAMED.sub(lambda found: f"--{found[1]}" if found[1] in flags else found[0], text)
    return _SWITCHED_OFF.sub(r"leave out \1", text)
