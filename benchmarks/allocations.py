"""Bytes held by tensors on the CPU over time, as torch's own allocator tells them.

The resident set cannot show them: at the size of the pocket model it is mostly what libraries hold.
The allocator tells every block that it hands out and takes back, to the byte and with the buffers
that kernels ask it for: what `torch.cuda.max_memory_allocated` is on a GPU, without its rounding.
Not in it: files that are mapped into memory, and what oneDNN and BLAS allocate on their own.
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
    """Bytes held at each mark, and the peak of each stretch that ends at one.

    Both are filled in when the measurement ends; what comes after the last mark is left out.
    """

    at_marks: list[int] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    def mark(self) -> None:
        """Set a mark now."""
        with record_function(_MARK):
            pass


@contextlib.contextmanager
def counting() -> Iterator[Allocations]:
    """Count what is allocated inside: once in a process, from its beginning.

    What earlier countings have seen would be subtracted when it is freed.
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
