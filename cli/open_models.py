"""The models that a process keeps open between requests: the last ones, for a resident command."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreambooth_core.config import Settings
from dreambooth_core.models import load
from dreambooth_core.pipeline import model_references
from dreambooth_core.pipeline.opening import OpenModel, open_model
from dreambooth_core.records import RECORD_NAME
from dreambooth_core.registry.tracking import Tracking
from dreambooth_core.workspace import Workspace

_AT_ONCE = 2
"""Champion and challenger."""


class OpenModels:
    """Opens models as `open_model` does; the last ones stay open."""

    def __init__(self) -> None:
        self._open: OrderedDict[object, tuple[contextlib.ExitStack, OpenModel]] = OrderedDict()

    @contextlib.contextmanager
    def opened(
        self, workspace: Workspace, settings: Settings, model: str, **how: Any
    ) -> Iterator[OpenModel]:
        """The model, loaded unless it is open."""
        key = (
            _identity(model, settings, how["store"]),
            settings.model_dump_json(),
            *map(str, how.values()),
        )
        if key not in self._open:
            while len(self._open) >= _AT_ONCE:
                self._close_oldest()
            stack = contextlib.ExitStack()
            ready = stack.enter_context(open_model(workspace, settings, model, **how))
            self._open[key] = stack, ready
        self._open.move_to_end(key)
        yield self._open[key][1]

    def _close_oldest(self) -> None:
        _, (stack, ready) = self._open.popitem(last=False)
        device = ready.pipe.unet.device
        stack.close()
        del stack, ready
        load.free_memory(device)


def _identity(model: str, settings: Settings, store: Tracking) -> str:
    """A folder with the time of its record, or a version: an alias may move."""
    record = Path(model) / RECORD_NAME
    if record.is_file():
        return f"{record.resolve()} {record.stat().st_mtime_ns}"
    return model if Path(model).is_dir() else model_references.find(store, model, settings).uri
