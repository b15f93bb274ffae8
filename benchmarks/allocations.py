"""Bytes allocated by torch on the CPU over time.

The resident set size does not show them: for the pocket model most of it belongs to libraries.
torch's profiler reports each block that the CPU allocator allocates and frees, to the byte and
including kernels' buffers, like `torch.cuda.max_memory_allocated` on a GPU but without rounding.
The count excludes memory-mapped files and the internal allocations of oneDNN and BLAS.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch.profiler import ProfilerActivity, profile, record_function

_MARK = "benchmark: mark"
_BLOCK = "[memory]"


@dataclass
class Allocations:
    """Bytes at each mark, and the peak of each interval that ends at a mark.

    `counting` fills both in at its end and ignores everything after the last mark.
    """

    at_marks: list[int] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    def mark(self) -> None:
        """Set a mark."""
        with record_function(_MARK):
            pass


@contextlib.contextmanager
def counting() -> Iterator[Allocations]:
    """Count allocations inside the context; use it once per process, early.

    Blocks from an earlier context would be subtracted when they are freed.
    """
    found = Allocations()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watcher:
        yield found
    assert watcher.profiler is not None
    results = watcher.profiler.kineto_results
    assert results is not None
    events = [e for e in results.events() if e.name() in (_MARK, _BLOCK)]
    held = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == _MARK:
            found.at_marks.append(held)
            found.peaks.append(highest)
            highest = held
        else:
            held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue] - not in the stubs
            highest = max(highest, held)
