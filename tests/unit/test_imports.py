"""Imports without the collector: on again afterwards, and nothing is lost to it."""

import gc
import weakref

import pytest

from dreambooth_core.imports import without_collecting


class Ring:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


def test_the_collector_rests_inside_and_works_afterwards() -> None:
    with without_collecting():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_the_collector_works_again_after_a_failed_import() -> None:
    with pytest.raises(ModuleNotFoundError), without_collecting():
        import no_such_module  # noqa: F401  # pyright: ignore[reportMissingImports]
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with without_collecting():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_garbage_of_before_is_freed_and_what_was_imported_is_passed_over() -> None:
    ring = Ring()
    seen = weakref.ref(ring)
    del ring
    with without_collecting():
        assert seen() is None
        kept = Ring()
    assert not any(one is kept for one in gc.get_objects())
    gc.unfreeze()
