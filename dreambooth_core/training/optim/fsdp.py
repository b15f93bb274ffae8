"""Updates by torch's FSDP2: weights, gradients and moments are sharded over the processes.

This calls torch directly, also on GPUs, because accelerate silently ignores FSDP on a CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from dreambooth_core.config import TrainSettings
from dreambooth_core.training.optim.adamw import fused_adamw
from dreambooth_core.training.optim.ddp import read_bare_weights
from dreambooth_core.training.protocols import Strategy, UpdateResult
from dreambooth_core.training.trainable import TrainableModel

_SPLIT = (BasicTransformerBlock, ResnetBlock2D, CLIPEncoderLayer)
"""Modules whose weights are gathered for use and freed together."""
_OPTIONS = StateDictOptions(ignore_frozen_params=True)


class FsdpStrategy(Strategy):
    """AdamW over sharded parameters."""

    def _set_up(self, state: Path | None) -> None:
        """Moments start anew if the state has only weights: a run without FSDP wrote it."""
        model, accelerator, settings = self.model, self.accelerator, self.settings
        weights = read_bare_weights(state)
        model.put(weights)
        self._mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        self.wrapped_model = _split(model.denoiser, self._mesh, settings)
        self.model = _with_split_parameters(model)
        self._optimizer = fused_adamw(self.model, settings)
        if state is not None and not weights:
            self._restore(state)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:  # noqa: ARG002
        """Accumulate the gradients of `loss`; each process keeps its shard.

        Every micro-step reduces them, because whole gradients would not fit into memory.
        """
        loss.backward()

    def apply(self, loss: torch.Tensor) -> UpdateResult:
        """Clip and update. The device decides about a skip, so nothing waits for it."""
        parameters = list(self.model.trainable.values())
        total: Any = get_total_norm([p.grad for p in parameters if p.grad is not None])
        grad_norm: torch.Tensor = total.full_tensor()
        if self.settings.max_grad_norm is not None:
            clip_grads_with_norm_(parameters, self.settings.max_grad_norm, total)
        healthy = torch.isfinite(loss) & torch.isfinite(grad_norm)
        found_inf = DTensor.from_local((~healthy).float(), self._mesh, [Replicate()])
        # The fused kernel leaves weights and moments unchanged if found_inf is 1.
        self._optimizer.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]
        self._optimizer.step()
        return UpdateResult(grad_norm.to(torch.float32))

    def value(self, parameter: nn.Parameter) -> torch.Tensor:
        """Gather the parameter from the shards of all processes."""
        return _whole(parameter.detach())

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """Gather the gradient from the shards of all processes."""
        return None if parameter.grad is None else _whole(parameter.grad)

    def save(self, folder: Path) -> None:
        """Write this process's shards; any number of processes can read them."""
        dcp.save(self._state(), checkpoint_id=folder)

    @contextlib.contextmanager
    def gathered_weights(self) -> Iterator[None]:
        """Inside, the main process has the complete trained weights in host memory."""
        own: dict[str, nn.Parameter] = {}
        for name, parameter in self.model.trainable.items():
            value = self.value(parameter)
            if self.accelerator.is_main_process:
                own[name] = parameter
                _put(self.model.denoiser, name, nn.Parameter(value.cpu()))
        try:
            yield
        finally:
            for name, parameter in own.items():
                _put(self.model.denoiser, name, parameter)

    def _state(self) -> dict[str, Any]:
        return {
            "weights": {n: p.detach() for n, p in self.model.trainable.items()},
            "optimizer": get_optimizer_state_dict(
                self.wrapped_model, self._optimizer, options=_OPTIONS
            ),
        }

    def _restore(self, folder: Path) -> None:
        """Load this process's shards from a verified state."""
        state = self._state()
        dcp.load(state, checkpoint_id=folder)  # weights are read in place
        set_optimizer_state_dict(
            self.wrapped_model, self._optimizer, state["optimizer"], options=_OPTIONS
        )


def _split(denoiser: nn.Module, mesh: DeviceMesh, settings: TrainSettings) -> nn.Module:
    """Shard blocks first, then the rest; compute in bf16 if the settings say so."""
    policy = MixedPrecisionPolicy()
    if settings.mixed_precision == "bf16":
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
        )
    inner = replace(policy, output_dtype=None)
    for module in denoiser.modules():
        if isinstance(module, _SPLIT):
            fully_shard(module, mesh=mesh, mp_policy=inner)
    fully_shard(denoiser, mesh=mesh, mp_policy=policy)
    return denoiser


def _with_split_parameters(model: TrainableModel) -> TrainableModel:
    """Return the model with the parameters that sharding has created."""
    now = dict(model.denoiser.named_parameters())
    groups = [
        replace(group, parameters={name: now[name] for name in group.parameters})
        for group in model.groups
    ]
    return replace(model, groups=tuple(groups))


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _put(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Replace a parameter of a module by another of the same name."""
    path, _, leaf = name.rpartition(".")
    module.get_submodule(path).register_parameter(leaf, parameter)
