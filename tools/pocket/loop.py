"""The training loop that all pocket models share; a killed run resumes from its last save.

The generator of a batch depends on (seed, part, step) alone, so a resumed run sees the batches that
an uninterrupted run would have seen.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dreambooth_core.files import atomic_file
from dreambooth_core.numerics.seeding import generator_for
from dreambooth_core.training.optim.ema import MovingAverage
from tools.pocket.settings import PartSettings

#: The share of the steps at the end over which the learning rate falls to zero.
DECAY_SHARE = 0.25
Losses = Mapping[str, torch.Tensor]


def learning_rate_at(step: int, *, settings: PartSettings) -> float:
    """Linear warm-up, a plateau, then linear decay over the last `DECAY_SHARE` of the steps."""
    up = (step + 1) / max(1, settings.warmup)
    down = (settings.steps - step) / max(1.0, DECAY_SHARE * settings.steps)
    return settings.learning_rate * max(0.0, min(1.0, up, down))


def save_state(state: object, path: Path) -> None:
    """Write a torch file atomically."""
    with atomic_file(path) as aside:
        torch.save(state, aside)


def load_state(path: Path, *, device: torch.device | None = None) -> dict[str, Any]:
    """Load a file of `save_state`; tensors and plain values only."""
    return torch.load(path, map_location=device, weights_only=True)  # noqa: TID251 - own state


def fast_attention(device: torch.device) -> AbstractContextManager[object]:
    """Unfused attention on a CPU, where the fused kernel's bf16 backward is eight times slower."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class Optimizers:
    """Muon for matrices, AdamW for embeddings, vectors and scalars.

    torch's Muon accepts 2-D parameters only, so it updates flattened views of convolution kernels.
    Its updates have the RMS of AdamW's, and both share one learning rate.
    """

    def __init__(self, model: nn.Module, *, settings: PartSettings) -> None:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._matrices = [
            (p, nn.Parameter(p.detach().flatten(1))) for name, p in trained if _is_matrix(name, p)
        ]
        others = [p for name, p in trained if not _is_matrix(name, p)]
        rate = settings.learning_rate
        muon = torch.optim.Muon(
            [view for _, view in self._matrices],
            lr=rate,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        adamw = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
        self._optimizers: list[torch.optim.Optimizer] = [muon, adamw]

    def step(self, *, learning_rate: float) -> None:
        """Apply one update and clear the gradients."""
        for parameter, view in self._matrices:
            view.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for parameter, _ in self._matrices:
            parameter.grad = None

    def state_dict(self) -> list[dict[str, Any]]:
        """The state of both optimizers."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore the state of both optimizers."""
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def _is_matrix(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim > 1 and "embed" not in name


@dataclass(slots=True)
class Run:
    """The training of one part: model, moving average, optimizers and the path of the state."""

    name: str
    settings: PartSettings
    seed: int
    model: nn.Module
    average: MovingAverage
    optimizers: Optimizers
    path: Path
    step: int = 0
    seconds: float = 0.0

    def save(self) -> None:
        """Save everything that a resumed run needs."""
        save_state(
            {
                "step": self.step,
                "seconds": self.seconds,
                "model": self.model.state_dict(),
                "average": self.average.tensors,
                "optimizers": self.optimizers.state_dict(),
            },
            self.path,
        )

    def resume(self, device: torch.device) -> None:
        """Load the saved state, if there is one."""
        if not self.path.exists():
            return
        state = load_state(self.path, device=device)
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.average.restore(state["average"])
        self.optimizers.load_state_dict(state["optimizers"])

    def averaged_model(self) -> nn.Module:
        """A frozen copy of the model with the averaged weights, in eval mode."""
        model = copy.deepcopy(self.model).requires_grad_(False)
        model.load_state_dict({**model.state_dict(), **self.average.tensors})
        return model.eval()


def open_run(
    name: str, *, settings: PartSettings, seed: int, model: nn.Module, state: Path,
    device: torch.device,
) -> Run:  # fmt: skip
    """A run at its last saved step, or at step 0."""
    model = model.to(device)
    average = MovingAverage(dict(model.named_parameters()), decay=settings.ema_decay)
    optimizers = Optimizers(model, settings=settings)
    run = Run(name, settings, seed, model, average, optimizers, state / f"{name}.pt")
    run.resume(device)
    return run


def train(
    run: Run,
    *,
    losses: Callable[[nn.Module, torch.Generator], Losses],
    log: Callable[[str], None] = print,
    report_every: int = 100,
    until: float | None = None,
) -> nn.Module:
    """Train to `settings.steps` or the wall-clock time `until`; returns the averaged model.

    `losses` returns named losses: `train` minimises "loss" and only reports the others.
    """
    last_save = last_report = time.perf_counter()
    device = next(run.model.parameters()).device
    run.model.train()
    while run.step < run.settings.steps and (until is None or time.time() < until):
        named = _update(run, losses=losses, device=device)
        now = time.perf_counter()
        if run.step % report_every == 0:
            pace = (now - last_report) / report_every
            values = {name: round(value.item(), 5) for name, value in named.items()}
            log(
                json.dumps({"part": run.name, "step": run.step, "s/step": round(pace, 3), **values})
            )
            last_report = now
        if now - last_save > run.settings.save_seconds:
            run.seconds += now - last_save
            run.save()
            last_save = now
    run.seconds += time.perf_counter() - last_save
    run.save()
    return run.averaged_model()


def _update(
    run: Run, *, losses: Callable[[nn.Module, torch.Generator], Losses], device: torch.device
) -> Losses:
    with fast_attention(device):
        named = losses(run.model, generator_for(run.seed, run.name, run.step))
        named["loss"].backward()
    if not torch.isfinite(named["loss"]):
        raise FloatingPointError(f"{run.name}: the loss is not finite at step {run.step}")
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizers.step(learning_rate=learning_rate_at(run.step, settings=run.settings))
    run.step += 1
    # + 1: the recipe's averages warm up from 2/11, one update ahead of DreamBooth training.
    run.average.update(run.step + 1)
    return named
