"""Every optimizer of the settings, on small modules on the CPU."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from dreambooth_core.config import TrainSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.numerics.seeding import generator_for
from dreambooth_core.training import checks, precision
from dreambooth_core.training.distributed import make_strategy
from dreambooth_core.training.optim import adamw
from dreambooth_core.training.optim.ddp import DdpStrategy
from dreambooth_core.training.optim.per_parameter import PerParameter
from dreambooth_core.training.protocols import UpdateResult
from dreambooth_core.training.trainable import ParameterGroup, TrainableModel
from tests.unit.training.tiny import FULL, LORA

KINDS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "8-bit AdamW": {"use_8bit_adam": True},
    "Adafactor": {"optimizer": "adafactor"},
    "AdamW, bf16": {"weight_dtype": "bf16", "mixed_precision": "bf16"},
    "8-bit AdamW, bf16": {
        "use_8bit_adam": True, "weight_dtype": "bf16", "mixed_precision": "bf16",
    },
    "Adafactor, bf16": {
        "optimizer": "adafactor", "weight_dtype": "bf16", "mixed_precision": "bf16",
    },
}  # fmt: skip
FUSED = {"fused_backward": True, "max_grad_norm": None}


class Net(nn.Module):
    """A convolution and two linear layers, one of them used twice; 4,096 numbers or more each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 64, 3, padding=1)
        self.mid = nn.Linear(64, 64)
        self.out = nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(x).mean(dim=(2, 3))
        return self.out(torch.tanh(self.mid(torch.tanh(self.mid(h)))))


def settings_of(**changes: Any) -> TrainSettings:
    return TrainSettings(**{**FULL, **changes})


