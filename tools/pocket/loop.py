"""The one training loop of the pocket models: deterministic, and resumable at any kill.

Every batch is drawn from a generator made of (seed, part, step), so a resumed run sees exactly the
batches that an unbroken run would have seen.
"""

from __future__ import annotations

import copy
import hashlib
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
from tools.pocket.optim import Muon
from tools.pocket.settings import PartSettings

#: The share of the steps at the end over which the learning rate falls to zero.
DECAY_SHARE = 0.25
Losses = Mapping[str, torch.Tensor]


def step_generator(seed: int, *, part: str, step: int) -> torch.Generator:
    """The random numbers of one step of one part (on the CPU, whatever the device)."""
    digest = hashlib.sha256(f"{seed}/{part}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def learning_rate_at(step: int, *, settings: PartSettings) -> float:
    """Linear warm-up, a plateau, then a linear fall over the last `DECAY_SHARE` of the steps."""
    up = (step + 1) / max(1, settings.warmup)
    down = (settings.steps - step) / max(1.0, DECAY_SHARE * settings.steps)
    return settings.learning_rate * max(0.0, min(1.0, up, down))


def save_state(state: object, path: Path) -> None:
    """Writes a torch file whole or not at all."""
    with atomic_file(path) as aside:
        torch.save(state, aside)


def load_state(path: Path, *, device: torch.device | None = None) -> dict[str, Any]:
    """Reads what `save_state` wrote; tensors and plain values only."""
    return torch.load(path, map_location=device, weights_only=True)  # noqa: TID251 - own state


def fast_attention(device: torch.device) -> AbstractContextManager[object]:
    """On a CPU, plain products: the fused attention's bf16 backward is eight times slower."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


@dataclass(slots=True)
class Run:
    """One part under training: the live model, its averaged copy, and where the state is kept."""

    name: str
    settings: PartSettings
    seed: int
    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    path: Path
    step: int = 0
    seconds: float = 0.0

    def save(self) -> None:
        """Keeps everything that a later start needs."""
        save_state(
            {
                "step": self.step,
                "seconds": self.seconds,
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
            self.path,
        )

    def resume(self, device: torch.device) -> None:
        """Continues from the state folder, if there is anything to continue from."""
        if not self.path.exists():
            return
        state = load_state(self.path, device=device)
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])


def _is_matrix(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim > 1 and "embed" not in name


def open_run(
    name: str, *, settings: PartSettings, seed: int, model: nn.Module, state: Path,
    device: torch.device,
) -> Run:  # fmt: skip
    """A run at the step where the state folder left it, or at step 0."""
    model = model.to(device)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if _is_matrix(name, p)]
    others = [p for name, p in trained if not _is_matrix(name, p)]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay, "muon": settings.muon},
        {"params": others},
    ]
    optimizer = Muon(groups, lr=settings.learning_rate)
    average = copy.deepcopy(model).requires_grad_(False)
    run = Run(name, settings, seed, model, average, optimizer, state / f"{name}.pt")
    run.resume(device)
    return run


def _update_average(run: Run) -> None:
    decay = min(run.settings.ema_decay, (1 + run.step) / (10 + run.step))
    live = [p.detach() for p in run.model.parameters()]
    torch._foreach_lerp_(list(run.average.parameters()), live, 1 - decay)
    for mine, theirs in zip(run.average.buffers(), run.model.buffers(), strict=True):
        mine.copy_(theirs)


def train(
    run: Run,
    *,
    losses: Callable[[nn.Module, torch.Generator], Losses],
    say: Callable[[str], None] = print,
    report_every: int = 100,
    until: float | None = None,
) -> nn.Module:
    """Trains to `settings.steps` (or to the wall-clock time `until`) and returns the average.

    `losses` gives named losses; the one called "loss" is minimised, the others are only reported.
    """
    last_save = last_report = time.perf_counter()
    device = next(run.model.parameters()).device
    run.model.train()
    while run.step < run.settings.steps and (until is None or time.time() < until):
        rate = learning_rate_at(run.step, settings=run.settings)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        generator = step_generator(run.seed, part=run.name, step=run.step)
        with fast_attention(device):
            named = losses(run.model, generator)
            named["loss"].backward()
        if not torch.isfinite(named["loss"]):
            raise FloatingPointError(f"{run.name}: the loss is not finite at step {run.step}")
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        _update_average(run)
        now = time.perf_counter()
        if run.step % report_every == 0:
            pace = (now - last_report) / report_every
            shown = {k: round(v.item(), 5) for k, v in named.items()}
            say(json.dumps({"part": run.name, "step": run.step, "s/step": round(pace, 3), **shown}))
            last_report = now
        if now - last_save > run.settings.save_seconds:
            run.seconds += now - last_save
            run.save()
            last_save = now
    run.seconds += time.perf_counter() - last_save
    run.save()
    return run.average.eval()
