"""A stop that reaches worker threads: Prefect interrupts only the main one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stop_flag() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set, before what they did so far happens as well.

    Outside the main thread Python delivers no signals; then nothing sets the event.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    # A signal that is ignored (nohup) stays ignored.
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    former = {n: handler for n, handler in handlers.items() if handler != signal.SIG_IGN}

    def on_signal(number: int, frame: FrameType | None) -> None:
        flag.set()
        handler = former[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
        else:
            raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")

    for number in former:
        signal.signal(number, on_signal)
    try:
        yield flag
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
