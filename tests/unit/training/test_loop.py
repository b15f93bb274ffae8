"""What a run checks, tells and publishes."""

import csv
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from dreambooth_core import files
from dreambooth_core.errors import SettingsError, StageError
from dreambooth_core.models.load import load_component
from dreambooth_core.records import Checkpoint, TrainingRun
from dreambooth_core.training.checkpoints import resume_state
from dreambooth_core.training.checkpoints.published import finished_run
from dreambooth_core.training.checks import MovedParameters
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.optim.adamw import build_optimizer
from dreambooth_core.training.optim.ddp import OPTIMIZER, WEIGHTS, DdpStrategy
from dreambooth_core.training.trainable import load_trainable_model
from dreambooth_core.training.trainer import Trainer
from tests.unit.training import tiny

CPU = torch.device("cpu")


def _state(job: TrainJob, *, step: int) -> Path:
    return job.resume_dir / f"step-{step:08d}"


def test_full_checkpoint_loads_as_the_guide_shows(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd)
    tiny.train(job)
    run = TrainingRun.read(job.out_dir)
    assert [c.step for c in run.checkpoints] == [3, 6]
    unet = UNet2DConditionModel.from_pretrained(job.out_dir / "checkpoint-6" / "unet")
    base = load_component("unet", job.base_model, tmp_path, device=CPU)
    moved = (unet.conv_in.weight - base.conv_in.weight).abs().max().item()
    assert 1e-3 < moved < 1e-2  # about six updates of AdamW at rate 1e-3
    text = "".join(p.read_text() for p in job.out_dir.rglob("*.json"))
    assert str(tmp_path) not in text


def test_adapter_checkpoint_loads_with_its_scale(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, method="lora", lora=tiny.LORA)
    tiny.train(job)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.load_lora_weights(job.out_dir / "checkpoint-6")
    trained = load_trainable_model(job, device=CPU)
    for name, value in load_file(_state(job, step=6) / WEIGHTS).items():
        trained.trainable[name].data.copy_(value)
    inputs = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.ones(1, 5, 32)
    with torch.inference_mode():
        expected = trained.denoiser.unet.eval()(inputs, 10, text).sample
        loaded = pipe.unet(inputs, 10, text).sample
    assert torch.allclose(loaded, expected, atol=1e-6)


