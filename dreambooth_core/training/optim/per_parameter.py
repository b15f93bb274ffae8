"""From the settings to an optimizer: type and size of its state, and how weights are rounded.

fp32 weights with AdamW use torch's fused kernel over all parameters, which can leave an update out
on the device. Everything else (8-bit moments, factored state, bf16 weights, updates inside the
backward pass) takes one optimizer of a library per parameter: what no library offers, a mask on the
device and rounding with keyed random numbers, is then written once and holds for all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dreambooth_core.config import TrainSettings
from dreambooth_core.environment import is_installed
from dreambooth_core.errors import CorruptRecordError, SettingsError
from dreambooth_core.numerics.rounding import stochastic_round
from dreambooth_core.numerics.seeding import derive_seed
from dreambooth_core.training.trainable import ParameterGroup, TrainableModel

BITSANDBYTES = "bitsandbytes>=0.50,<0.51"
"""What is asked for when it is missing; the extra `adam8bit` in pyproject.toml."""

_SEPARATOR = "|"

Single = Callable[[list[nn.Parameter]], Optimizer]
"""Makes a library's optimizer for one parameter."""


def build_optimizer(model: TrainableModel, settings: TrainSettings) -> Optimizer:
    """The optimizer of the settings over the groups of trainable parameters, in their order.

    Raises SettingsError for a missing library.
    """
    if settings.uses_fused_adamw:
        return fused_adamw(model, settings)
    return PerParameter(model.groups, _single_of(settings), seed=settings.seed)


def fused_adamw(model: TrainableModel, settings: TrainSettings) -> torch.optim.AdamW:
    """Torch's AdamW, one kernel over all parameters."""
    return torch.optim.AdamW(parameter_groups(model), fused=True, **adam_options(settings))


def parameter_groups(model: TrainableModel) -> list[dict[str, list[nn.Parameter]]]:
    """The groups as an optimizer takes them, in their order."""
    return [{"params": list(group.parameters.values())} for group in model.groups]


def begin_update(optimizer: Optimizer, *, step: int, healthy: torch.Tensor) -> None:
    """Tell the optimizer which update comes, and leave it out where `healthy` (0-d bool) is false.

    Nothing waits for the device.
    """
    if isinstance(optimizer, PerParameter):
        optimizer.begin(step, healthy=healthy)
    else:
        # The fused kernel leaves weights and moments alone where found_inf is 1.
        optimizer.found_inf = (~healthy).float()  # pyright: ignore[reportAttributeAccessIssue]


def adam_options(settings: TrainSettings) -> dict[str, Any]:
    """AdamW's options, whichever library implements it."""
    return {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
        "weight_decay": settings.adam_weight_decay,
    }


def _single_of(settings: TrainSettings) -> Single:
    if settings.optimizer == "adafactor":
        return _adafactor(settings)
    if settings.use_8bit_adam:
        return _adam_8bit(settings)
    return lambda params: torch.optim.AdamW(params, fused=True, **adam_options(settings))


def _adafactor(settings: TrainSettings) -> Single:
    """Adafactor (Shazeer and Stern 2018) at the settings' own rate: no momentum, no relative step.

    `learning_rate` keeps the meaning it has for AdamW, the size of a step (its root mean square
    is clipped to 1 before). AdamW's weight decay counts too, its betas and epsilon do not.
    """
    from transformers.optimization import Adafactor  # imported only by runs that use it

    return lambda params: Adafactor(
        params,
        lr=settings.learning_rate,
        weight_decay=settings.adam_weight_decay,
        scale_parameter=False,
        relative_step=False,
    )


def check_adam_8bit() -> None:
    """Raise SettingsError where bitsandbytes is not installed; it is not imported."""
    if not is_installed("bitsandbytes"):
        raise _no_bitsandbytes("it is not installed")


def _no_bitsandbytes(why: str) -> SettingsError:
    return SettingsError(
        "needs bitsandbytes, which cannot be imported",
        key="train.use_8bit_adam",
        got=why,
        hint=f'pip install "{BITSANDBYTES}", or turn use_8bit_adam off',
    )


def _adam_8bit(settings: TrainSettings) -> Single:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise _no_bitsandbytes(str(error)) from None
    return lambda params: AdamW8bit(params, **adam_options(settings))


@dataclass
class _Slot:
    """A parameter, the stand-in that its own optimizer updates, and that optimizer."""

    name: str
    parameter: nn.Parameter
    stand_in: nn.Parameter
    optimizer: Optimizer


