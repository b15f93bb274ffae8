"""`gc_paused` stops the garbage collector during imports; libraries are told to be quiet."""

import gc
import subprocess
import sys
import weakref

import pytest

from dreambooth_core.environment import gc_paused


class Cycle:
    """Refers to itself, so only the garbage collector frees it."""

    def __init__(self) -> None:
        self.itself = self


def test_collector_is_disabled_inside_and_enabled_afterwards() -> None:
    with gc_paused():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_collector_is_enabled_after_a_failed_import() -> None:
    with pytest.raises(ModuleNotFoundError), gc_paused():
        import no_such_module  # noqa: F401  # pyright: ignore[reportMissingImports]
    assert gc.isenabled()


def test_disabled_collector_stays_disabled() -> None:
    gc.disable()
    try:
        with gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_only_objects_of_the_first_imports_are_frozen() -> None:
    gc.unfreeze()
    try:
        with gc_paused():
            first = Cycle()
        with gc_paused():
            later = Cycle()
        tracked = {id(one) for one in gc.get_objects()}
        assert id(first) not in tracked
        assert id(later) in tracked
    finally:
        gc.unfreeze()


def test_cycles_are_freed_after_later_imports() -> None:
    gc.unfreeze()
    try:
        with gc_paused():
            pass
        cycle = Cycle()
        reference = weakref.ref(cycle)
        with gc_paused():
            pass
        del cycle
        gc.collect()
        assert reference() is None
    finally:
        gc.unfreeze()


def test_error_that_mlflow_raises_is_not_printed_too() -> None:
    code = (
        "from dreambooth_core import environment; environment.library_defaults();"
        "import mlflow.store.db.utils as store; store._logger.error('a traceback')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "a traceback" not in done.stderr