def test_metrics_have_a_row_per_step_and_sink_per_interval(tmp_path, tiny_sd):
    job, sink = tiny.make_job(tmp_path, tiny_sd), tiny.ListSink()
    tiny.train(job, sink=sink)
    rows = list(csv.DictReader((job.out_dir / "metrics.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    for row in rows:
        parts = float(row["loss_instance"]) + float(row["loss_class"])
        assert float(row["loss"]) == pytest.approx(parts, rel=1e-6)
    assert [step for step, _ in sink.kept] == [2, 4, 6]
    mean = (float(rows[0]["loss"]) + float(rows[1]["loss"])) / 2
    assert sink.kept[0][1]["loss"] == pytest.approx(mean)
    assert sink.status == "FINISHED"


def test_without_a_prior_the_class_loss_is_an_empty_cell(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, prior=None, max_train_steps=1)
    tiny.train(job)
    (row,) = csv.DictReader((job.out_dir / "metrics.csv").open())
    assert row["loss_class"] == ""
    assert row["loss"] == row["loss_instance"]


def test_accumulated_micro_steps_equal_one_batch_of_their_rows(tmp_path, tiny_sd):
    one = tiny.make_job(tmp_path, tiny_sd, name="one", train_batch_size=4, max_train_steps=3)
    two = tiny.make_job(
        tmp_path,
        tiny_sd,
        name="two",
        train_batch_size=2,
        gradient_accumulation_steps=2,
        max_train_steps=3,
    )
    tiny.train(one)
    tiny.train(two)
    tables = [list(csv.DictReader((job.out_dir / "metrics.csv").open())) for job in (one, two)]
    for first, second in zip(*tables, strict=True):
        for column in ("loss", "grad_norm"):
            assert float(first[column]) == pytest.approx(float(second[column]), rel=1e-5)


def test_non_finite_loss_names_step_and_image_before_any_update(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, checkpointing_steps=2)

    sink = tiny.ListSink()
    with pytest.raises(StageError, match=r"step 4 has a non-finite loss") as caught:
        tiny.train(job, rows=tiny.poisoned_at(6), sink=sink)  # the fourth, with two rows a step
    assert "instance/3.png at timestep" in str(caught.value)
    assert "class" not in str(caught.value).split("images:")[1].split(";")[0]
    assert sink.status == "FAILED"
    state = resume_state.newest_state(job.resume_dir, fingerprint=job.fingerprint)
    assert state is not None
    assert state.step == 2


def test_bad_update_is_found_among_updates_read_together(tmp_path, tiny_sd, monkeypatch):
    """As on a GPU, which is waited for at every fourth update here: 3 is bad, 4 is good."""
    monkeypatch.setattr(Trainer, "reading_waits", True)
    job = tiny.make_job(tmp_path, tiny_sd, checkpointing_steps=6).model_copy(
        update={"log_every_steps": 4}
    )

    with pytest.raises(StageError, match=r"step 3 has a non-finite loss.*instance/1\.png at"):
        tiny.train(job, rows=tiny.poisoned_at(4))  # the third update, with two rows a step
    assert tiny.updates(job) == [1, 2, 3, 4]


def test_rows_read_together_are_those_read_one_by_one(tmp_path, tiny_sd, monkeypatch):
    tables = []
    for waits in (False, True):
        monkeypatch.setattr(Trainer, "reading_waits", waits)
        job = tiny.make_job(tmp_path, tiny_sd, name=f"waits-{waits}", checkpointing_steps=6)
        tiny.train(job.model_copy(update={"log_every_steps": 4}))
        tables.append((job.out_dir / "metrics.csv").read_text())
    assert tables[0] == tables[1]


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_non_finite_update_changes_no_weight_and_no_moment(bad, tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd)
    updates = _updates(job)
    trainer = _trainer(job, updates)
    trainer.apply(trainer.accumulate(0, stop=False))
    trainer.clear_gradients()
    updates.save(_new(tmp_path / "before"))
    report = trainer.accumulate(1, stop=False)
    loss = report.values[0]
    if bad == "gradient":
        next(iter(trainer.model.trainable.values())).grad.view(-1)[0] = torch.nan
    else:
        loss = loss * torch.nan
    updates.apply(loss)
    updates.save(_new(tmp_path / "after"))
    assert files.tree_hashes(tmp_path / "after") == files.tree_hashes(tmp_path / "before")


def _updates(job: TrainJob) -> DdpStrategy:
    return DdpStrategy(
        load_trainable_model(job, device=CPU),
        accelerator=Accelerator(cpu=True),
        settings=job.train,
        state=None,
    )


def _trainer(job: TrainJob, updates: DdpStrategy) -> Trainer:
    return Trainer(updates, rows_at=tiny.open_rows(job))


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_frozen_parameter_that_moves_is_named(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, method="lora", lora=tiny.LORA)
    updates = _updates(job)
    model = updates.model
    for parameter in model.trainable.values():
        parameter.grad = torch.ones_like(parameter)
    check = MovedParameters(updates, job.train, step=0)
    check.record_gradients()
    build_optimizer(model, job.train).step()
    check.verify()
    with torch.no_grad():
        model.denoiser.unet.conv_in.weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(StageError, match=r"frozen parameters were changed.*unet\.conv_in\.w") as e:
        check.verify()
    assert e.value.hint == "this is a bug in the training setup; nothing was saved"


def test_parameter_without_movement_or_gradient_is_named(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd)
    updates = _updates(job)
    model = updates.model
    for parameter in model.trainable.values():
        parameter.grad = torch.ones_like(parameter)
    check = MovedParameters(updates, job.train, step=0)
    check.record_gradients()
    with pytest.raises(StageError, match=r"not moved by the first update: unet\.conv_in\.weight"):
        check.verify()
    model.trainable["unet.conv_out.bias"].grad = None
    check = MovedParameters(updates, job.train, step=0)
    with pytest.raises(StageError, match=r"got no gradient: unet\.conv_out\.bias"):
        check.record_gradients()


def test_rate_below_the_last_bit_is_refused(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, learning_rate=1e-12, adam_weight_decay=0.0)
    with pytest.raises(StageError, match=r"raise learning_rate"):
        tiny.train(job)
    assert not list(job.resume_dir.glob("step-*"))


def test_clipping_bounds_the_step_and_reports_the_unclipped_norm(tmp_path, tiny_sd):
    clipped = tiny.make_job(tmp_path, tiny_sd, name="clipped", max_train_steps=1)
    free = tiny.make_job(tmp_path, tiny_sd, name="free", max_train_steps=1, max_grad_norm=None)
    moments = []
    for job in (clipped, free):
        tiny.train(job)
        tensors = load_file(_state(job, step=1) / OPTIMIZER)
        moments.append(
            sum(t.square().sum() for n, t in tensors.items() if n.endswith("|exp_avg")) ** 0.5
        )
    # the first moment after one update is (1 - beta1) times the gradient
    (row,) = csv.DictReader((free.out_dir / "metrics.csv").open())
    assert moments[0].item() == pytest.approx(0.1, rel=1e-4)
    assert moments[1].item() == pytest.approx(0.1 * float(row["grad_norm"]), rel=1e-4)
    assert float(row["grad_norm"]) > 1


def test_v_prediction_follows_the_base_models_scheduler(tmp_path, tiny_sd_v):
    job = tiny.make_job(tmp_path, tiny_sd_v, max_train_steps=1, snr_gamma=5.0)
    assert load_trainable_model(job, device=CPU).loss.prediction_type == "v_prediction"
    assert tiny.train(job).how == "done"


def test_fp16_on_a_cpu_is_refused_with_the_way_out(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, mixed_precision="fp16")
    with pytest.raises(SettingsError, match=r"fp16 needs a GPU.*use bf16"):
        tiny.train(job)


def test_fewer_processes_than_asked_for_are_noticed(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, num_processes=2)
    with pytest.raises(StageError, match="wrong number of processes; found: 1"):
        tiny.train(job)


def test_an_output_that_was_changed_is_not_taken_for_finished(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, max_train_steps=3)
    tiny.train(job)
    assert finished_run(job) is not None
    checkpoint = Checkpoint.read(job.out_dir / "checkpoint-3")
    assert files.digest_of(checkpoint.files) == checkpoint.sha256
    config = job.out_dir / "checkpoint-3" / "unet" / "config.json"
    files.write_text(config, config.read_text() + " ")
    assert finished_run(job) is None


def test_a_text_encoder_that_moves_while_it_rests_is_named(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, train_text_encoder=True, text_encoder_stop_step=2)
    updates = _updates(job)
    for parameter in updates.model.trainable.values():
        parameter.grad = torch.ones_like(parameter)
    check = MovedParameters(updates, job.train, step=2)
    check.record_gradients()
    updates.begin(3, learning_rates=[1e-3, 1e-3])
    updates.apply(torch.tensor(1.0))
    with pytest.raises(StageError, match=r"frozen parameters were changed.*: text_encoder\."):
        check.verify()


def test_frozen_text_encoder_does_not_count_in_the_norm(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, train_text_encoder=True, text_encoder_stop_step=2)
    norms = {}
    for step in (1, 2):
        updates = _updates(job)
        trainer = _trainer(job, updates)
        report = trainer.accumulate(step, stop=False)
        grads = {n: p.grad for n, p in updates.model.trainable.items() if p.grad is not None}
        unet = [grad for name, grad in grads.items() if name.startswith("unet.")]
        own = torch.stack([grad.square().sum() for grad in unet]).sum().sqrt().item()
        norms[step] = (trainer.apply(report).values[4].item(), own)
    assert norms[1][0] > 1.0001 * norms[1][1]
    assert norms[2][0] == pytest.approx(norms[2][1], rel=1e-5)