class PerParameter(Optimizer):
    """One optimizer of a library per parameter, each updating an fp32 stand-in of its weight.

    The stand-in is made for the update and dropped after it: a weight in bf16 is updated in fp32
    and rounded at random, and a weight whose update is masked is put back. It is a matrix (of
    [out, everything else]), so that a factored state has two vectors for a convolution too.
    """

    def __init__(self, groups: Sequence[ParameterGroup], single: Single, *, seed: int) -> None:
        named = [list(group.parameters.items()) for group in groups]
        rates = [group.learning_rate for group in groups]
        super().__init__([{"params": n, "lr": r} for n, r in zip(named, rates, strict=True)], {})
        device = named[0][0][1].device
        self._seed, self._update = seed, 0
        self._generator = torch.Generator(device)
        self._healthy = torch.ones((), dtype=torch.bool, device=device)
        self._slots: dict[nn.Parameter, _Slot] = {}
        for name, parameter in itertools.chain(*named):
            stand_in = nn.Parameter(torch.empty(0, dtype=torch.float32, device=device))
            self._slots[parameter] = _Slot(name, parameter, stand_in, single([stand_in]))

    def begin(self, step: int, *, healthy: torch.Tensor) -> None:
        """Name the update that comes (its random numbers depend on it) and its mask, a 0-d bool."""
        self._update, self._healthy = step, healthy

    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        assert closure is None, "the loss is not computed again here"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, lr=group["lr"], healthy=self._healthy)

    @torch.no_grad()
    def update(self, parameter: nn.Parameter, *, lr: float, healthy: torch.Tensor) -> None:
        """Update one parameter with its gradient, or leave it where `healthy` is false."""
        slot = self._slots[parameter]
        grad = parameter.grad
        assert grad is not None, f"{slot.name} has no gradient"
        stand_in = slot.stand_in
        stand_in.data = _matrix(parameter.to(torch.float32, copy=True))
        # Zeros keep the state finite; the weight itself is put back below.
        stand_in.grad = _matrix(grad.to(torch.float32)).masked_fill(~healthy, 0.0)
        slot.optimizer.param_groups[0]["lr"] = lr
        slot.optimizer.step()
        self.state[parameter] = slot.optimizer.state[stand_in]
        after = stand_in.data.view_as(parameter)
        stand_in.data, stand_in.grad = stand_in.data.new_empty(0), None
        parameter.copy_(torch.where(healthy, self._rounded(slot, after), parameter))

    def _rounded(self, slot: _Slot, after: torch.Tensor) -> torch.Tensor:
        if slot.parameter.dtype == torch.float32:
            return after
        key = derive_seed(self._seed, f"rounding/{slot.name}", self._update)
        return stochastic_round(after, generator=self._generator.manual_seed(key))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state as it is. torch's own way would cast it to the weights' type.

        Whole numbers come back as such: the libraries count steps in them.
        """
        slots = [self._slots[p] for group in self.param_groups for p in group["params"]]
        for index, quantities in state_dict["state"].items():
            slot = slots[index]
            state = {name: _on_device(value, slot) for name, value in quantities.items()}
            slot.optimizer.state[slot.stand_in] = state
            self.state[slot.parameter] = state


def _matrix(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1) if x.ndim > 1 else x


def _on_device(value: Any, slot: _Slot) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.int64:
        return int(value)
    return value.to(slot.parameter.device) if isinstance(value, torch.Tensor) else value


class FusedBackward:
    """Updates each parameter inside the backward pass and frees its gradient at once.

    So no more than one gradient is ever held. The update cannot wait for the others: it is masked
    by the loss and by the parameter's own gradient.
    """

    def __init__(self, optimizer: PerParameter) -> None:
        self._optimizer = optimizer
        self._names = {p: name for name, p in _named(optimizer)}
        self._loss_is_finite = torch.ones((), dtype=torch.bool)
        self._resting: set[nn.Parameter] = set()
        self.norms: dict[str, torch.Tensor] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(self._hook(group))

    def rest(self, parameters: set[nn.Parameter]) -> None:
        """Leave these parameters as they are from now on."""
        self._resting = parameters

    def begin(self, step: int, loss: torch.Tensor) -> None:
        """Name the update that the coming backward pass makes, of a loss that is there (0-d)."""
        self.norms = {}
        self._loss_is_finite = torch.isfinite(loss.detach())
        self._optimizer.begin(step, healthy=self._loss_is_finite)

    def _hook(self, group: dict[str, Any]) -> Callable[[torch.Tensor], None]:
        def update(parameter: torch.Tensor) -> None:
            assert isinstance(parameter, nn.Parameter)
            assert parameter.grad is not None
            if parameter in self._resting:
                parameter.grad = None
                return
            norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
            self.norms[self._names[parameter]] = norm
            healthy = self._loss_is_finite & torch.isfinite(norm)
            self._optimizer.update(parameter, lr=group["lr"], healthy=healthy)
            parameter.grad = None

        return update

    def grad_norm(self) -> torch.Tensor:
        """The global norm of the gradients of the last backward pass; not finite if one is not."""
        return torch.linalg.vector_norm(torch.stack(list(self.norms.values())))


def _named(optimizer: Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def optimizer_tensors(optimizer: Optimizer, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The optimizer's state as tensors called `<parameter>|<quantity>`, each with its own memory.

    `names` are those of the parameters in the optimizer's order.
    """
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for index, quantities in optimizer.state_dict()["state"].items():
        for quantity, value in quantities.items():
            tensor = torch.as_tensor(value)
            shared = tensor.data_ptr() in seen  # a table that all 8-bit states look up
            seen.add(tensor.data_ptr())
            tensors[f"{names[index]}{_SEPARATOR}{quantity}"] = tensor.clone() if shared else tensor
    return tensors


def load_optimizer_tensors(
    optimizer: Optimizer, tensors: Mapping[str, torch.Tensor], *, names: Sequence[str]
) -> None:
    """Give the optimizer the state that `optimizer_tensors` took. Raises CorruptRecordError."""
    index_of = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, quantity = key.rsplit(_SEPARATOR, 1)
        if name not in index_of:
            raise CorruptRecordError(f"the optimizer's state is of another model: {name}")
        state.setdefault(index_of[name], {})[quantity] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
