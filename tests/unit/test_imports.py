"""Imports without the collector: on again afterwards, and nothing is lost to it."""

import gc
import weakref

import pytest

from dreambooth_core.environment import gc_paused


class Ring:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


def test_the_collector_rests_inside_and_works_afterwards() -> None:
    with gc_paused():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_the_collector_works_again_after_a_failed_import() -> None:
    with pytest.raises(ModuleNotFoundError), gc_paused():
        import no_such_module  # noqa: F401  # pyright: ignore[reportMissingImports]
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_process_passes_over_its_first_imports_and_over_nothing_later() -> None:
    gc.unfreeze()
    try:
        with gc_paused():
            first = Ring()
        with gc_paused():
            later = Ring()
        watched = {id(one) for one in gc.get_objects()}
        assert id(first) not in watched
        assert id(later) in watched
    finally:
        gc.unfreeze()


def test_what_ends_after_later_imports_is_freed() -> None:
    gc.unfreeze()
    try:
        with gc_paused():
            pass
        ring = Ring()
        seen = weakref.ref(ring)
        with gc_paused():
            pass
        del ring
        gc.collect()
        assert seen() is None
    finally:
        gc.unfreeze()
