"""Import torchax next to a newer torch, or say what to install.

torchax 0.0.13 lists operator overloads that torch 2.13 removed (those of named tensors), and its
import fails at the first one. These lines are entries of tables, and an overload that does not
exist cannot be called, so the two modules with tables are compiled without them. With a torch that
has all overloads, nothing changes.
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
    """Raise SettingsError with what to install if a package of the extra `jax` is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            "training through JAX needs packages that are not installed",
            got=f"missing: {', '.join(missing)}",
            hint="`make jax` or `pip install -r requirements-jax.lock`; on a TPU also "
            "`pip install 'jax[tpu]'` (docs/how-to-tpu.md)",
        )


def import_torchax() -> ModuleType:
    """Import torchax without the overloads that torch lacks. Raises SettingsError if missing."""
    require_jax()
    with _tables_without_missing_entries():
        import torchax
        import torchax.decompositions  # torchax itself imports it later, when first used
    _drop_broken_casts()
    return torchax


def _drop_broken_casts() -> None:
    """Let JAX promote the types of the tensors of `cat` and `stack`.

    torchax 0.0.13 fails, because it asks the list of the tensors for a type.
    """
    from torchax.amp import CastPolicy, autocast_policy

    broken = [name for name, cast in autocast_policy.items() if cast is CastPolicy.PROMOTE]
    for operator in broken:
        del autocast_policy[operator]


def without_missing_entries(source: str) -> str:
    """Blank the table entries of overloads that torch lacks; line numbers stay the same."""
    lines = source.splitlines()
    return "\n".join("" if _is_missing(line) else line for line in lines)


def _is_missing(line: str) -> bool:
    found = _ENTRY.fullmatch(line)
    if found is None:
        return False
    operator = getattr(torch.ops.aten, found[1], None)
    return operator is None or not hasattr(operator, found[2])


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module from its edited source, without bytecode caches."""

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.get_filename(fullname)).decode()
        return compile(without_missing_entries(source), self.path, "exec")


class _Finder:
    """Finds the modules with tables and gives them the loader above."""

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
    """Put the finder in front of all others inside the block."""
    sys.meta_path.insert(0, _Finder)
    try:
        yield
    finally:
        sys.meta_path.remove(_Finder)
