"""JAX's updates against torch's: the same rows, the same losses, the same state."""

import json
import os
import subprocess
import sys

import pytest
import torch

from dreambooth_core.training.step import prepare
from tests.unit.jax import runs
from tests.unit.jax.conftest import FLAGS
from tests.unit.training import tiny

pytestmark = pytest.mark.jax

EVERYTHING = {
    "snr_gamma": 5.0,
    "offset_noise": 0.1,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.5,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "max_train_steps": runs.NUM_STEPS,
}


def test_losses_match_the_torch_trainer_within_1e_5(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, **EVERYTHING)
    trainer, steps = runs.jax_trainer(job), range(runs.NUM_STEPS)
    expected = runs.losses(runs.torch_trainer(job), steps)
    assert runs.losses(trainer, steps) == pytest.approx(expected, abs=1e-5)
    assert expected[-1] < expected[0] - 0.1


def test_four_devices_match_one_process_with_fourfold_batch(tmp_path, tiny_sd):
    settings = {**EVERYTHING, "train_batch_size": 1}
    found = _run_apart(tmp_path, tiny_sd, settings, num_devices=4)
    job = tiny.make_job(tmp_path, tiny_sd, **{**settings, "train_batch_size": 4})
    expected = runs.losses(runs.torch_trainer(job), range(runs.NUM_STEPS))
    assert found["devices"] == 4
    assert found["losses"] == pytest.approx(expected, abs=1e-5)


def _run_apart(folder, base_model, settings, *, num_devices):
    """A run in a process of its own: the number of devices is fixed when JAX is imported."""
    flags = f"{FLAGS} --xla_force_host_platform_device_count={num_devices}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.jax.runs", base_model, folder, json.dumps(settings)],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_saved_state_resumes_exactly_and_in_torch_within_1e_5(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, **EVERYTHING)
    trainer, state = runs.jax_trainer(job), tmp_path / "state"
    runs.losses(trainer, range(4))
    state.mkdir()
    trainer.state.save(state)
    undisturbed = runs.losses(trainer, range(4, 7))
    assert runs.losses(runs.jax_trainer(job, state=state), range(4, 7)) == undisturbed
    in_torch = runs.losses(runs.torch_trainer(job, state=state), range(4, 7))
    assert in_torch == pytest.approx(undisturbed, abs=1e-5)


def test_update_donates_the_memory_of_old_weights(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, **EVERYTHING)
    trainer = runs.jax_trainer(job)
    old, moments = trainer.state.parameters, trainer.state.moments[0].mu
    runs.losses(trainer, [0])
    assert all(array.is_deleted() for array in (*old.values(), *moments.values()))


def test_a_non_finite_loss_leaves_weights_and_moments_alone(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, **EVERYTHING)
    trainer = runs.jax_trainer(job)
    runs.losses(trainer, [0, 1, 2])
    before = {n: trainer.state.value(p) for n, p in trainer.model.trainable.items()}
    trainer._rows_at = _with_a_broken_row
    (loss,) = runs.losses(trainer, [3])
    assert loss != loss
    for name, parameter in trainer.model.trainable.items():
        assert torch.equal(before[name], trainer.state.value(parameter)), name
    assert int(trainer.state.moments[0].count) == 3


def test_text_encoder_and_checkpointing_match_torch_within_1e_5(tmp_path, tiny_sd):
    settings = {
        "train_text_encoder": True,
        "text_encoder_lr": 5e-4,
        "text_encoder_stop_step": 6,
        "gradient_checkpointing": True,
    }
    job = tiny.make_job(tmp_path, tiny_sd, **settings)
    ours, theirs = runs.jax_trainer(job), runs.torch_trainer(job)
    steps = range(runs.NUM_STEPS)
    assert runs.losses(ours, steps) == pytest.approx(runs.losses(theirs, steps), abs=1e-5)
    with ours.state.gathered_weights():
        assert _largest_difference(ours, theirs, part="text_encoder") < 1e-4
    assert {name.split(".")[0] for name in ours.model.trainable} == {"unet", "text_encoder"}


def _largest_difference(ours, theirs, *, part):
    own, other = ours.model.trainable, theirs.model.trainable
    return max((own[n] - other[n]).abs().max().item() for n in own if n.startswith(part))


def test_bf16_computes_as_torchs_autocast_does(tmp_path, tiny_sd):
    """Ten losses to 2e-3, of which fp32 is up to ten times as far away."""
    job = tiny.make_job(tmp_path, tiny_sd, mixed_precision="bf16")
    trainer, steps = runs.jax_trainer(job), range(runs.NUM_STEPS)
    expected = runs.losses(runs.torch_trainer(job), steps)
    assert runs.losses(trainer, steps) == pytest.approx(expected, abs=2e-3)
    kept = trainer.state.parameters.values()
    assert {str(array.dtype) for array in kept} == {"float32"}


def test_recomputing_keeps_a_tenth_of_the_activations_at_most(tmp_path, tiny_sd):
    """Counted in what the forward pass leaves for the backward pass, without compiling it."""
    kept = [
        _bytes_kept(tiny.make_job(tmp_path, tiny_sd, gradient_checkpointing=on))
        for on in (False, True)
    ]
    assert kept[1] < 0.2 * kept[0]


def _bytes_kept(job):
    import jax

    from dreambooth_core.jax.functional import micro_step_loss, tensors_of

    trainer = runs.jax_trainer(job)
    inputs = prepare(tiny.rows_at(range(16)), trainer.model.loss, device=runs.CPU)
    loss = micro_step_loss(
        trainer.model.denoiser, inputs, prior_loss_weight=1.0, settings=job.train
    )

    def backward(parameters, frozen, tensors):
        return jax.vjp(lambda weights: loss(weights, frozen, tensors)[0], parameters)[1]

    held = trainer.state
    shapes = jax.eval_shape(backward, held.parameters, held.frozen, tensors_of(inputs))
    return sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(shapes))


def _with_a_broken_row(positions):
    batch = tiny.rows_at(positions)
    batch.latents_BCHW[1] = float("nan")
    return batch
