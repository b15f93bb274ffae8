"""Importing torchax beside a newer torch, and saying what to install where it is missing.

torchax 0.0.13 lists operator overloads that torch 2.13 no longer has (those of named tensors), and
fails at its first such line. The lines are entries of tables: without them nothing is lost, as an
overload that does not exist cannot be called. So its two modules with tables are compiled without
the entries that this torch lacks. Where torch has all of them, nothing is changed.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, ModuleType

import torch

from dreambooth_core.errors import SettingsError

NEEDED = ("jax", "optax", "torchax")
"""The packages of the extra `jax`, by their import names."""

_TABLES = ("torchax.amp", "torchax.decompositions")
_ENTRY = re.compile(r"\s*torch\.ops\.aten\.(\w+)\.(\w+)\s*(?::[^,]*)?,\s*")


def require_jax() -> None:
    """Raise SettingsError, with what to install, unless the extra `jax` is there."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            "training through JAX needs packages that are not installed",
            got=f"missing: {', '.join(missing)}",
            hint="`make jax` or `pip install -r requirements-jax.lock`; on a TPU also "
            "`pip install 'jax[tpu]'` (docs/how-to-tpu.md)",
        )


def import_torchax() -> ModuleType:
    """torchax, whatever overloads this torch has. Raises SettingsError where it is missing."""
    require_jax()
    with _tables_without_missing_entries():
        import torchax
        import torchax.decompositions  # torchax itself imports it later, when first used
    _drop_broken_casts()
    return torchax


def _drop_broken_casts() -> None:
    """Leave it to JAX to find a common type for the tensors of `cat` and `stack`.

    torchax 0.0.13 looks for the type of the list that they are in, and fails.
    """
    from torchax.amp import CastPolicy, autocast_policy

    broken = [name for name, cast in autocast_policy.items() if cast is CastPolicy.PROMOTE]
    for operator in broken:
        del autocast_policy[operator]


def without_missing_entries(source: str) -> str:
    """The source with those table entries blanked that name an overload torch does not have."""
    lines = source.splitlines()
    return "\n".join("" if _is_missing(line) else line for line in lines)


def _is_missing(line: str) -> bool:
    found = _ENTRY.fullmatch(line)
    if found is None:
        return False
    operator = getattr(torch.ops.aten, found[1], None)
    return operator is None or not hasattr(operator, found[2])


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module from its edited source; never from or to a cached file."""

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.get_filename(fullname)).decode()
        return compile(without_missing_entries(source), self.path, "exec")


class _Finder:
    """Finds the modules with tables as Python does, and gives them the loader above."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _TABLES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec


@contextlib.contextmanager
def _tables_without_missing_entries() -> Iterator[None]:
    """The finder in front of all others, for the time of one import."""
    sys.meta_path.insert(0, _Finder)
    try:
        yield
    finally:
        sys.meta_path.remove(_Finder)
