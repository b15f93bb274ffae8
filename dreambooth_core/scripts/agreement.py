"""What one process finds out and all of a run must know, mistakes included."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from dreambooth_core.errors import DreamBoothError

T = TypeVar("T")


def from_main(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """What `make` gives in the main process, in all of them.

    A DreamBoothError of its is raised in all of them as well: else the others would wait for it.
    """
    answer: list[tuple[T | None, DreamBoothError | None]] = [(None, None)]
    if accelerator.is_main_process:
        try:
            answer = [(make(), None)]
        except DreamBoothError as error:
            answer = [(None, error)]
    if accelerator.num_processes > 1:
        broadcast_object_list(answer)
    value, error = answer[0]
    if error is not None:
        raise error
    return value  # pyright: ignore[reportReturnType] - None only where `make` gives None