class Run:
    """A net, its optimizer, and updates whose rows depend on the step alone."""

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = Net()
        self.parameters = dict(self.net.named_parameters())
        precision.cast_trainable(self.parameters, settings)
        precision.check_types(self.parameters, settings)
        group = ParameterGroup("unet", self.parameters, settings.learning_rate)
        model = TrainableModel(cast("Any", self.net), (group,), cast("Any", None), method="full")
        accelerator = Accelerator(cpu=True)
        self.strategy = make_strategy(model, accelerator=accelerator, settings=settings, state=None)
        self.optimizer = cast("DdpStrategy", self.strategy)._raw_optimizer

    def update(self, step: int, *, spoil: float = 0.0) -> tuple[float, UpdateResult]:
        """Make one update and return its loss; `spoil` is added to the loss."""
        generator = generator_for(0, "rows", step)
        x = torch.randn(16, 8, 6, 6, generator=generator)
        y = x.mean(dim=(2, 3)) * 3
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.weight_dtype == "bf16"):
            prediction = self.net(x)
        loss = (prediction.float() - y).square().mean() + spoil
        self.strategy.begin(step + 1, learning_rates=[self.settings.peak_rate])
        self.strategy.backward(loss, last=True)
        result = self.strategy.apply(loss.detach())
        self.strategy.clear_gradients()
        return loss.item(), result

    def bits(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def restored(self) -> Run:
        """A fresh run that is given this one's weights and state, as a resume does."""
        names = list(self.parameters)
        tensors = adamw.optimizer_tensors(self.optimizer, names)
        copied = {name: tensor.clone() for name, tensor in tensors.items()}
        other = Run(self.settings)
        with torch.no_grad():
            for name, parameter in other.parameters.items():
                parameter.copy_(self.parameters[name])
        adamw.load_optimizer_tensors(other.optimizer, copied, names=names)
        return other


@pytest.fixture(params=KINDS, ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    return KINDS[request.param]


@pytest.mark.parametrize("fused", [{}, FUSED], ids=["apart", "in the backward pass"])
def test_every_optimizer_quarters_the_loss_in_60_updates(kind, fused):
    run = Run(settings_of(**kind, **fused, learning_rate=3e-3))
    losses = [run.update(step)[0] for step in range(60)]
    assert sum(losses[-5:]) < 0.25 * sum(losses[:5])


@pytest.mark.parametrize("fused", [{}, FUSED], ids=["apart", "in the backward pass"])
def test_restored_run_equals_the_uninterrupted_one_bit_for_bit(kind, fused):
    whole = Run(settings_of(**kind, **fused))
    for step in range(2):
        whole.update(step)
    resumed = whole.restored()
    for step in range(2, 5):
        whole.update(step)
        resumed.update(step)
    for name, bits in whole.bits().items():
        assert torch.equal(bits, resumed.bits()[name]), name


def test_fused_update_equals_the_plain_one_bit_for_bit(kind):
    apart, fused = Run(settings_of(**kind, max_grad_norm=None)), Run(settings_of(**kind, **FUSED))
    for step in range(3):
        apart.update(step)
        fused.update(step)
    for name, bits in apart.bits().items():
        assert torch.equal(bits, fused.bits()[name]), name


@pytest.mark.parametrize("fused", [{}, FUSED], ids=["apart", "in the backward pass"])
@pytest.mark.parametrize("spoil", [float("nan"), float("inf")])
def test_non_finite_loss_moves_no_weight_and_no_state(kind, fused, spoil):
    run = Run(settings_of(**kind, **fused))
    run.update(0)
    before = run.bits()
    run.update(1, spoil=spoil)
    assert all(torch.equal(bits, run.bits()[name]) for name, bits in before.items())
    tensors = adamw.optimizer_tensors(run.optimizer, list(run.parameters))
    assert all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())


def test_fused_backward_skips_and_names_the_non_finite_gradient():
    run = Run(settings_of(**FUSED))
    run.update(0)
    before = run.bits()
    run.net.mid.weight.register_hook(lambda grad: grad * float("nan"))
    _, result = run.update(1)
    assert checks.skipped_parameters(result.norms) == ["mid.weight"]
    assert torch.equal(before["mid.weight"], run.bits()["mid.weight"])
    assert not torch.equal(before["out.weight"], run.bits()["out.weight"])
    assert not torch.isfinite(result.grad_norm)


def test_no_gradient_is_left_after_a_backward_pass_that_updates():
    run = Run(settings_of(**FUSED))
    run.update(0)
    assert all(p.grad is None for p in run.net.parameters())


def test_per_parameter_adamw_equals_torchs_in_fp32():
    whole, fused = Run(settings_of(max_grad_norm=None)), Run(settings_of(**FUSED))
    assert isinstance(whole.optimizer, torch.optim.AdamW)
    for step in range(5):
        whole.update(step)
        fused.update(step)
    for name, bits in whole.bits().items():
        assert torch.equal(bits, fused.bits()[name]), name


def test_8_bit_moments_take_a_quarter_of_fp32_memory():
    """2 x 4 bytes against 2 x 1, plus one fp32 scale per 256 numbers; small tensors stay fp32."""

    def moments(run: Run, name: str) -> int:
        run.update(0)
        tensors = adamw.optimizer_tensors(run.optimizer, list(run.parameters))
        own = {k: t for k, t in tensors.items() if k.startswith(f"{name}|") and "qmap" not in k}
        return sum(t.numel() * t.element_size() for t in own.values() if t.numel() > 1)

    full = moments(Run(settings_of(**FUSED)), "conv.weight")
    small = moments(Run(settings_of(use_8bit_adam=True)), "conv.weight")
    assert small / full == pytest.approx(0.25 * (1 + 4 / 256), abs=1e-6)


def test_factored_convolution_state_has_one_number_per_row_and_column():
    run = Run(settings_of(optimizer="adafactor"))
    run.update(0)
    tensors = adamw.optimizer_tensors(run.optimizer, list(run.parameters))
    assert tensors["conv.weight|exp_avg_sq_row"].shape == (64,)
    assert tensors["conv.weight|exp_avg_sq_col"].shape == (8 * 9,)


def test_missing_bitsandbytes_is_refused_with_the_pip_line(monkeypatch):
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("bitsandbytes"):
            raise ImportError("No module named 'bitsandbytes'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match=re.escape(adamw.BITSANDBYTES)) as caught:
        Run(settings_of(use_8bit_adam=True))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("compute", ["no", "bf16", "fp16"])
def test_fp16_weights_are_trained_in_fp32_at_any_precision(compute):
    """So no scaler meets an fp16 gradient ("Attempting to unscale FP16 gradients")."""
    settings = settings_of(mixed_precision=compute)
    net = Net().to(torch.float16)
    parameters = dict(net.named_parameters())
    with pytest.raises(AssertionError, match="trained weights must be"):
        precision.check_types(parameters, settings)
    precision.cast_trainable(parameters, settings)
    precision.check_types(parameters, settings)
    net(torch.zeros(1, 8, 6, 6)).sum().backward()
    assert {p.grad.dtype for p in net.parameters()} == {torch.float32}


def test_gradient_scaler_accepts_cast_weights_but_not_fp16():
    """torch's own scaler, which runs on a CPU too."""

    def unscale(parameters: dict[str, nn.Parameter], net: nn.Module) -> None:
        scaler = torch.amp.GradScaler("cpu")
        optimizer = torch.optim.SGD(list(parameters.values()), lr=0.1)
        scaler.scale(sum(p.float().sum() for p in net.parameters())).backward()
        scaler.unscale_(optimizer)

    net = Net().to(torch.float16)
    parameters = dict(net.named_parameters())
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        unscale(parameters, net)
    net.zero_grad()
    precision.cast_trainable(parameters, settings_of(mixed_precision="fp16"))
    unscale(parameters, net)


def test_checksum_detects_equal_numbers_of_upward_and_downward_moves():
    """As in stochastic rounding: the plain sum of the patterns is the same before and after."""
    bits = torch.arange(1000, 1320, dtype=torch.int16)
    moved = bits.clone()
    moved[torch.tensor([3, 200, 100, 31])] += torch.tensor([1, 1, -1, -1], dtype=torch.int16)
    assert moved.sum() == bits.sum()
    before, after = bits.view(torch.bfloat16), moved.view(torch.bfloat16)
    assert checks.checksum(before) != checks.checksum(after)
    assert checks.checksum(before) == checks.checksum(before.clone())


def test_checksum_weighs_each_bit_pattern_by_its_squared_position():
    bits = torch.randint(-30_000, 30_000, (300_000,), dtype=torch.int32)
    places = torch.arange(1, 300_001)
    assert checks.checksum(bits.view(torch.float32)) == (places**2 * bits).sum()


@pytest.mark.parametrize("kind", ["AdamW", "8-bit AdamW", "Adafactor"])
def test_weight_decay_is_decoupled_in_every_optimizer(kind):
    run = Run(settings_of(**KINDS[kind], learning_rate=0.1, adam_weight_decay=0.5))
    before = run.bits()
    for parameter in run.net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adamw.begin_update(run.optimizer, step=1, healthy=torch.tensor(data=True))
    run.optimizer.step()
    for name, bits in run.bits().items():
        torch.testing.assert_close(bits, before[name] * (1 - 0.1 * 0.5))


def test_the_random_rounding_is_keyed_by_update_name_and_seed():
    """Two weights that are alike and get the same gradient: a quarter of the next bit of 1."""

    def rounded(*, update: int, seed: int = 0) -> tuple[bytes, bytes]:
        pair = {n: nn.Parameter(torch.ones(4000, dtype=torch.bfloat16)) for n in ("a", "b")}
        group = ParameterGroup("unet", pair, 2**-9)
        optimizer = PerParameter([group], torch.optim.SGD, seed=seed)
        for parameter in pair.values():
            parameter.grad = torch.full_like(parameter, -1)
        optimizer.begin(update, healthy=torch.tensor(data=True))
        optimizer.step()
        moved = [(p.detach() > 1).float() for p in pair.values()]
        assert all(abs(part.mean().item() - 0.25) < 0.035 for part in moved)  # 5 sigma
        first, second = (part.numpy().tobytes() for part in moved)
        return first, second

    draws = [*rounded(update=1), *rounded(update=2), *rounded(update=1, seed=1)]
    assert len(set(draws)) == 6
    assert rounded(update=1) == tuple(draws[:2])


@pytest.mark.parametrize("kind", ["AdamW", "Adafactor"])
def test_optimizer_starts_at_the_adapters_own_peak_rate(kind):
    run = Run(settings_of(**KINDS[kind], method="lora", lora={**LORA, "learning_rate": 0.02}))
    optimizers = getattr(run.optimizer, "_entries", None)
    single = next(iter(optimizers.values())).optimizer if optimizers else run.optimizer
    assert single.defaults["lr"] == 0.02
