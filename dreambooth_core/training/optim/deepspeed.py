"""Updates by DeepSpeed's ZeRO: sharded moments (and gradients), optionally on the CPU."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.cpp_extension import get_cxx_compiler, is_ninja_available

from dreambooth_core.config import TrainSettings, deepspeed_config
from dreambooth_core.config.launching import offloads
from dreambooth_core.environment import is_installed
from dreambooth_core.errors import SettingsError, StageError
from dreambooth_core.training.optim.adamw import adam_options, fused_adamw, parameter_groups
from dreambooth_core.training.optim.ddp import read_bare_weights
from dreambooth_core.training.protocols import DEEPSPEED_TAG, Strategy, UpdateResult
from dreambooth_core.training.trainable import TrainableModel


class DeepSpeedStrategy(Strategy):
    """AdamW by a DeepSpeed engine, in processes that accelerate has started for it.

    This class builds the engine, because `accelerator.prepare` may replace the optimizer by one
    with another kind of weight decay. It checks what the engine runs.
    """

    def _set_up(self, state: Path | None) -> None:
        """Moments start anew if the state has only weights: a run without DeepSpeed wrote it.

        Raises SettingsError if DeepSpeed or its compiler is missing.
        """
        model, accelerator, settings = self.model, self.accelerator, self.settings
        deepspeed = _import_deepspeed()
        weights = read_bare_weights(state)
        model.put(weights)
        plugin = accelerator.state.deepspeed_plugin
        assert plugin is not None, "accelerate was not launched for DeepSpeed"
        config = deepspeed_config(plugin.deepspeed_config, settings)
        config["train_batch_size"] = (
            settings.train_batch_size
            * settings.gradient_accumulation_steps
            * accelerator.num_processes
        )
        config["zero_allow_untested_optimizer"] = True
        _check_stage(config)
        optimizer = _optimizer(model, settings, offload=offloads(config))
        engine, *_ = deepspeed.initialize(model=model.denoiser, optimizer=optimizer, config=config)
        self._engine: Any = engine
        self._optimizer = engine.optimizer
        self._check(optimizer)
        self.wrapped_model = _InEngineType(engine)
        self._put_fp32(weights)
        if state is not None and not weights:
            # Pickle is safe here: `state` is in this workspace's store, with verified sha256.
            loaded, _ = engine.load_checkpoint(
                str(state), tag=DEEPSPEED_TAG, load_module_strict=False
            )
            assert loaded is not None, f"DeepSpeed found no state in {state}"
            _multiply_betas_up(optimizer)

    def micro_step(self, *, last: bool) -> AbstractContextManager[None]:
        """Tell the engine whether an update follows; only then it reduces the gradients."""
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulate the gradients of `loss`; each process keeps its shard."""
        assert last == self._engine.is_gradient_accumulation_boundary()
        self._engine.backward(loss, scale_wrt_gas=False)

    def apply(self, loss: torch.Tensor) -> UpdateResult:
        """Clip and update. DeepSpeed waits for the device to find non-finite gradients."""
        self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32)
        skipped = bool(self._engine.optimizer.overflow)
        return UpdateResult(
            norm.to(loss.device),
            was_skipped=skipped and self.settings.mixed_precision == "fp16",
        )

    def drop_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Fail: the gradients are sharded before they could be dropped."""
        raise AssertionError(f"the settings let {len(list(parameters))} parameters rest")

    def clear_gradients(self) -> None:
        """Do nothing: the engine frees them after the update."""

    def value(self, parameter: nn.Parameter) -> torch.Tensor:
        """Gather the fp32 copy that is updated from the shards of all processes.

        A frozen parameter is complete in every process.
        """
        from deepspeed.utils import safe_get_full_fp32_param

        if not parameter.requires_grad:
            return parameter.detach()
        value = safe_get_full_fp32_param(parameter)
        assert value is not None, "not a parameter of the engine"
        return value

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """Return the mean gradient; under fp16 it includes the loss scale."""
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter)

    def save(self, folder: Path) -> None:
        """Write this process's shards; the call returns only if all processes make it."""
        self._engine.save_checkpoint(
            str(folder), tag=DEEPSPEED_TAG, save_latest=False, exclude_frozen_parameters=True
        )

    @contextlib.contextmanager
    def gathered_weights(self) -> Iterator[None]:
        """Inside, the networks of the main process have the fp32 copies, in host memory."""
        own: dict[nn.Parameter, torch.Tensor] = {}
        for parameter in self.model.trainable.values():
            if parameter.dtype == torch.float32:
                continue
            value = self.value(parameter)
            if self.accelerator.is_main_process:
                own[parameter] = parameter.data
                parameter.data = value.cpu()
        try:
            yield
        finally:
            for parameter, data in own.items():
                parameter.data = data

    def _put_fp32(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set the fp32 copies, which the engine has built from rounded weights."""
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self.model.trainable.items() if weights else ():
            safe_set_full_fp32_param(parameter, weights[name])

    def _check(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise StageError if the engine has another optimizer or process group."""
        found = self._engine.optimizer.optimizer
        if found is not optimizer:
            raise StageError(
                "DeepSpeed has replaced the optimizer",
                got=type(found).__name__,
                allowed=type(optimizer).__name__,
            )
        if self._engine.dp_world_size != self.accelerator.num_processes:
            raise StageError(
                "DeepSpeed's processes are not in one group",
                got=f"{self._engine.dp_world_size} in a group",
                allowed=f"{self.accelerator.num_processes}",
            )


class _InEngineType(nn.Module):
    """Calls the engine with inputs of its dtype and returns its prediction in fp32."""

    def __init__(self, engine: Any) -> None:
        super().__init__()
        self.engine = engine
        self._dtype: torch.dtype = next(engine.module.parameters()).dtype

    def forward(
        self, noisy_BCHW: torch.Tensor, timestep_B: torch.Tensor, **text: torch.Tensor
    ) -> torch.Tensor:
        """Return the network's prediction in fp32."""
        cast = {n: t.to(self._dtype) if t.is_floating_point() else t for n, t in text.items()}
        return self.engine(noisy_BCHW.to(self._dtype), timestep_B, **cast).float()


def check_deepspeed() -> None:
    """Raise SettingsError if DeepSpeed or its compiler is missing, without importing DeepSpeed."""
    if not is_installed("deepspeed"):
        raise _no_deepspeed("it is not installed")
    missing = [] if shutil.which(get_cxx_compiler()) else [f"a C++ compiler ({get_cxx_compiler()})"]
    missing += [] if is_ninja_available() else ["ninja"]
    if missing:
        raise SettingsError(
            f"DeepSpeed compiles its optimizer on this machine and needs {' and '.join(missing)}",
            hint="install g++ and ninja (apt-get install g++ ninja-build), or "
            "launch without DeepSpeed",
        )


def _no_deepspeed(why: str) -> SettingsError:
    return SettingsError(
        "DeepSpeed cannot be imported",
        key="train.strategy",
        got=why,
        hint='pip install "dreambooth-pipeline[deepspeed]", or launch without it',
    )


def _import_deepspeed() -> Any:
    """Import DeepSpeed. Raises SettingsError if it or its compiler is missing."""
    check_deepspeed()
    try:
        import deepspeed
    except ImportError as error:
        raise _no_deepspeed(str(error)) from None
    return deepspeed


def _check_stage(config: dict[str, Any]) -> None:
    stage = (config.get("zero_optimization") or {}).get("stage", 0)
    if stage not in (1, 2):
        raise SettingsError(
            "the DeepSpeed configuration has an unsupported ZeRO stage",
            got=f"zero_optimization.stage {stage}",
            allowed="1 (sharded moments) and 2 (sharded gradients too)",
            hint="to shard the weights as well, use a configuration of FSDP2: fsdp2-sdxl",
        )


def _optimizer(
    model: TrainableModel, settings: TrainSettings, *, offload: bool
) -> torch.optim.Optimizer:
    """Build AdamW with decoupled weight decay; with offload, DeepSpeed's for the CPU."""
    if not offload:
        return fused_adamw(model, settings)
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(parameter_groups(model), adamw_mode=True, **adam_options(settings))


def _multiply_betas_up(optimizer: torch.optim.Optimizer) -> None:
    """Give DeepSpeed's CPU AdamW, after loading, the bias correction of an uninterrupted run.

    It multiplies beta^step up in each update, but uses `pow` if the step has jumped, which
    sometimes differs in the last bit. Updates of a single number replay the multiplications.
    """
    adam: Any = optimizer
    if not hasattr(adam, "ds_opt_adam"):
        return
    group, last = (
        adam.param_groups[0],
        max((int(state["step"]) for state in adam.state.values()), default=0),
    )
    names = ("lr", "betas", "eps", "weight_decay", "bias_correction")
    rate, betas, *others = (group[name] for name in names)
    numbers = [torch.zeros(1) for _ in range(4)]  # weight, gradient and both moments
    for step in range(1, last + 1):
        adam.ds_opt_adam.adam_update(adam.opt_id, step, rate, *betas, *others, *numbers)
